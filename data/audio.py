"""Audio in and out of files: what is stored in a corpus, and whatever a user's disk holds.

decode, encode     a clip of a corpus: 16-bit mono FLAC, at the corpus rate
open_audio         any file, read in blocks, so that ten hours need no more memory than ten seconds
to_mono, Resampler, quantise     the way from a user's file to a clip
"""

import importlib
import importlib.util
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, final

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from etude.data.errors import DataError

Samples = npt.NDArray[np.float32]

BLOCK_FRAMES = 1 << 18
"""Frames read at a time from a user's file (5.9 s at 44.1 kHz)."""

_FULL_SCALE = 32768.0

_PYAV_EXTENSIONS = {".aac", ".wma", ".ape", ".wv", ".mpc"}
"""What libsndfile cannot read; files with an MP4 header are known by their content."""


def decode(
    data: bytes, *, start: int = 0, frames: int | None = None
) -> tuple[npt.NDArray[np.float32], int]:
    """Samples (frames,) in [-1, 1) and their rate, from a mono file in memory.

    Only the frames asked for are decoded. libsndfile ends a cut file in silence for some formats,
    so the number of frames that came back is compared with the number that was asked for.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.channels != 1:
                raise DataError(
                    f"a clip has {file.channels} channels, but a corpus is mono. "
                    "Prepare it with launch/prepare.py."
                )
            wanted = file.frames - start if frames is None else frames
            if not 0 <= start <= start + wanted <= file.frames:
                raise DataError(
                    f"a clip has {file.frames} frames, but {wanted} were asked for from frame "
                    f"{start}."
                )
            file.seek(start)
            samples: Samples = file.read(wanted, dtype="float32")
            rate = int(file.samplerate)
    except soundfile.LibsndfileError as error:
        raise DataError(f"a clip cannot be decoded: {error}") from error
    if len(samples) != wanted:
        raise DataError(f"a clip ends after {len(samples)} of the {wanted} frames asked for.")
    return samples, rate


def encode(samples: npt.NDArray[np.int16], sample_rate: int) -> bytes:
    """A mono FLAC file; the same samples always give the same bytes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def quantise(samples: Samples) -> tuple[npt.NDArray[np.int16], int]:
    """Rounds to 16 bit; also the number of samples that had to be clipped."""
    scaled = np.rint(samples * np.float32(_FULL_SCALE))
    clipped = int(np.count_nonzero((scaled > 32767) | (scaled < -32768)))
    return np.clip(scaled, -32768, 32767).astype(np.int16), clipped


def to_mono(frames_TC: Samples) -> Samples:
    """The mean of the channels: 0.5 * (left + right)."""
    mono: Samples = frames_TC.mean(axis=1, dtype=np.float32)
    return mono


@final
class Resampler:
    """A stream from one rate to another (soxr HQ); blocks in, blocks out, as one long signal."""

    def __init__(self, source_rate: int, target_rate: int) -> None:
        self._stream = (
            None
            if source_rate == target_rate
            else soxr.ResampleStream(source_rate, target_rate, 1, dtype="float32", quality="HQ")
        )

    def push(self, samples: Samples, *, last: bool = False) -> Samples:
        """What can be known of the output so far; everything that remains if ``last``."""
        if self._stream is None:
            return samples
        resampled: Samples = self._stream.resample_chunk(samples, last=last)
        return resampled


@final
class Undecodable(Exception):
    """A decoder gave up; ``damaged`` if it is sure that bytes are wrong and not just missing."""

    def __init__(self, message: str, *, damaged: bool = False) -> None:
        super().__init__(message)
        self.damaged = damaged


@final
@dataclass(frozen=True)
class AudioFile:
    """An opened file of a user."""

    sample_rate: int
    channels: int
    container: str
    """Upper-case name of the format found by content: WAV, FLAC, OGG, MP3, M4A."""
    declared_frames: int | None
    """What the header promises as libsndfile understands it; None where it does not say."""
    blocks: Iterator[Samples]
    """Frames (T, C) float32, BLOCK_FRAMES at a time; may raise Undecodable."""


def open_audio(file: BinaryIO, path: Path) -> AudioFile:
    """Opens a file by its content; Undecodable where no decoder recognises it."""
    head = file.read(12)
    file.seek(0)
    if head[4:8] == b"ftyp":
        return _open_with_pyav(path)
    try:
        sound = soundfile.SoundFile(file)
    except soundfile.LibsndfileError as error:
        if path.suffix.lower() in _PYAV_EXTENSIONS:
            return _open_with_pyav(path)
        raise Undecodable(str(error.error_string)) from error
    # A stream without a length (FLAC from a pipe) shows up as the largest count there is.
    declared = sound.frames if sound.frames < 1 << 48 else None
    return AudioFile(
        sound.samplerate, sound.channels, sound.format, declared, _soundfile_blocks(sound)
    )


def pyav_installed() -> bool:
    """Whether m4a, aac and the like can be read; PyAV is optional."""
    return importlib.util.find_spec("av") is not None


def _soundfile_blocks(sound: soundfile.SoundFile) -> Iterator[Samples]:
    with sound:
        short = False
        while True:
            try:
                block: Samples = sound.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise Undecodable(str(error.error_string)) from error
            if not len(block):
                return
            if short:
                # Over a damaged Ogg page libsndfile returns fewer frames, and then the last ones
                # again.
                raise Undecodable("a hole in the stream", damaged=True)
            short = len(block) < BLOCK_FRAMES
            yield block


def _open_with_pyav(path: Path) -> AudioFile:
    if not pyav_installed():
        raise ModuleNotFoundError(f"{path.suffix} files need PyAV: pip install av", name="av")
    av = importlib.import_module("av")
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise Undecodable(str(error)) from error
    if not container.streams.audio:
        container.close()
        raise Undecodable("no audio stream inside")
    stream = container.streams.audio[0]

    def blocks() -> Iterator[Samples]:
        to_float = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
        with container:
            try:
                for frame in container.decode(stream):
                    for converted in to_float.resample(frame):
                        yield np.ascontiguousarray(converted.to_ndarray().T, dtype=np.float32)
            except av.FFmpegError as error:
                raise Undecodable(str(error)) from error

    name = "M4A" if "mp4" in container.format.name else container.format.name.upper()
    return AudioFile(int(stream.rate), int(stream.channels), name, None, blocks())
