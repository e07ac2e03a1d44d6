"""Does `prepare` name every fault for what it is, and keep every good track whole?

    python tests/campaigns/faulty_music.py --minutes 120 --faults 60 --out DIR

Writes real audio files of many formats with a known content, plants faults between them, runs the
real `prepare`, and compares report.json and the shards, read by tarfile and soundfile alone, with
what was planted:

    every fault is in the report, with its reason (or its note) and no other
    nothing else is skipped or noted
    the clips of every track that is kept, joined, are the track: resampled and rounded here, from
    the samples that were written where the format is lossless, from a decoder's output where not

Prints a table of kinds; the exit status is 1 if there is any mistake. Formats and faults that need
PyAV are left out where it is missing.
"""

import argparse
import io
import itertools
import json
import os
import struct
import sys
import tarfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from etude.data.audio import pyav_installed
from etude.data.prepare import PrepareSettings, prepare

Frames = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int16]

RATES = (16000, 22050, 24000, 32000, 44100, 48000)
BPM = (60, 180)


@dataclass(frozen=True)
class Planted:
    """One file, and what has to become of it."""

    name: str
    kind: str
    """Of the fault; the format of a good file."""
    fault: bool
    skipped: str | None
    notes: frozenset[str]
    truth: Path | None
    tolerance: int


@dataclass
class Written:
    """A whole file and what a decoder has to make of it."""

    path: Path
    frames_TC: Frames
    rate: int
    tolerance: int = 0
    """Steps of 16 bit: above 0 only where another decoder than libsndfile's stands in."""
    notes: frozenset[str] = frozenset()


@dataclass
class Workshop:
    """Writes files under ``root/music`` and remembers what they are."""

    root: Path
    settings: PrepareSettings
    seconds: tuple[float, float]
    fault_seconds: float
    seed: int
    planted: list[Planted] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        (self.root / "music").mkdir(parents=True)
        (self.root / "truth").mkdir()

    def stem(self, kind: str) -> Path:
        """A place of its own; one folder in seven has the name of a file."""
        number = len(self.planted)
        folder = "live.wav" if number % 7 == 3 else f"artist {number % 5}"
        path = self.root / "music" / folder / f"{number:04d} {kind}"
        path.parent.mkdir(exist_ok=True)
        return path

    def plant(
        self,
        kind: str,
        path: Path,
        *,
        fault: bool = True,
        skipped: str | None = None,
        notes: Sequence[str] = (),
        written: Written | None = None,
    ) -> None:
        """Remembers a file; ``written`` where its audio has to survive."""
        name = path.relative_to(self.root).as_posix()
        truth = None
        found = set(notes)
        if written is not None:
            truth = self.root / "truth" / f"{len(self.planted):04d}.npy"
            np.save(truth, self.expected(written.frames_TC, written.rate))
            found |= written.notes
            if written.rate != self.settings.sample_rate:
                found.add("resampled")
        tolerance = written.tolerance if written else 0
        self.planted.append(Planted(name, kind, fault, skipped, frozenset(found), truth, tolerance))

    def expected(self, frames_TC: Frames, rate: int) -> Integers:
        """The track as the corpus has to hold it."""
        mono = frames_TC.mean(axis=1, dtype=np.float32)
        if rate != self.settings.sample_rate:
            mono = soxr.resample(mono, rate, self.settings.sample_rate, quality="HQ")
        return np.clip(np.rint(mono * 32768), -32768, 32767).astype(np.int16)

    def song(self, rate: int, channels: int = 2, *, seconds: float | None = None) -> Frames:
        """Plucked chords over a beat, its own for every call: (T, C), peak 0.7."""
        random = self.random
        time_T = np.arange(round((seconds or self.fault_seconds) * rate)) / rate
        beat = time_T * random.uniform(*BPM) / 60
        decay = np.exp(-3 * (beat % 1))
        root = random.uniform(80, 400)
        frames = 0.004 * random.standard_normal((len(time_T), channels))
        for ratio in random.choice([1, 6 / 5, 5 / 4, 4 / 3, 3 / 2, 2, 3, 4], 4, replace=False):
            chord = 2 ** (np.floor(beat / 4) % 4 * random.integers(-3, 4) / 12)
            phase = 2 * np.pi * np.cumsum(root * ratio * chord) / rate
            frames += (decay * np.sin(phase))[:, None] * random.uniform(0.3, 1, channels)
        frames *= 0.7 / np.abs(frames).max()
        return frames.astype(np.float32)

    def song16(self, rate: int, channels: int = 2, *, seconds: float | None = None) -> Integers:
        """The same on a 16-bit grid."""
        return np.rint(self.song(rate, channels, seconds=seconds) * 32767).astype(np.int16)

    def rate(self, *allowed: int) -> int:
        """One of the usual rates."""
        return int(self.random.choice(allowed or RATES))


# Formats: each writes one good track.

Format = Callable[[Workshop, Path, float], Written]


def as_float(samples: npt.NDArray[Any]) -> Frames:
    """Integers of any width as what they mean."""
    if samples.dtype == np.float32:
        return samples
    return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)


def lossless(
    suffix: str,
    *,
    bits: int = 16,
    channels: int | None = None,
    rates: Sequence[int] = RATES,
    **options: Any,
) -> Format:
    """A format of libsndfile that gives back what was written."""

    def write(shop: Workshop, stem: Path, seconds: float) -> Written:
        rate = shop.rate(*rates)
        frames = shop.song(rate, channels or int(shop.random.integers(1, 3)), seconds=seconds)
        samples: npt.NDArray[Any] = frames
        if bits == 8:
            samples = (np.rint(frames * 127).astype(np.int16) << 8).astype(np.int16)
        elif bits == 16:
            samples = np.rint(frames * 32767).astype(np.int16)
        elif bits == 24:
            samples = np.rint(frames.astype(np.float64) * (2**23 - 1)).astype(np.int32) << 8
        path = stem.with_name(stem.name + suffix)
        soundfile.write(path, samples, rate, **options)
        return Written(path, as_float(samples), rate)

    return write


