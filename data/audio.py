"""Audio in and out of files: what is stored in a corpus, and whatever a user's disk holds.

decode, encode     a clip of a corpus: 16-bit mono FLAC or WAV, at the corpus rate
open_audio         any file, read in blocks, so that ten hours need no more memory than ten seconds
to_mono, Resampler, quantise     the way from a user's file to a clip
"""

import hashlib
import importlib
import importlib.util
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, final

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from etude.data.clip_format import AudioFormat, pcm16_header
from etude.data.containers.flac import read_streaminfo
from etude.data.containers.promise import Part, PartFile, Promise
from etude.data.errors import DataError
from etude.data.interrupts import raise_lost_interrupt
from etude.data.tags import skip_id3

Samples = npt.NDArray[np.float32]

BLOCK_FRAMES = 1 << 18
"""Frames read at a time from a user's file (5.9 s at 44.1 kHz)."""

_FULL_SCALE = 32768.0

_MP3_SLACK_SECONDS = 0.1
_PYAV_SLACK_SECONDS = 0.1

_RATES = range(1000, 1_000_001)
"""Hertz; the resampler would ask for any amount of memory beyond."""


def decode(data: bytes, *, start: int = 0, frames: int | None = None) -> tuple[Samples, int]:
    """Samples (frames,) in [-1, 1) and their rate, from a clip in memory."""
    samples, rate = decode_pcm16(io.BytesIO(data), start=start, frames=frames)
    return np.multiply(samples, np.float32(1 / _FULL_SCALE), dtype=np.float32), rate


class ClipFile(Protocol):
    """As much of a file as a decoder asks for."""

    def seek(self, offset: int, whence: int = ..., /) -> int:
        """As a file does."""

    def tell(self) -> int:
        """As a file does."""

    def readinto(self, into: Any, /) -> int:
        """As a file does."""


def decode_pcm16(
    file: ClipFile,
    *,
    start: int = 0,
    frames: int | None = None,
    out: npt.NDArray[np.int16] | None = None,
) -> tuple[npt.NDArray[np.int16], int]:
    """16-bit samples (frames,) and their rate, from a clip: a mono file of 16 bit.

    Only the frames asked for are decoded. libsndfile ends a cut file in silence for some formats,
    so the number of frames that came back is compared with the number that was asked for.

    :param out: takes the samples, if it is given: its first ``frames``.
    """
    try:
        with soundfile.SoundFile(file) as sound:
            if sound.channels != 1:
                raise DataError(
                    f"a clip has {sound.channels} channels, but a corpus is mono. "
                    "Prepare it with launch/prepare.py."
                )
            wanted = sound.frames - start if frames is None else frames
            if not 0 <= start <= start + wanted <= sound.frames:
                raise DataError(
                    f"a clip has {sound.frames} frames, but {wanted} were asked for from frame "
                    f"{start}."
                )
            if start:
                sound.seek(start)
            # soundfile would seek to where it is after the read: 4 % of a crop's time.
            sound.seekable = lambda: False
            samples: npt.NDArray[np.int16] = sound.read(
                wanted, dtype="int16", out=None if out is None else out[:wanted]
            )
            rate = int(sound.samplerate)
    except soundfile.LibsndfileError as error:
        raise DataError(f"a clip cannot be decoded: {error}") from error
    finally:
        raise_lost_interrupt()  # libsndfile reads through Python, and would not have passed it on
    if len(samples) != wanted:
        raise DataError(f"a clip ends after {len(samples)} of the {wanted} frames asked for.")
    return samples, rate


def encode(
    samples: npt.NDArray[np.int16], sample_rate: int, audio_format: AudioFormat = "flac"
) -> bytes:
    """A mono FLAC or WAV file; the same samples always give the same bytes."""
    if audio_format == "pcm16":
        header = pcm16_header(len(samples), sample_rate)
        return header + samples.astype("<i2", copy=False).tobytes()
    buffer = io.BytesIO()
    try:
        soundfile.write(buffer, samples, sample_rate, format="FLAC", subtype="PCM_16")
    finally:
        raise_lost_interrupt()
    return buffer.getvalue()


