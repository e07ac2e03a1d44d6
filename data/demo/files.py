"""The demo corpus as a folder of ordinary music files, each with its labels beside it.

The files look like a real collection on purpose: four formats, two sample rates of the usual and
two of the unusual, mono and stereo, loud and soft, folders of artists and albums. The plan (which
file holds which track in which format under which name) is a pure function of the settings, kept
in `demo.json`; so a run that was interrupted continues, and a folder never mixes two corpora.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import soxr

from etude.data.demo.render import Kind, render_track, track_generator
from etude.data.demo.synthesis import Floats
from etude.data.demo.titles import draw_title
from etude.data.errors import InputError

SETTINGS_NAME = "demo.json"
CORPUS_VERSION = 1
"""Raised whenever the same settings give other audio than before."""
RENDER_RATE = 44100
MIX_EVERY = 4
"""With kind "both", every fourth file is a solo."""
FILE_STREAM, FORMAT_STREAM = 40, 41
WRITE_BLOCK = 16384


@dataclass(frozen=True)
class FileFormat:
    """One way to store a track, in soundfile's words."""

    suffix: str
    container: str
    subtype: str
    sample_rate: int
    channels: int


FORMATS = (
    FileFormat(".wav", "WAV", "PCM_16", 44100, 2),
    FileFormat(".flac", "FLAC", "PCM_16", 44100, 2),
    FileFormat(".ogg", "OGG", "VORBIS", 22050, 1),
    FileFormat(".mp3", "MP3", "MPEG_LAYER_III", 48000, 2),
)


@dataclass(frozen=True)
class PlannedFile:
    """One file of the corpus before it is rendered; small, so that it travels to a worker."""

    path: Path
    kind: Kind
    index: int
    seed: int
    seconds: float
    format: FileFormat
    peak_dbfs: float
    title: str
    artist: str
    album: str

    @property
    def labels_path(self) -> Path:
        """The JSON file beside the audio."""
        return self.path.with_suffix(".json")

    @property
    def complete(self) -> bool:
        """Whether both files stand; the labels are written last, so they vouch for the audio."""
        return self.labels_path.is_file() and self.path.is_file()