def lossy(suffix: str, *, rates: Sequence[int] = RATES, **options: Any) -> Format:
    """A format of libsndfile whose decoder has the last word, as long as it is as long."""

    def write(shop: Workshop, stem: Path, seconds: float) -> Written:
        rate = shop.rate(*rates)
        song = shop.song(rate, int(shop.random.integers(1, 3)), seconds=seconds)
        path = stem.with_name(stem.name + suffix)
        # Floats, because 16-bit stereo becomes noise as MP3; in blocks, because one large Vorbis
        # write overflows the stack inside libsndfile.
        with soundfile.SoundFile(path, "w", rate, song.shape[1], **options) as file:
            for start in range(0, len(song), 1 << 16):
                file.write(song[start : start + (1 << 16)])
        frames = decoded(path)
        if suffix == ".mp3" and not has_length(path):
            return Written(path, frames[MP3_DELAY:], rate)
        assert len(frames) == len(song), path
        assert np.square(frames - song).mean() < 0.5 * np.square(song).mean(), path
        return Written(path, frames, rate)

    return write


MP3_DELAY = 529
"""Samples that a decoder of MP3 needs to begin; libmpg123 takes them off if a length is known."""


def has_length(mp3: Path) -> bool:
    """Whether it has a Xing header; at low rates LAME finds no room for one."""
    with mp3.open("rb") as file:
        head = file.read(200)
    return b"Xing" in head or b"Info" in head


def decoded(path: Path | io.BytesIO) -> Frames:
    """By libsndfile in one piece, and without a seek: an MP3 is not quite the same after one."""
    with soundfile.SoundFile(path) as file:
        frames: Frames = file.read(file.frames, dtype="float32", always_2d=True)
    return frames


def with_pyav(
    suffix: str,
    codec: str,
    *,
    container: str | None = None,
    rates: Sequence[int] = RATES,
    sample_format: str | None = None,
    exact: bool = False,
    options: dict[str, str] | None = None,
    cover: bool = False,
) -> Format:
    """A format that FFmpeg writes; ``exact`` where it is lossless."""

    def write(shop: Workshop, stem: Path, seconds: float) -> Written:
        import av

        rate = shop.rate(*rates)
        channels = int(shop.random.integers(1, 3))
        samples = shop.song16(rate, channels, seconds=seconds)
        layout = "mono" if channels == 1 else "stereo"
        path = stem.with_name(stem.name + suffix)
        with av.open(str(path), "w", format=container, options=options or {}) as file:
            stream: Any = file.add_stream(codec, rate=rate)
            stream.layout = layout
            if sample_format is not None:
                stream.format = sample_format
            if not exact:
                stream.bit_rate = 64000 * channels
            picture: Any = None
            if cover:
                picture = file.add_stream("mjpeg", rate=1)
                picture.width = picture.height = 64
                picture.pix_fmt = "yuvj420p"
                picture.disposition = av.stream.Disposition.attached_pic
            converter = av.AudioResampler(format=stream.format, layout=layout, rate=rate)
            for start in range(0, len(samples), 8192):
                block = np.ascontiguousarray(as_float(samples[start : start + 8192]).T)
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
                frame.sample_rate, frame.pts = rate, start
                for converted in converter.resample(frame):
                    file.mux(stream.encode(converted))
            for converted in converter.resample(None):
                file.mux(stream.encode(converted))
            file.mux(stream.encode(None))
            if cover:
                grey = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8))
                file.mux(picture.encode(grey.reformat(format="yuvj420p")))
                file.mux(picture.encode(None))
        frames = as_float(samples) if exact else decoded_by_pyav(path)
        assert abs(len(frames) - len(samples)) <= 4096, path  # an encoder's delay and padding
        return Written(path, frames, rate)

    return write


def decoded_by_pyav(path: Path) -> Frames:
    """By FFmpeg in one piece."""
    import av

    blocks = []
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        converter = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
        for frame in file.decode(stream):
            blocks += [converted.to_ndarray() for converted in converter.resample(frame)]
    return np.concatenate(blocks, axis=1).T.astype(np.float32)


def wav_with_chunks(shop: Workshop, stem: Path, seconds: float) -> Written:
    """Chunks of odd length before and after the audio."""
    written = lossless(".wav", subtype="PCM_16")(shop, stem, seconds)
    fmt, audio = wav_chunks(written.path)
    written.path.write_bytes(
        riff((b"LIST", b"INFOxyz"), (b"fmt ", fmt), (b"bext", bytes(603)), (b"data", audio))
        + struct.pack("<4sI", b"id3 ", 1001)
        + bytes(1002)
    )
    fix_riff_size(written.path)
    return written


def flac_with_id3(shop: Workshop, stem: Path, seconds: float) -> Written:
    """Taggers put these before and behind."""
    written = lossless(".flac", subtype="PCM_16")(shop, stem, seconds)
    written.path.write_bytes(id3(5000) + written.path.read_bytes() + b"TAG" + bytes(125))
    return written


