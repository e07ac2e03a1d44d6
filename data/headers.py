"""What an audio file's container promises, compared with what the file holds.

libsndfile reads a cut WAV or Ogg file to its end and reports no error, so a truncated recording
would pass as a shorter one. FLAC and MP3 need no look here: a cut FLAC stops its decoder, an MP3
with a Xing header has its number of frames compared after decoding.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, final

_EXTENSIONS = {
    "WAV": {".wav", ".wave", ".rf64"},
    "WAVEX": {".wav", ".wave", ".rf64"},
    "RF64": {".wav", ".wave", ".rf64"},
    "FLAC": {".flac", ".fla"},
    "OGG": {".ogg", ".oga", ".opus"},
    "MP3": {".mp3"},
    "M4A": {".m4a", ".mp4", ".aac"},
    "AIFF": {".aif", ".aiff", ".aifc"},
    "AU": {".au", ".snd"},
    "CAF": {".caf"},
    "W64": {".w64"},
}

AUDIO_EXTENSIONS = frozenset().union(*_EXTENSIONS.values(), {".wma", ".ape", ".wv", ".mpc"})
"""A file named so is meant to be audio: if it is not, the report says so."""

_OPEN_ENDED = 0x7FFF_0000
"""Sizes from here on are what programs write into a pipe, where they cannot go back to fill in."""

_OGG_TAIL = 1 << 17
"""An Ogg page is at most 65307 bytes, so that the last page lies in the tail."""

_MP3_HEAD = 1 << 13


@final
@dataclass(frozen=True)
class Promise:
    """What was found; texts are for the report."""

    truncated: str | None = None
    wrong_header: str | None = None


def recognised(head: bytes) -> bool:
    """Whether the first 12 bytes of a file are those of a known audio container."""
    return (
        head[:4] in (b"fLaC", b"OggS", b"caff", b".snd", b"riff", b"wvpk", b"MAC ")
        or head[:3] == b"ID3"
        or (head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE")
        or (head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"))
        or head[4:8] == b"ftyp"
    )


def usual_extension(container: str, path: Path) -> bool:
    """Whether files of this container are commonly named like this one."""
    known = _EXTENSIONS.get(container)
    return known is None or path.suffix.lower() in known


def read_promise(file: BinaryIO, size: int) -> Promise:
    """Looks at the container; leaves the file at its beginning."""
    head = file.read(12)
    try:
        if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
            return _chunks(file, size, "<", b"data", head)
        if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
            return _chunks(file, size, ">", b"SSND", head)
        if head[:4] == b"OggS":
            return _ogg(file, size)
        return Promise()
    finally:
        file.seek(0)


def mp3_frames_are_counted(path: Path) -> bool:
    """Whether an MP3 has a Xing, Info or VBRI header; without one its length is a guess."""
    with path.open("rb") as file:
        head = file.read(10)
        tag = 0
        if head[:3] == b"ID3" and len(head) == 10:
            shifts = zip(head[6:], (21, 14, 7, 0), strict=True)
            tag = 10 + sum((byte & 127) << shift for byte, shift in shifts)
        file.seek(tag)
        start = file.read(_MP3_HEAD)
    return any(name in start for name in (b"Xing", b"Info", b"VBRI"))


def _chunks(file: BinaryIO, size: int, order: str, audio: bytes, head: bytes) -> Promise:
    declared_total = struct.unpack(order + "I", head[4:8])[0] + 8
    at = 12
    while at + 8 <= size:
        file.seek(at)
        name, length = struct.unpack(order + "4sI", file.read(8))
        held = size - at - 8
        if name == audio:
            if length >= _OPEN_ENDED and length > held:
                return Promise(wrong_header="the header leaves the length open")
            if length > held:
                return Promise(truncated=f"the header promises {length} bytes of audio, {held} are")
            if abs(declared_total - size) > 8:
                wrong = f"the header promises a file of {declared_total} bytes, it has {size}"
                return Promise(wrong_header=wrong)
            return Promise()
        at += 8 + length + length % 2
    return Promise(truncated="the file ends before its audio begins")


def _ogg(file: BinaryIO, size: int) -> Promise:
    file.seek(max(0, size - _OGG_TAIL))
    tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0 or len(tail) < page + 27:
        return Promise(truncated="the last Ogg page is cut")
    segments = tail[page + 27 : page + 27 + tail[page + 26]]
    if page + 27 + tail[page + 26] + sum(segments) > len(tail):
        return Promise(truncated="the last Ogg page is cut")
    if not tail[page + 5] & 4:
        return Promise(truncated="the last Ogg page is not marked as the end of the stream")
    return Promise()