def quantise(samples: Samples) -> tuple[npt.NDArray[np.int16], int]:
    """Rounds to 16 bit; also the number of samples that had to be clipped."""
    scaled = samples * np.float32(_FULL_SCALE)
    np.rint(scaled, out=scaled)
    clipped = 0
    if len(scaled) and (scaled.max() > 32767 or scaled.min() < -32768):
        clipped = int(np.count_nonzero((scaled > 32767) | (scaled < -32768)))
        np.clip(scaled, -32768, 32767, out=scaled)
    return scaled.astype(np.int16), clipped


def to_mono(frames_TC: Samples) -> Samples:
    """The mean of the channels: 0.5 * (left + right)."""
    channels = frames_TC.shape[1]
    if channels > 7:  # which numpy adds in another order
        mono: Samples = frames_TC.mean(axis=1, dtype=np.float32)
        return mono
    # The same to the last bit, in a twentieth of the time: numpy's sum over a short axis is slow.
    mono = frames_TC[:, 0] + np.float32(0)
    for channel in range(1, channels):
        mono += frames_TC[:, channel]
    mono /= np.float32(channels)
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
    """A decoder gave up.

    ``damaged``: it is sure that bytes are wrong and not just missing. ``foreign``: the file holds
    something else, such as a video without sound.
    """

    def __init__(self, message: str, *, damaged: bool = False, foreign: bool = False) -> None:
        super().__init__(message)
        self.damaged = damaged
        self.foreign = foreign


@final
@dataclass(frozen=True)
class AudioFile:
    """An opened file of a user."""

    sample_rate: int
    channels: int
    container: str
    """Upper-case name of the format found by content: WAV, FLAC, OGG, MP3, M4A."""
    declared_frames: int | None
    """What the header promises as its decoder understands it; None where it does not say."""
    slack_frames: int
    """Frames less than that are no loss: where a decoder counts its delay, or an editor did not."""
    blocks: Iterator[Samples]
    """Frames (T, C) float32, BLOCK_FRAMES at a time; may raise Undecodable."""


def open_audio(file: BinaryIO, path: Path, promise: Promise, *, flac_md5: bool = True) -> AudioFile:
    """Opens a file by its content; Undecodable where no decoder recognises it.

    :param flac_md5: whether a FLAC file's samples are compared with the MD5 that it states.
    """
    if promise.demuxer is not None:
        audio = _open_with_pyav(file, path, promise)
    else:
        audio = _open_with_libsndfile(file, promise, flac_md5=flac_md5)
    if audio.sample_rate not in _RATES:
        raise Undecodable(f"a sample rate of {audio.sample_rate} Hz", damaged=True)
    return audio


def pyav_installed() -> bool:
    """Whether m4a, aac and the like can be read; PyAV is optional."""
    return importlib.util.find_spec("av") is not None


def _open_with_libsndfile(file: BinaryIO, promise: Promise, *, flac_md5: bool) -> AudioFile:
    # By content alone: soundfile takes a file object whose name ends in `.raw` for raw samples.
    whole = Part(b"", 0, file.seek(0, io.SEEK_END))
    sounds = [_open_sound(PartFile(file, part)) for part in promise.parts or (whole,)]
    first = sounds[0]
    if any(
        (sound.samplerate, sound.channels) != (first.samplerate, first.channels) for sound in sounds
    ):
        raise Undecodable("several streams in one, of different rates or channels", damaged=True)
    # A stream without a length (FLAC from a pipe) shows up as the largest count there is.
    declared = sum(sound.frames for sound in sounds)
    slack = round(_MP3_SLACK_SECONDS * first.samplerate) if first.format == "MP3" else 0
    return AudioFile(
        first.samplerate,
        first.channels,
        first.format,
        declared if declared < 1 << 48 and promise.frames_are_known else None,
        slack,
        _blocks_of_all(sounds, file, promise.parts, flac_md5=flac_md5),
    )


def _open_sound(file: PartFile) -> soundfile.SoundFile:
    try:
        sound = soundfile.SoundFile(file)
    except soundfile.LibsndfileError as error:
        raise Undecodable(str(error.error_string)) from error
    # soundfile seeks to where it is after every read, and after a seek an MP3's decoder lacks the
    # bits that its frames left in earlier ones: at 48 kbit/s a third of full scale was wrong for a
    # frame or two, at the beginning of every block.
    sound.seekable = lambda: False
    return sound


def _blocks_of_all(
    sounds: Sequence[soundfile.SoundFile],
    file: BinaryIO,
    parts: Sequence[Part],
    *,
    flac_md5: bool,
) -> Iterator[Samples]:
    checked = flac_md5 and sounds[0].format == "FLAC"
    md5 = _Md5.of(file, parts[0] if parts else None) if checked else None
    for sound in sounds:
        with sound:
            yield from _soundfile_blocks(sound, md5)


