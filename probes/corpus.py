"""The tracks that probes listen to: rendered for probing, never trained on, kept for the next run.

    render at 44.1 kHz stereo -> mono -> model's rate -> 16 bit -> one .npy per kind, labels beside

That is the way a training clip takes too, so a probe hears what the encoder is used to. A corpus
is a pure function of its settings and of the renderer's source; both are in the folder's name, so
that models probed one after another share it and a changed renderer never meets an old cache.

Seeds: training renders its demo corpus from the user's seed as it is (small numbers: 0, 1, 2 ...),
probing from ``PROBE_SEED_BASE + seed``. A training seed at or above the base would train on the
test tracks; ``launch/prepare.py --demo`` has no reason to accept one.
"""

import hashlib
import json
import multiprocessing
import os
import secrets
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from tqdm import tqdm

from etude.data.audio import Resampler, quantise, to_mono
from etude.data.demo import render
from etude.data.demo.render import Kind
from etude.data.errors import DataError
from etude.data.files import json_bytes
from etude.probes.task_types import Clip

PROBE_SEED_BASE = 1_000_003
"""Added to the user's seed: the first seed of the namespace that belongs to probing."""

RENDER_RATE = 44_100
AUDIO_NAME = "audio.npy"
LABELS_NAME = "labels.json"


@dataclass(frozen=True)
class CorpusSettings:
    """What determines every sample of a probe corpus."""

    kind: Kind
    """``mix``: arrangements; ``solo``: one melody instrument alone."""

    tracks: int
    """Number of tracks."""

    sample_rate: int
    """Samples per second as stored."""

    seconds: float = 15.0
    """Length of each track."""

    seed: int = 0
    """The user's seed; ``PROBE_SEED_BASE`` is added to it."""

    @property
    def num_samples(self) -> int:
        """Samples per track."""
        return round(self.seconds * self.sample_rate)

    @property
    def folder_name(self) -> str:
        """Readable settings and a digest of them with the renderer's source."""
        readable = f"{self.kind}-{self.tracks}x{self.seconds:g}s-{self.sample_rate}hz-s{self.seed}"
        digest = hashlib.sha256(readable.encode() + _renderer_source()).hexdigest()
        return f"{readable}-{digest[:8]}"


@dataclass(frozen=True, eq=False)
class Corpus:
    """Rendered tracks and what is known about each."""

    settings: CorpusSettings

    audio: npt.NDArray[np.int16]
    """Mono, (tracks, samples); on disk until it is read."""

    labels: Sequence[dict[str, Any]]
    """The renderer's labels, one mapping per track."""

    def clip(self, track: int, *, start: float, seconds: float) -> npt.NDArray[np.float32]:
        """``seconds`` of a track from ``start`` on, in [-1, 1)."""
        rate = self.settings.sample_rate
        first, length = round(start * rate), round(seconds * rate)
        samples = self.audio[track, first : first + length]
        assert len(samples) == length, "clips are cut within their track"
        return samples.astype(np.float32) / np.float32(32768.0)


def open_corpus(settings: CorpusSettings, *, cache: Path) -> Corpus:
    """The corpus from ``cache``, rendered there first where it is missing."""
    folder = cache / settings.folder_name
    if not folder.exists():
        _render(settings, folder)
    try:
        audio = np.lib.format.open_memmap(folder / AUDIO_NAME, mode="r")
        labels = json.loads((folder / LABELS_NAME).read_text())
    except Exception as error:  # noqa: BLE001 - of another file numpy may raise anything
        raise DataError(
            f"{folder} is no corpus that probes rendered ({error}). Delete it: it is rendered anew."
        ) from error
    return Corpus(settings, audio, labels)


