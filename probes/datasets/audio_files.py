"""The files of a data set as something to listen to, and those of them that cannot be.

survey    decodes each file once: its length, or why it is unusable
cut       a recording in clips, as a task's protocol has it
FileSource    a clip at a model's rate
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, final

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from etude.data import audio, mono_stream
from etude.data.audio import Samples
from etude.data.errors import DataError
from etude.data.files import json_bytes, write_bytes
from etude.data.mono_stream import mono_blocks
from etude.data.reading import Unusable, checked_blocks, open_checked, open_source
from etude.data.sources import Source
from etude.probes.task_types import Clip

SHORTEST_SECONDS = 0.5
"""Less is not asked about."""

_TENTH = 10
"""Clips shorter than asked for are cut to whole tenths of a second, so that they share a batch."""

_SLACK_SECONDS = 0.01
"""What resampling may take off the end: filled with silence."""

_SOURCE_CODE = b"".join(Path(str(module.__file__)).read_bytes() for module in (audio, mono_stream))


class Look(NamedTuple):
    """What became of a file when it was decoded."""

    size: int
    mtime_ns: int
    seconds: float
    """Length of what was decoded."""
    unusable: str
    """Why it cannot be heard, such as ``not_audio: ...``; empty where it can."""


@final
@dataclass(frozen=True)
class Survey:
    """What is known of files once each was decoded."""

    seconds: Mapping[Path, float]
    """Length of each file that can be heard."""

    unusable: Mapping[Path, str]
    """Why each of the others cannot: ``missing``, ``empty: 0 bytes``, ``not_audio: ...``."""

    stamps: Mapping[Path, tuple[int, int]]
    """Size and time of change of each that can be heard."""


def survey(paths: Iterable[Path], *, name: str, memory: Path | None = None) -> Survey:
    """Decodes every file, so that a broken one is known before hours of encoding.

    :param name: of the data set, for the progress bar.
    :param memory: a file of what was found; what did not change since is not decoded again.
    """
    known = _recall(memory)
    wanted = sorted(set(paths))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        looks = pool.map(lambda path: _look(path, known.get(str(path))), wanted)
        bar = tqdm(looks, total=len(wanted), desc=f"decoding {name}", disable=None, leave=False)
        found = dict(zip(wanted, bar, strict=True))
    if memory is not None:
        there = {str(path): look for path, look in found.items() if look is not None}
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(memory, json_bytes(known | there, indent=None))
    audible = {path: look for path, look in found.items() if look and not look.unusable}
    return Survey(
        {path: look.seconds for path, look in audible.items()},
        {
            path: look.unusable if look else "missing"
            for path, look in found.items()
            if path not in audible
        },
        {path: (look.size, look.mtime_ns) for path, look in audible.items()},
    )


def cut(length: float, *, clip_seconds: float, most_seconds: float) -> list[tuple[float, float]]:
    """Start and length of each clip of a recording, in seconds.

    Whole clips one after the other, what remains at the end is left; a recording that is shorter
    than a clip is one clip.

    :param length: of the recording.
    :param clip_seconds: length of a clip; ``inf``: the recording is one.
    :param most_seconds: what lies behind is not heard.
    """
    heard = min(length, most_seconds)
    if heard < clip_seconds:
        return [(0.0, int(heard * _TENTH + 1e-6) / _TENTH)]
    return [
        (index * clip_seconds, clip_seconds) for index in range(int(heard / clip_seconds + 1e-6))
    ]


@final
class FileSource:
    """Files as tracks. A file is decoded as a whole, and kept until another one is asked for.

    :param name: of the data set.
    :param paths: the files, by number of their track.
    :param stamps: size and time of change of each.
    """

    def __init__(
        self, name: str, paths: Sequence[Path], stamps: Mapping[Path, tuple[int, int]]
    ) -> None:
        self.name: Final = name
        self.paths: Final = tuple(paths)
        # How files are decoded and resampled is a part of what their samples are.
        digest = hashlib.sha256(_SOURCE_CODE)
        for path in self.paths:
            digest.update(f"{path}\0{stamps[path]}\n".encode("utf-8", "surrogateescape"))
        self.identity: Final = digest.hexdigest()
        self._decoded: tuple[int, int] | None = None
        self._samples: Samples = np.zeros(0, np.float32)

    def read(self, clip: Clip, sample_rate: int) -> npt.NDArray[np.float32]:
        """The clip's samples, mono, at a rate.

        :raises DataError: if the file is no longer what it was when it was surveyed.
        """
        path = self.paths[clip.track]
        if self._decoded != (clip.track, sample_rate):
            try:
                self._samples = np.concatenate(list(mono_blocks(_source(path), sample_rate)))
            except (OSError, Unusable) as error:
                raise DataError(
                    f"{self.name}: {path} could be decoded when the probe began, and cannot now: "
                    f"{error}. Leave the folder alone while it is probed."
                ) from error
            self._decoded = (clip.track, sample_rate)
        first, wanted = round(clip.start * sample_rate), round(clip.seconds * sample_rate)
        samples = self._samples[first : first + wanted]
        lacking = wanted - len(samples)
        if lacking > _SLACK_SECONDS * sample_rate:
            raise DataError(
                f"{self.name}: {path} was {lacking / sample_rate:.2f} s longer when the probe "
                "began. Leave the folder alone while it is probed."
            )
        return np.pad(samples, (0, lacking)) if lacking > 0 else samples.copy()


def _look(path: Path, known: Look | None) -> Look | None:
    """Decodes a file that is not known as it is; ``None`` where there is none."""
    try:
        source = _source(path)
    except OSError:
        return None
    stamp = (source.size, source.mtime_ns)
    if known is not None and known[:2] == stamp:
        return known
    try:
        with open_source(source) as file:
            opened, _ = open_checked(file, source)
            frames = sum(len(block) for block in checked_blocks(opened, file, source))
    except Unusable as error:
        return Look(*stamp, 0.0, str(error))
    seconds = frames / opened.sample_rate
    short = f"too_short: {seconds:.2f} s" if seconds < SHORTEST_SECONDS else ""
    return Look(*stamp, seconds, short)


def _recall(memory: Path | None) -> dict[str, Look]:
    """What was found before; nothing where that cannot be read, for it is found again."""
    if memory is None:
        return {}
    try:
        return {name: Look(*look) for name, look in json.loads(memory.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _source(path: Path) -> Source:
    found = path.stat()
    return Source(path, path.name, found.st_size, found.st_mtime_ns, None)