def write_demo_files(
    folder: Path,
    *,
    minutes: float = 30.0,
    seed: int = 0,
    seconds: float = 15.0,
    kind: Literal["mix", "solo", "both"] = "both",
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Render `minutes` of music into `folder` and return the audio files, in order.

    Files that stand already are kept. `progress` is called with (files done, files in all).
    """
    _check_options(minutes=minutes, seconds=seconds, seed=seed, workers=workers)
    settings: dict[str, Any] = {
        "corpus_version": CORPUS_VERSION,
        "minutes": float(minutes),
        "seed": seed,
        "seconds": float(seconds),
        "kind": kind,
    }
    _claim_folder(folder, settings)
    plan = plan_files(folder, minutes=minutes, seed=seed, seconds=seconds, kind=kind)
    missing = [planned for planned in plan if not planned.complete]
    done = len(plan) - len(missing)
    if progress is not None:
        progress(done, len(plan))
    if workers == 1 or len(missing) <= 1:
        for planned in missing:
            write_planned(planned)
            done += 1
            if progress is not None:
                progress(done, len(plan))
    else:
        # spawn: forking a process in which torch has started its threads can hang.
        context = get_context("spawn")
        count = min(workers, len(missing))
        with ProcessPoolExecutor(count, mp_context=context) as pool:
            futures = [pool.submit(write_planned, planned) for planned in missing]
            try:
                for future in as_completed(futures):
                    future.result()
                    done += 1
                    if progress is not None:
                        progress(done, len(plan))
            except BaseException:
                # Without this a full disk or Ctrl-C would first wait for every file left.
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [planned.path for planned in plan]


def plan_files(
    folder: Path,
    *,
    minutes: float,
    seed: int,
    seconds: float,
    kind: Literal["mix", "solo", "both"],
) -> list[PlannedFile]:
    """All files of the corpus, whether they stand or not."""
    count = max(1, math.ceil(minutes * 60.0 / seconds - 1e-9))
    plan: list[PlannedFile] = []
    for number in range(count):
        # Each four files hold the four formats in an order of their own: a fixed cycle would tie
        # the format to the kind and to the solo instrument, and a probe could read it off.
        deal = track_generator(seed, code=FORMAT_STREAM, number=number // len(FORMATS))
        file_format = FORMATS[int(deal.permutation(len(FORMATS))[number % len(FORMATS)])]
        rng = track_generator(seed, code=FILE_STREAM, number=number)
        name = draw_title(rng)
        file_kind, index = _track_of_file(number, kind=kind)
        plan.append(
            PlannedFile(
                path=folder
                / name.artist
                / name.album
                / f"{number + 1:04d} - {name.title}{file_format.suffix}",
                kind=file_kind,
                index=index,
                seed=seed,
                seconds=seconds,
                format=file_format,
                peak_dbfs=float(rng.uniform(-12.0, -3.0)),
                title=name.title,
                artist=name.artist,
                album=name.album,
            )
        )
    return plan


def write_planned(planned: PlannedFile) -> None:
    """Render one file and its labels; each appears whole or not at all."""
    track = render_track(
        planned.index,
        seed=planned.seed,
        kind=planned.kind,
        seconds=planned.seconds,
        sample_rate=RENDER_RATE,
    )
    wave = track.waveform
    if planned.format.channels == 1:
        wave = wave.mean(axis=0, keepdims=True)
    samples: Floats = np.ascontiguousarray(wave.T)
    if planned.format.sample_rate != track.sample_rate:
        samples = soxr.resample(
            samples, track.sample_rate, planned.format.sample_rate, quality="HQ"
        )
    samples = samples * np.float32(10.0 ** (planned.peak_dbfs / 20.0) / np.abs(samples).max())

    planned.path.parent.mkdir(parents=True, exist_ok=True)
    partial = planned.path.with_name(f".{planned.path.name}.partial")
    with soundfile.SoundFile(
        partial,
        "w",
        samplerate=planned.format.sample_rate,
        channels=planned.format.channels,
        format=planned.format.container,
        subtype=planned.format.subtype,
    ) as sound:
        # In blocks: one large Vorbis write overflows the stack inside libsndfile.
        for first in range(0, len(samples), WRITE_BLOCK):
            sound.write(samples[first : first + WRITE_BLOCK])
    os.replace(partial, planned.path)
    labels = {
        "title": planned.title,
        "artist": planned.artist,
        "album": planned.album,
        "licence": "CC0-1.0",
        "artificial": True,
        "track": track.name,
        **track.labels,
    }
    _write_json(planned.labels_path, labels)


def _track_of_file(number: int, *, kind: Literal["mix", "solo", "both"]) -> tuple[Kind, int]:
    """Which track of which kind a file holds; the tracks of each kind count from zero."""
    if kind != "both":
        return kind, number
    group, place = divmod(number, MIX_EVERY)
    if place == MIX_EVERY - 1:
        return "solo", group
    return "mix", group * (MIX_EVERY - 1) + place


def _check_options(*, minutes: float, seconds: float, seed: int, workers: int) -> None:
    if not minutes > 0:
        raise InputError(f"minutes must be above 0, but is {minutes}: nothing would be rendered.")
    if not seconds >= 2.0:
        raise InputError(
            f"seconds must be at least 2.0, but is {seconds}: no bar of music fits into less."
        )
    if not 0 <= seed < 2**64:
        raise InputError(f"seed must be between 0 and 2**64 - 1, but is {seed}.")
    if workers < 1:
        raise InputError(f"workers must be at least 1, but is {workers}.")


def _claim_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Leave our settings in an empty folder, or find the same ones there."""
    path = folder / SETTINGS_NAME
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found != settings:
            raise InputError(
                f"{folder} holds a demo corpus with other settings: {_in_words(found)} there, "
                f"{_in_words(settings)} asked for. Choose another folder, or delete this one."
            )
        return
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, but the demo corpus needs a folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"{folder} is not empty and holds no {SETTINGS_NAME}, so it is not a demo corpus. "
            "Choose a new or an empty folder, so that no file of yours is replaced."
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(path, settings)


def _in_words(settings: Any) -> str:
    if not isinstance(settings, dict):
        return "unreadable settings"
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