@final
class DemoTracks:
    """Rendered tracks of one kind as an :class:`AudioSource`, a corpus for each rate that is asked.

    :param settings: of one rate; other rates are rendered as they are asked for.
    :param cache: folder of the corpora.
    """

    def __init__(self, settings: CorpusSettings, *, cache: Path) -> None:
        self._settings = settings
        self._cache = cache
        self._corpora: dict[int, Corpus] = {}

    @property
    def name(self) -> str:
        """The kind of its tracks."""
        return self._settings.kind

    @property
    def identity(self) -> str:
        """The settings and the renderer's source, the rate apart."""
        return replace(self._settings, sample_rate=RENDER_RATE).folder_name

    @property
    def num_tracks(self) -> int:
        """How many it has."""
        return self._settings.tracks

    @property
    def seconds(self) -> float:
        """Length of each track."""
        return self._settings.seconds

    @property
    def labels(self) -> Sequence[dict[str, Any]]:
        """The renderer's labels, one mapping per track; the same at every rate."""
        return self.at(self._settings.sample_rate).labels

    def at(self, sample_rate: int) -> Corpus:
        """The tracks at one rate, rendered where they have not been yet."""
        if sample_rate not in self._corpora:
            settings = replace(self._settings, sample_rate=sample_rate)
            self._corpora[sample_rate] = open_corpus(settings, cache=self._cache)
        return self._corpora[sample_rate]

    def read(self, clip: Clip, sample_rate: int) -> npt.NDArray[np.float32]:
        """The clip's samples, in [-1, 1)."""
        corpus = self.at(sample_rate)
        return corpus.clip(clip.track, start=clip.start, seconds=clip.seconds)


class _Job(NamedTuple):
    track: int
    settings: CorpusSettings


def _render(settings: CorpusSettings, folder: Path) -> None:
    """Renders with one process per core; the folder takes its name when it is complete."""
    print(f"rendering {settings.tracks} {settings.kind} tracks into {folder}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Numbers of processes come again, in containers most of all.
    unfinished = folder.with_name(f"{folder.name}.part-{os.getpid()}-{secrets.token_hex(4)}")
    unfinished.mkdir()
    try:
        audio = np.lib.format.open_memmap(
            unfinished / AUDIO_NAME,
            mode="w+",
            dtype=np.int16,
            shape=(settings.tracks, settings.num_samples),
        )
        labels = []
        jobs = [_Job(index, settings) for index in range(settings.tracks)]
        # Spawned, not forked: the parent holds torch's threads, and a fork of those may hang.
        pool = ProcessPoolExecutor(
            max_workers=min(len(os.sched_getaffinity(0)), settings.tracks),
            mp_context=multiprocessing.get_context("spawn"),
            # A track's matrix products are small: a second thread burns a core and gains nothing.
            initializer=threadpool_limits,
            initargs=(1,),
        )
        try:
            rendered = pool.map(_render_track, jobs, chunksize=4)
            bar = tqdm(
                rendered,
                total=len(jobs),
                desc=f"rendering {settings.kind}",
                disable=None,
                leave=False,
            )
            for index, (samples, track_labels) in enumerate(bar):
                audio[index] = samples
                labels.append(track_labels)
        finally:
            # Whoever interrupts does not wait for all that was handed out.
            pool.shutdown(cancel_futures=True)
        audio.flush()
        (unfinished / LABELS_NAME).write_bytes(json_bytes(labels, indent=None))
        try:
            unfinished.rename(folder)
        except OSError:
            # Another probe rendered the same corpus meanwhile: to the bit the same, so take it.
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _render_track(job: _Job) -> tuple[npt.NDArray[np.int16], dict[str, Any]]:
    settings = job.settings
    rendered = render.render_track(
        job.track,
        seed=PROBE_SEED_BASE + settings.seed,
        kind=settings.kind,
        seconds=settings.seconds,
        sample_rate=RENDER_RATE,
    )
    mono = to_mono(rendered.waveform.T)
    resampled = Resampler(RENDER_RATE, settings.sample_rate).push(mono, last=True)
    samples, _ = quantise(resampled)
    # Where the rates do not divide each other the resampler may end one sample off.
    fitted = np.zeros(settings.num_samples, dtype=np.int16)
    length = min(len(samples), len(fitted))
    fitted[:length] = samples[:length]
    return fitted, rendered.labels


def _renderer_source() -> bytes:
    """All of the renderer's code: what a cached corpus must match."""
    paths = sorted(Path(render.__file__).parent.glob("*.py"))
    return b"".join(path.read_bytes() for path in paths)