def _soundfile_blocks(sound: soundfile.SoundFile, md5: "_Md5 | None") -> Iterator[Samples]:
    left = sound.frames
    most = max(1, 2 * BLOCK_FRAMES // max(2, sound.channels))  # 1024 channels would be 1 GiB
    while left:
        # Never more than there is: a FLAC decoder would stumble over a tag behind its last frame.
        frames = min(most, left)
        try:
            if md5 is not None:
                block = md5.floats(sound.read(frames, dtype=md5.dtype, always_2d=True))
            else:
                block = sound.read(frames, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise Undecodable(str(error.error_string)) from error
        left -= len(block)
        if len(block):
            yield block
        if len(block) < frames:
            break
    if md5 is not None:
        md5.check()


@final
class _Md5:
    """The checksum that a FLAC file holds of its samples; libsndfile does not look at it."""

    def __init__(self, wanted: bytes, bits: int) -> None:
        self._wanted = wanted
        self._bits = bits
        self._digest = hashlib.md5(usedforsecurity=False)
        self.dtype = "int16" if bits <= 16 else "int32"
        """What to ask libsndfile for: it sets the bits of a sample from the top."""

    @classmethod
    def of(cls, file: BinaryIO, part: Part | None) -> "_Md5 | None":
        """None where the encoder left it out."""
        if part is None:
            position = file.tell()
            file.seek(skip_id3(file, 0))
            head = file.read(42)
            file.seek(position)
        else:
            head = part.head
        info = read_streaminfo(head)
        return cls(info.md5, info.bits) if info is not None and any(info.md5) else None

    def floats(self, block_TC: npt.NDArray[np.int16] | npt.NDArray[np.int32]) -> Samples:
        """What libsndfile would have given as float32: exact up to 24 bits."""
        width = 8 * block_TC.itemsize
        if self._bits == 16:
            self._digest.update(block_TC.astype("<i2", copy=False).data)
        else:
            little = (block_TC >> width - self._bits).astype(f"<i{block_TC.itemsize}")
            octets = little.view(np.uint8).reshape(-1, block_TC.itemsize)
            self._digest.update(octets[:, : (self._bits + 7) // 8].tobytes())
        return block_TC.astype(np.float32) * np.float32(2.0 ** (1 - width))

    def check(self) -> None:
        """After the last block."""
        if self._digest.digest() != self._wanted:
            raise Undecodable("the samples do not have the MD5 that the file states", damaged=True)


def _open_with_pyav(file: BinaryIO, path: Path, promise: Promise) -> AudioFile:
    if not pyav_installed():
        raise ModuleNotFoundError(f"{path.suffix} files need PyAV: pip install av", name="av")
    av = importlib.import_module("av")
    file.seek(0)
    try:
        # By name: FFmpeg's own guess may take a text for a playlist, and fetch what it lists.
        # Titles need not be UTF-8, and nobody reads them here.
        container = av.open(file, format=promise.demuxer, metadata_errors="replace")
    except av.FFmpegError as error:
        raise Undecodable(str(error)) from error
    if not container.streams.audio:
        container.close()
        raise Undecodable("no audio stream inside", foreign=True)
    stream = container.streams.audio[0]
    declared = None
    if promise.frames_are_known and stream.duration is not None:
        declared = int(stream.duration * stream.time_base * stream.rate)

    def blocks() -> Iterator[Samples]:
        to_float = av.AudioResampler(
            format="fltp", layout=stream.layout, rate=stream.rate, frame_size=BLOCK_FRAMES
        )
        with container:
            try:
                for frame in container.decode(stream):
                    for converted in to_float.resample(frame):
                        yield np.ascontiguousarray(converted.to_ndarray().T, dtype=np.float32)
                for converted in to_float.resample(None):
                    yield np.ascontiguousarray(converted.to_ndarray().T, dtype=np.float32)
            except av.FFmpegError as error:
                raise Undecodable(str(error), damaged=promise.complete) from error

    name = "M4A" if promise.demuxer == "mov" else str(promise.demuxer).upper()
    rate = int(stream.rate)
    slack = round(_PYAV_SLACK_SECONDS * rate)
    return AudioFile(rate, int(stream.channels), name, declared, slack, blocks())