def mp3_with_tags(shop: Workshop, stem: Path, seconds: float) -> Written:
    """A large picture in front; APE and ID3v1 behind."""
    written = lossy(".mp3")(shop, stem, seconds)
    footer = struct.pack("<8sIIII8x", b"APETAGEX", 2000, 300, 1, 0)
    ape = bytes(300) + footer
    footer = struct.pack("<8sIIII8x", b"APETAGEX", 2000, len(ape), 1, 0)
    tags = bytes(300) + footer + b"TAG" + bytes(125)
    written.path.write_bytes(id3(700_000) + written.path.read_bytes() + tags)
    return written


def mp3_without_length(shop: Workshop, stem: Path, seconds: float) -> Written:
    """VBR, and nobody wrote down how long it is."""
    written = lossy(".mp3")(shop, stem, seconds)
    data = written.path.read_bytes()
    written.path.write_bytes(data[mp3_frames(data)[1] :])
    frames = decoded_by_pyav(written.path)[MP3_DELAY:]
    return Written(written.path, frames, written.rate, tolerance=2)


def m4a_with_latin_title(shop: Workshop, stem: Path, seconds: float) -> Written:
    """A title that is not UTF-8, as older taggers wrote it."""
    written = with_pyav(".m4a", "aac", container="ipod")(shop, stem, seconds)
    data = written.path.read_bytes()
    at = data.rindex(b"Lavf")
    overwrite(written.path, at + 1, b"\xe4")
    return written


FORMATS: dict[str, Format] = {
    "wav 16": lossless(".wav", subtype="PCM_16"),
    "wav 24": lossless(".wav", bits=24, subtype="PCM_24"),
    "wav float": lossless(".wav", bits=32, subtype="FLOAT"),
    "wav 8": lossless(".wav", bits=8, subtype="PCM_U8"),
    "wav A-law": lossy(".wav", subtype="ALAW"),
    "wav 5.1": lossless(".wav", channels=6, format="WAVEX", subtype="PCM_16"),
    "wav 8 kHz": lossless(".wav", channels=1, rates=[8000], subtype="PCM_16"),
    "wav RF64": lossless(".wav", format="RF64", subtype="PCM_16"),
    "wav RIFX": lossless(".wav", subtype="PCM_16", endian="BIG"),
    "wav chunks": wav_with_chunks,
    "w64": lossless(".w64", subtype="PCM_16"),
    "caf": lossless(".caf", subtype="PCM_16"),
    "au": lossless(".au", subtype="PCM_16"),
    "aiff 16": lossless(".aiff", subtype="PCM_16"),
    "aiff 24": lossless(".aif", bits=24, format="AIFF", subtype="PCM_24"),
    "aiff-c": lossless(".aifc", format="AIFF", subtype="PCM_16", endian="LITTLE"),
    "flac 16": lossless(".flac", subtype="PCM_16"),
    "flac 24": lossless(".flac", bits=24, subtype="PCM_24"),
    "flac 96 kHz": lossless(".flac", bits=24, rates=[96000], subtype="PCM_24"),
    "flac tags": flac_with_id3,
    "mp3 VBR": lossy(".mp3"),
    "mp3 CBR": lossy(".mp3", bitrate_mode="CONSTANT"),
    "mp3 low": lossy(".mp3", bitrate_mode="CONSTANT", compression_level=0.95),
    "mp3 tags": mp3_with_tags,
    "ogg vorbis": lossy(".ogg"),
    "opus": lossy(".opus", rates=(16000, 24000, 48000), format="OGG", subtype="OPUS"),
}
"""What libsndfile writes; weights of music come from how often a format comes round."""

PYAV_FORMATS: dict[str, Format] = {
    "mp3 no length": mp3_without_length,
    "m4a": with_pyav(".m4a", "aac", container="ipod"),
    "m4a faststart": with_pyav(".m4a", "aac", container="ipod", options={"movflags": "faststart"}),
    "m4a fragments": with_pyav(
        ".m4a", "aac", container="ipod", options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "m4a cover": with_pyav(".m4a", "aac", container="mp4", cover=True),
    "m4a alac": with_pyav(".m4a", "alac", container="ipod", sample_format="s16p", exact=True),
    "m4a latin": m4a_with_latin_title,
    "wma": with_pyav(".wma", "wmav2", container="asf", rates=[22050, 32000, 44100, 48000]),
    "aac": with_pyav(".aac", "aac", container="adts"),
    "wavpack": with_pyav(".wv", "wavpack", sample_format="s16p", exact=True),
    "ogg flac": with_pyav(".ogg", "flac", container="ogg", sample_format="s16", exact=True),
}


# Bytes of containers, taken apart without the code under test.


def wav_chunks(path: Path) -> tuple[bytes, bytes]:
    """The contents of "fmt " and "data" of a plain WAV file."""
    data = path.read_bytes()
    at = data.index(b"data")
    return data[20:36], data[at + 8 :]


def riff(*chunks: tuple[bytes, bytes], padded: bool = True) -> bytes:
    """A WAV file of these chunks."""
    body = b"".join(
        struct.pack("<4sI", name, len(content))
        + content
        + (b"\0" if padded and len(content) % 2 else b"")
        for name, content in chunks
    )
    return struct.pack("<4sI4s", b"RIFF", 4 + len(body), b"WAVE") + body


def fix_riff_size(path: Path) -> None:
    """Lets the header say how long the file is."""
    overwrite(path, 4, struct.pack("<I", path.stat().st_size - 8))


def overwrite(path: Path, at: int, new: bytes) -> None:
    """Changes bytes in place."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(new)


def id3(size: int) -> bytes:
    """An ID3v2 tag with a picture of that many bytes."""
    picture = b"APIC" + struct.pack(">I", size - 10) + bytes(2) + b"\xff\xfb\x90\x44" * (size // 4)
    content = picture[:size].ljust(size, b"\0")
    length = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + length + content


def mp3_frames(data: bytes) -> list[int]:
    """Where the frames of a layer III file begin that has no tags."""
    first = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    second = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    hertz = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000)}
    starts, at = [], 0
    while at < len(data):
        version = data[at + 1] >> 3 & 3
        kbps = (first if version == 3 else second)[data[at + 2] >> 4]
        rate = hertz[version][data[at + 2] >> 2 & 3]
        starts.append(at)
        at += (144000 if version == 3 else 72000) * kbps // rate + (data[at + 2] >> 1 & 1)
    return starts


def adts_frames(data: bytes) -> list[int]:
    """Where the frames of an AAC stream begin."""
    starts, at = [], 0
    while at < len(data):
        starts.append(at)
        at += (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
    return starts


def ogg_pages(data: bytes) -> list[bytes]:
    """The pages of an Ogg file."""
    pages, at = [], 0
    while at < len(data):
        segments = data[at + 26]
        length = 27 + segments + sum(data[at + 27 : at + 27 + segments])
        pages.append(data[at : at + length])
        at += length
    return pages


# Faults: each plants one file. The kind is the function's name.

Fault = Callable[[Workshop, str, int], None]
FAULTS: dict[str, Fault] = {}
PYAV_FAULTS: dict[str, Fault] = {}


def fault(function: Fault) -> Fault:
    """Registers a kind."""
    FAULTS[function.__name__] = function
    return function


def pyav_fault(function: Fault) -> Fault:
    """Registers a kind that needs PyAV, to be written or to be read."""
    PYAV_FAULTS[function.__name__] = function
    return function


def write(shop: Workshop, kind: str, name: str, *, seconds: float | None = None) -> Written:
    """A good file of this format, to be damaged."""
    every = FORMATS | PYAV_FORMATS
    return every[name](shop, shop.stem(kind), seconds or shop.fault_seconds)


def cut(shop: Workshop, kind: str, name: str) -> None:
    """The first part of a file, as a download leaves it."""
    path = write(shop, kind, name).path
    os.truncate(path, int(path.stat().st_size * shop.random.uniform(0.3, 0.95)))
    shop.plant(kind, path, skipped="truncated")


def damage(shop: Workshop, kind: str, name: str, number: int, size: int) -> None:
    """Zeros or noise somewhere in the middle."""
    path = write(shop, kind, name).path
    at = int(path.stat().st_size * shop.random.uniform(0.3, 0.6))
    size = min(size, path.stat().st_size // 4)
    overwrite(path, at, bytes(size) if number % 2 else shop.random.bytes(size))
    shop.plant(kind, path, skipped="corrupt")


def chosen(names: Sequence[str], number: int) -> str:
    """One after the other."""
    return names[number % len(names)]


@fault
def empty_file(shop: Workshop, kind: str, number: int) -> None:
    path = shop.stem(kind).with_suffix(chosen((".wav", ".mp3", ".flac", ".ogg"), number))
    path.write_bytes(b"")
    shop.plant(kind, path, skipped="empty")


@fault
def header_only(shop: Workshop, kind: str, number: int) -> None:
    name = chosen(("wav 16", "flac 16", "ogg vorbis", "mp3 VBR", "aiff 16"), number)
    path = write(shop, kind, name).path
    data = path.read_bytes()
    if name == "flac 16":
        size = 42
    elif name == "ogg vorbis":
        size = sum(len(page) for page in ogg_pages(data)[:2])
    elif name == "mp3 VBR":
        size = mp3_frames(data)[1]
    else:
        size = data.index(b"data" if name == "wav 16" else b"SSND") + 8
    os.truncate(path, size)
    shop.plant(kind, path, skipped="empty")


@fault
def no_samples(shop: Workshop, kind: str, number: int) -> None:
    path = shop.stem(kind).with_suffix(chosen((".wav", ".flac", ".aiff"), number))
    soundfile.write(path, np.zeros((0, 2), np.int16), 44100)
    shop.plant(kind, path, skipped="empty")


@fault
def only_an_id3_tag(shop: Workshop, kind: str, number: int) -> None:
    path = shop.stem(kind).with_suffix(".mp3")
    path.write_bytes(id3(5000) + (b"TAG" + bytes(125)) * (number % 2))
    shop.plant(kind, path, skipped="empty")


@fault
def not_audio(shop: Workshop, kind: str, number: int) -> None:
    suffix, content = (
        (".mp3", b"<!doctype html><title>404</title>" * 400),
        (".wav", b"this is not a recording\n" * 400),
        (".flac", b"\xff\xd8\xff\xe0\0\x10JFIF" + shop.random.bytes(40000)),
        (".aac", b"#EXTM3U\n#EXTINF:10,\nhttp://localhost/a.aac\n" * 9),
        (".ogg", shop.random.bytes(30000)),
        (".m4a", b"%PDF-1.7\n" + shop.random.bytes(30000)),
        (".mp3", bytes(30000)),
        (".wav", struct.pack("<4sI4s", b"RIFF", 9000, b"AVI ") + shop.random.bytes(8996)),
    )[number % 8]
    path = shop.stem(kind).with_suffix(suffix)
    path.write_bytes(content)
    shop.plant(kind, path, skipped="not_audio")


@fault
def truncated_wav(shop: Workshop, kind: str, number: int) -> None:
    names = ("wav 16", "wav float", "wav RF64", "wav RIFX", "wav A-law", "wav 24", "wav 5.1")
    cut(shop, kind, chosen(names, number))


@fault
def truncated_flac(shop: Workshop, kind: str, number: int) -> None:
    cut(shop, kind, chosen(("flac 16", "flac 24", "flac tags"), number))


@fault
def truncated_mp3(shop: Workshop, kind: str, number: int) -> None:
    cut(shop, kind, chosen(("mp3 VBR", "mp3 CBR"), number))


@fault
def truncated_mp3_without_length(shop: Workshop, kind: str, number: int) -> None:
    path = write(shop, kind, "mp3 VBR").path
    data = path.read_bytes()
    frames = mp3_frames(data)
    path.write_bytes(data[frames[1] : frames[len(frames) * 2 // 3] + 30])
    shop.plant(kind, path, skipped="truncated")


@fault
def truncated_ogg(shop: Workshop, kind: str, number: int) -> None:
    cut(shop, kind, "ogg vorbis")


@fault
def truncated_opus(shop: Workshop, kind: str, number: int) -> None:
    path = write(shop, kind, "opus").path
    data = path.read_bytes()
    pages = ogg_pages(data)
    whole = b"".join(pages[: max(3, len(pages) // 2)])
    path.write_bytes(whole if number % 2 else data[: len(data) * 2 // 3])
    shop.plant(kind, path, skipped="truncated")


@fault
def truncated_aiff(shop: Workshop, kind: str, number: int) -> None:
    cut(shop, kind, chosen(("aiff 16", "aiff-c", "aiff 24"), number))


@fault
def truncated_others(shop: Workshop, kind: str, number: int) -> None:
    cut(shop, kind, chosen(("w64", "caf", "au"), number))


@pyav_fault
def truncated_m4a(shop: Workshop, kind: str, number: int) -> None:
    cut(shop, kind, chosen(("m4a faststart", "m4a", "m4a alac", "m4a fragments"), number))


@pyav_fault
def truncated_aac(shop: Workshop, kind: str, number: int) -> None:
    path = write(shop, kind, "aac").path
    frames = adts_frames(path.read_bytes())
    os.truncate(path, frames[len(frames) // 2] + 20)
    shop.plant(kind, path, skipped="truncated")


@pyav_fault
def truncated_wavpack_and_wma(shop: Workshop, kind: str, number: int) -> None:
    cut(shop, kind, chosen(("wavpack", "wma"), number))


@fault
def damaged_flac(shop: Workshop, kind: str, number: int) -> None:
    damage(shop, kind, chosen(("flac 16", "flac 24"), number), number, chosen_size(number))


@fault
def damaged_ogg(shop: Workshop, kind: str, number: int) -> None:
    damage(shop, kind, "ogg vorbis", number, chosen_size(number))


@fault
def damaged_opus(shop: Workshop, kind: str, number: int) -> None:
    damage(shop, kind, "opus", number, chosen_size(number))


def chosen_size(number: int) -> int:
    """Bytes of a hole; zeros may meet zeros where it is one byte, noise of that size does not."""
    return (20, 300, 5000)[number % 3]


@fault
def damaged_mp3(shop: Workshop, kind: str, number: int) -> None:
    damage(shop, kind, "mp3 VBR", number, 3000)  # longer than any frame: one has lost its header


@fault
def damaged_mp3_without_length(shop: Workshop, kind: str, number: int) -> None:
    path = write(shop, kind, "mp3 CBR").path
    data = path.read_bytes()
    path.write_bytes(data[mp3_frames(data)[1] :])  # without the frame that holds the length
    at = path.stat().st_size // 2
    end = path.stat().st_size if number % 2 else at + 3000
    noise = shop.random.bytes(end - at)
    overwrite(path, at, noise)
    shop.plant(kind, path, skipped="corrupt")


@pyav_fault
def damaged_m4a(shop: Workshop, kind: str, number: int) -> None:
    damage(shop, kind, chosen(("m4a", "m4a faststart"), number), number, 8000)


@pyav_fault
def damaged_wma(shop: Workshop, kind: str, number: int) -> None:
    damage(shop, kind, "wma", number, 8000)


@pyav_fault
def damaged_aac(shop: Workshop, kind: str, number: int) -> None:
    damage(shop, kind, "aac", number, 3000)


@fault
def end_damaged_ogg(shop: Workshop, kind: str, number: int) -> None:
    """libsndfile takes what is before the last pages for all there is."""
    path = write(shop, kind, "ogg vorbis").path
    overwrite(path, path.stat().st_size - 300, shop.random.bytes(100))
    shop.plant(kind, path, skipped="corrupt")


@fault
def lost_page_ogg(shop: Workshop, kind: str, number: int) -> None:
    path = write(shop, kind, "ogg vorbis").path
    pages = ogg_pages(path.read_bytes())
    lost = len(pages) // 2
    path.write_bytes(b"".join(pages[:lost] + pages[lost + 1 :]))
    shop.plant(kind, path, skipped="corrupt")


@fault
def wrong_md5_flac(shop: Workshop, kind: str, number: int) -> None:
    """Every frame is whole, but they are not those that were encoded."""
    path = write(shop, kind, chosen(("flac 16", "flac 24"), number)).path
    overwrite(path, 26, shop.random.bytes(16))
    shop.plant(kind, path, skipped="corrupt")


@fault
def silent(shop: Workshop, kind: str, number: int) -> None:
    path = shop.stem(kind).with_suffix(chosen((".wav", ".flac", ".ogg"), number))
    frames = np.zeros((round(shop.fault_seconds * 44100), 2), np.float32)
    if number % 2:
        frames += 2e-5 * shop.random.standard_normal(frames.shape).astype(np.float32)
    soundfile.write(path, frames, 44100)
    shop.plant(kind, path, skipped="silent")


@fault
def direct_current(shop: Workshop, kind: str, number: int) -> None:
    path = shop.stem(kind).with_suffix(chosen((".wav", ".flac", ".aiff"), number))
    level = chosen_level(number)
    soundfile.write(path, np.full(round(shop.fault_seconds * 32000), level, np.float32), 32000)
    shop.plant(kind, path, skipped="dc")


def chosen_level(number: int) -> float:
    """Of a signal that does not move."""
    return (0.25, -0.01, 0.9)[number % 3]


@fault
def opposite_channels(shop: Workshop, kind: str, number: int) -> None:
    path = shop.stem(kind).with_suffix(".wav")
    left = shop.song16(44100, 1)
    soundfile.write(path, np.concatenate([left, -left], axis=1), 44100)
    shop.plant(kind, path, skipped="silent")


@fault
def too_short(shop: Workshop, kind: str, number: int) -> None:
    name = chosen(("wav 16", "flac 16", "mp3 VBR", "ogg vorbis"), number)
    seconds = shop.settings.min_seconds * 0.8
    path = write(shop, kind, name, seconds=seconds).path
    shop.plant(kind, path, skipped="too_short")


@fault
def not_a_number(shop: Workshop, kind: str, number: int) -> None:
    path = shop.stem(kind).with_suffix(chosen((".wav", ".aiff", ".caf"), number))
    frames = shop.song(24000)
    frames[len(frames) * 2 // 3, 0] = (np.nan, np.inf, -np.inf)[number % 3]
    soundfile.write(path, frames, 24000, subtype="FLOAT")
    shop.plant(kind, path, skipped="nonfinite")


@fault
def absurd_values(shop: Workshop, kind: str, number: int) -> None:
    path = shop.stem(kind).with_suffix(".wav")
    frames = shop.song(24000)
    if number % 2:
        frames *= 32768  # integers that were cast and not divided
    else:
        frames[len(frames) // 2] = 1e30
    soundfile.write(path, frames, 24000, subtype="FLOAT")
    shop.plant(kind, path, skipped="corrupt")


@fault
def garbage_in_float_wav(shop: Workshop, kind: str, number: int) -> None:
    path = write(shop, kind, "wav float").path
    overwrite(path, path.stat().st_size // 8 * 4 + 4, shop.random.bytes(8000))
    # Among 2000 random floats there are some that are no numbers.
    shop.plant(kind, path, skipped="nonfinite")


@fault
def impossible_rate(shop: Workshop, kind: str, number: int) -> None:
    path = write(shop, kind, "wav 16").path
    overwrite(path, 24, struct.pack("<I", (1, 0, 2_000_000_000)[number % 3]))
    shop.plant(kind, path, skipped="corrupt")


@fault
def duplicate(shop: Workshop, kind: str, number: int) -> None:
    """The same samples in another container; the first by name is kept."""
    rate, samples = 44100, shop.song16(44100)
    first = shop.stem("original").with_suffix(".wav")
    soundfile.write(first, samples, rate)
    shop.plant("original", first, fault=False, written=Written(first, as_float(samples), rate))
    suffix = chosen((".flac", ".aiff", ".caf", ".w64"), number)
    copy = first.with_name(first.name + " again" + suffix)
    soundfile.write(copy, samples, rate, subtype="PCM_16")
    shop.plant(kind, copy, skipped="duplicate")


@pyav_fault
def duplicate_in_m4a(shop: Workshop, kind: str, number: int) -> None:
    written = write(shop, "original", "m4a alac")
    shop.plant("original", written.path, fault=False, written=written)
    copy = written.path.with_name(written.path.name + " again.flac")
    soundfile.write(copy, np.rint(written.frames_TC * 32768).astype(np.int16), written.rate)
    shop.plant(kind, copy, skipped="duplicate")


@fault
def dangling_link(shop: Workshop, kind: str, number: int) -> None:
    path = shop.stem(kind).with_suffix(".flac")
    path.symlink_to(path.with_name("on another disk.flac"))
    shop.plant(kind, path, skipped="unreadable")


def no_permission(shop: Workshop, kind: str, number: int) -> None:
    path = write(shop, kind, "wav 16").path
    path.chmod(0)
    shop.plant(kind, path, skipped="unreadable")


if os.geteuid() != 0:  # root may read everything
    fault(no_permission)


@pyav_fault
def video_without_sound(shop: Workshop, kind: str, number: int) -> None:
    import av

    path = shop.stem(kind).with_suffix(chosen((".mp4", ".m4a"), number))
    with av.open(str(path), "w", format="mp4") as file:
        stream: Any = file.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for level in range(20):
            picture = np.full((64, 64, 3), 10 * level, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
    shop.plant(kind, path, skipped="not_audio")


# Odd, but usable: packed whole, and noted.


@fault
def wrong_extension(shop: Workshop, kind: str, number: int) -> None:
    name, suffix = (
        ("flac 16", ".mp3"),
        ("mp3 VBR", ".wav"),
        ("ogg vorbis", ".mp3"),
        ("wav 16", ".flac"),
        ("aiff 16", ""),
    )[number % 5]
    written = write(shop, kind, name)
    written.path = written.path.rename(written.path.with_suffix(suffix))
    shop.plant(kind, written.path, notes=["wrong_extension"], written=written)


@fault
def wrong_sizes_wav(shop: Workshop, kind: str, number: int) -> None:
    """As pipes, killed recorders and careless editors leave them."""
    written = write(shop, kind, "wav 16")
    _, audio = wav_chunks(written.path)
    whole = written.path.stat().st_size
    total, length = (
        (whole - 8, len(audio) // 8 * 4),
        (0, 0),
        (0xFFFF_FFFF, 0xFFFF_FFFF),
        (0, len(audio)),
        (0x7FFF_FFFF, 0x7FFF_FFDB),
    )[number % 5]
    overwrite(written.path, 4, struct.pack("<I", total))
    overwrite(written.path, 40, struct.pack("<I", length))
    shop.plant(kind, written.path, notes=["wrong_header"], written=written)


@fault
def chunks_without_padding(shop: Workshop, kind: str, number: int) -> None:
    written = write(shop, kind, "wav 16")
    fmt, audio = wav_chunks(written.path)
    chunks = ((b"fmt ", fmt), (b"LIST", b"INFOxyz"), (b"data", audio))
    written.path.write_bytes(riff(*chunks, padded=False))
    shop.plant(kind, written.path, notes=["wrong_header"], written=written)


@fault
def wrong_length_flac(shop: Workshop, kind: str, number: int) -> None:
    """None at all, as from a pipe; or half of it."""
    written = write(shop, kind, chosen(("flac 16", "flac 24"), number))
    packed = int.from_bytes(written.path.read_bytes()[18:26], "big")
    frames = packed & (1 << 36) - 1
    packed += frames // 2 * (number % 2) - frames
    overwrite(written.path, 18, packed.to_bytes(8, "big"))
    if number % 4 == 0:
        overwrite(written.path, 26, bytes(16))  # a pipe takes no checksum either
    shop.plant(kind, written.path, notes=["wrong_header"], written=written)


@fault
def garbage_before_mp3(shop: Workshop, kind: str, number: int) -> None:
    written = write(shop, kind, "mp3 VBR")
    garbage = shop.random.bytes(int(shop.random.integers(1, 20000)))
    written.path.write_bytes(garbage + written.path.read_bytes())
    shop.plant(kind, written.path, notes=["wrong_header"], written=written)


@fault
def joined_mp3(shop: Workshop, kind: str, number: int) -> None:
    """Two files in one; libsndfile ends after the first."""
    joined(shop, kind, ".mp3", {"format": "MP3"}, id3(3000) if number % 2 else b"")


@fault
def chained_ogg(shop: Workshop, kind: str, number: int) -> None:
    """Two streams in one; libsndfile ends after the first."""
    options = ({"format": "OGG"}, {"format": "OGG", "subtype": "OPUS"})[number % 2]
    joined(shop, kind, ".ogg", options, b"")


def joined(shop: Workshop, kind: str, suffix: str, options: dict[str, str], between: bytes) -> None:
    """Two files, one behind the other."""
    rate = 48000
    path = shop.stem(kind).with_suffix(suffix)
    data, frames = [], []
    for _ in range(2):
        file = io.BytesIO()
        soundfile.write(file, shop.song(rate), rate, **options)
        data.append(file.getvalue())
        frames.append(decoded(io.BytesIO(data[-1])))
    path.write_bytes(between.join(data))
    written = Written(path, np.concatenate(frames), rate)
    shop.plant(kind, path, notes=["wrong_header"], written=written)


@fault
def clipped(shop: Workshop, kind: str, number: int) -> None:
    """At full scale in 16 bit, or beyond it in floats."""
    path = shop.stem(kind).with_suffix(".wav")
    frames = 8 * shop.song(44100)
    if number % 2:
        soundfile.write(path, frames, 44100, subtype="FLOAT")
    else:
        integers = np.clip(np.rint(frames * 32768), -32768, 32767).astype(np.int16)
        soundfile.write(path, integers, 44100)
        frames = as_float(integers)
    shop.plant(kind, path, notes=["clipped"], written=Written(path, frames, 44100))


@fault
def cancelling_channels(shop: Workshop, kind: str, number: int) -> None:
    path = shop.stem(kind).with_suffix(".wav")
    left = shop.song16(44100, 1)
    right = np.rint(-0.95 * left).astype(np.int16)
    samples = np.concatenate([left, right], axis=1)
    soundfile.write(path, samples, 44100)
    written = Written(path, as_float(samples), 44100)
    shop.plant(kind, path, notes=["channels_cancel"], written=written)


@fault
def broken_labels(shop: Workshop, kind: str, number: int) -> None:
    written = write(shop, kind, "flac 16")
    written.path.with_suffix(".json").write_text('{"tempo": ', encoding="utf-8")
    shop.plant(kind, written.path, notes=["broken_labels"], written=written)


# The campaign.


def kinds() -> dict[str, Fault]:
    """Every kind that can be planted here."""
    return FAULTS | PYAV_FAULTS if pyav_installed() else dict(FAULTS)


def write_faults(shop: Workshop, names: Sequence[str], count: int) -> None:
    """``count`` faults, one kind after the other."""
    every = kinds()
    numbers: dict[str, int] = defaultdict(int)
    for name in itertools.islice(itertools.cycle(names), count):
        every[name](shop, name, numbers[name])
        numbers[name] += 1


def write_music(shop: Workshop, formats: dict[str, Format], minutes: float) -> None:
    """Good tracks of all formats in turn, until there are so many minutes."""
    left = 60 * minutes
    for name in itertools.cycle(formats):
        if left <= 0:
            return
        seconds = float(shop.random.uniform(*shop.seconds))
        written = formats[name](shop, shop.stem("good"), seconds)
        shop.plant(name, written.path, fault=False, written=written)
        left -= seconds


def mistakes(shop: Workshop, corpus: Path) -> dict[str, list[str]]:
    """Name of a file -> what is wrong about it; read without the code under test."""
    report = json.loads((corpus / "report.json").read_bytes())
    skipped: dict[str, list[str]] = defaultdict(list)
    notes: dict[str, set[str]] = defaultdict(set)
    for finding in report["skipped"]:
        skipped[finding["file"]].append(f"{finding['reason']} ({finding['detail']})")
    for finding in report["noted"]:
        notes[finding["file"]].add(finding["reason"])
    packed = packed_tracks(corpus, shop.settings.sample_rate)
    found: dict[str, list[str]] = defaultdict(list)
    for file in shop.planted:
        wrong = found[file.name]
        said = skipped.pop(file.name, [])
        if file.skipped is None:
            wrong += [f"skipped as {reason}" for reason in said]
        elif len(said) != 1 or not said[0].startswith(f"{file.skipped} ("):
            wrong.append(f"should be {file.skipped}, but is {said or 'not skipped'}")
        noted = notes.pop(file.name, set())
        if noted != (file.notes if file.skipped is None else set()):
            wrong.append(f"noted {sorted(noted)} instead of {sorted(file.notes)}")
        clips = packed.pop(file.name, None)
        if file.truth is not None:
            wrong += differences(clips, np.load(file.truth), file.tolerance)
        elif clips is not None:
            wrong.append(f"{len(clips)} samples of it were packed")
    for name in [*skipped, *notes, *packed]:
        found[name].append("is in the corpus or its report, and was never written")
    if report["found"] != len(shop.planted) or report["found"] != report["packed"] + len(
        report["skipped"]
    ):
        found["report.json"].append(f"{report['found']} files found of {len(shop.planted)}")
    return {name: wrong for name, wrong in found.items() if wrong}


def packed_tracks(corpus: Path, sample_rate: int) -> dict[str, Integers]:
    """Source -> its clips joined, from all shards."""
    clips: dict[str, list[tuple[int, Integers]]] = defaultdict(list)
    for shard in sorted(corpus.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = {member.name: tar.extractfile(member) for member in tar}
            for name, member in members.items():
                if not name.endswith(".flac"):
                    continue
                about_file = members[name.removesuffix(".flac") + ".json"]
                assert member is not None and about_file is not None
                about = json.loads(about_file.read())
                samples, rate = soundfile.read(io.BytesIO(member.read()), dtype="int16")
                assert rate == sample_rate and len(samples) == about["num_samples"], name
                clips[about["source"]].append((about["offset_samples"], samples))
    tracks = {}
    for source, parts in clips.items():
        parts.sort(key=lambda part: part[0])
        ends = itertools.accumulate(len(samples) for _, samples in parts)
        assert [start for start, _ in parts] == [0, *ends][: len(parts)], source
        tracks[source] = np.concatenate([samples for _, samples in parts])
    return tracks


def differences(clips: Integers | None, truth: Integers, tolerance: int) -> list[str]:
    """Between the clips of a track and the track."""
    if clips is None:
        return ["is not in the corpus"]
    if len(clips) != len(truth):
        return [f"{len(clips)} samples instead of {len(truth)}"]
    error = int(np.abs(clips.astype(np.int32) - truth).max())
    return [f"samples differ by up to {error} steps"] if error > tolerance else []


def table(shop: Workshop, wrong: dict[str, list[str]]) -> str:
    """Kinds of faults, then formats of good tracks."""
    lines = []
    for heading, is_fault in (("fault", True), ("good track", False)):
        groups: dict[str, list[Planted]] = defaultdict(list)
        for file in shop.planted:
            if file.fault == is_fault:
                groups[file.kind].append(file)
        verdict = "named right" if is_fault else "whole"
        lines.append(f"{heading:<30} {'expected':<18} {'planted':>8} {verdict:>12} {'wrong':>6}")
        for kind, files in groups.items():
            bad = sum(file.name in wrong for file in files)
            notes = ", ".join(sorted(files[0].notes - {"resampled"}))
            expected = files[0].skipped or (f"noted: {notes}" if notes else "")
            lines.append(
                f"{kind:<30} {expected:<18} {len(files):>8} {len(files) - bad:>12} {bad:>6}"
            )
        bad = sum(file.name in wrong for group in groups.values() for file in group)
        count = sum(map(len, groups.values()))
        total = f"{len(groups)} kinds"
        lines += [f"{total:<30} {'':<18} {count:>8} {count - bad:>12} {bad:>6}", ""]
    return "\n".join(lines)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=120, help="of good music")
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    settings = PrepareSettings(clip_seconds=30, min_seconds=5)
    shop = Workshop(arguments.out, settings, (20, 180), 12, arguments.seed)
    formats = FORMATS | PYAV_FORMATS if pyav_installed() else dict(FORMATS)
    started = time.monotonic()
    names = list(shop.random.permutation(list(kinds())))
    write_faults(shop, names, arguments.faults)
    write_music(shop, formats, arguments.minutes)
    written = time.monotonic()
    prepare(
        [arguments.out / "music"], arguments.out / "corpus", settings, workers=arguments.workers
    )
    prepared = time.monotonic()
    wrong = mistakes(shop, arguments.out / "corpus")
    print(table(shop, wrong))
    for name, what in sorted(wrong.items()):
        print(f"WRONG {name}: {'; '.join(what)}")
    print(
        f"{len(shop.planted)} files; written in {written - started:.0f} s, prepared in "
        f"{prepared - written:.0f} s, checked in {time.monotonic() - prepared:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
