"""How long an audio file says it is: from a few kilobytes of its header, without a decoder.

For estimates. Nothing is checked here (headers.py does): a file that lies gives a wrong length, one
that cannot be understood gives none, and no file can take the process down as a decoder might.
"""

import struct
from pathlib import Path
from typing import BinaryIO

from etude.data.containers.mpeg import HERTZ, KBPS
from etude.data.tags import skip_id3

_HEAD = 1 << 14
_OGG_TAIL = 1 << 17
"""An Ogg page is at most 65307 bytes, so that the last page lies in the tail."""
_MOST_CHUNKS = 64


def header_seconds(path: Path) -> float | None:
    """Length in seconds; None where the header does not say or is none that is known here."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            seconds = _read(file, size)
    except (OSError, struct.error, ValueError, IndexError, ZeroDivisionError):
        return None
    return seconds if seconds is not None and 0 < seconds < 1e7 else None


def _read(file: BinaryIO, size: int) -> float | None:
    start = skip_id3(file, 0)
    file.seek(start)
    head = file.read(_HEAD)
    if head[:4] in (b"RIFF", b"RF64", b"RIFX") and head[8:12] == b"WAVE":
        return _wav(file, size, ">" if head[:4] == b"RIFX" else "<")
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _aiff(file, size)
    if head[:4] == b"fLaC":
        packed = int.from_bytes(head[18:26], "big")
        return (packed & (1 << 36) - 1) / (packed >> 44)
    if head[:4] == b"OggS":
        return _ogg(file, size, head)
    if head[4:8] == b"ftyp":
        return _mp4(file, size)
    return _mp3(head, size - start)


def _wav(file: BinaryIO, size: int, order: str) -> float | None:
    at, bytes_per_second = 12, 0
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        name, length = struct.unpack(order + "4sI", file.read(8))
        if name == b"fmt ":
            bytes_per_second = struct.unpack(order + "8xI", file.read(12))[0]
        elif name == b"data":
            return float(min(length, size - at - 8) / bytes_per_second)
        at += 8 + length + length % 2
    return None


def _aiff(file: BinaryIO, size: int) -> float | None:
    at = 12
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        name, length = struct.unpack(">4sI", file.read(8))
        if name == b"COMM":
            # The rate is an 80-bit float: a sign and exponent, and 64 bits of mantissa.
            frames, exponent, mantissa = struct.unpack(">2xI2xHQ", file.read(18))
            rate = mantissa * 2.0 ** ((exponent & 0x7FFF) - 16383 - 63)
            return float(frames / rate)
        at += 8 + length + length % 2
    return None


def _ogg(file: BinaryIO, size: int, head: bytes) -> float | None:
    packet = head[27 + head[26] :]
    if packet[:8] == b"OpusHead":
        rate, skip = 48000, struct.unpack("<H", packet[10:12])[0]
    elif packet[:7] == b"\x01vorbis":
        rate, skip = struct.unpack("<I", packet[12:16])[0], 0
    elif packet[:5] == b"\x7fFLAC":
        rate, skip = int.from_bytes(packet[27:30], "big") >> 4, 0
    else:
        return None
    file.seek(max(0, size - _OGG_TAIL))
    tail = file.read()
    last = tail.rfind(b"OggS")
    granule = struct.unpack("<q", tail[last + 6 : last + 14])[0]
    return float((granule - skip) / rate)


def _mp4(file: BinaryIO, size: int) -> float | None:
    at, end = 0, size
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        length, name = struct.unpack(">I4s", file.read(8))
        header = 8
        if length == 1:
            length, header = struct.unpack(">Q", file.read(8))[0], 16
        if name == b"moov":
            at, end = at + header, at + length
            continue
        if name == b"mvhd":
            wide = file.read(1) == b"\x01"
            layout = ">3x16xIQ" if wide else ">3x8xII"
            scale, duration = struct.unpack(layout, file.read(struct.calcsize(layout)))
            return float(duration / scale)
        at += length or end
        if at >= end:
            return None
    return None


def _mp3(head: bytes, size: int) -> float | None:
    at = head.find(b"\xff")
    while 0 <= at < len(head) - 200:
        frame = int.from_bytes(head[at : at + 4], "big")
        version, layer = frame >> 19 & 3, frame >> 17 & 3
        bitrate, rate = frame >> 12 & 15, frame >> 10 & 3
        if frame >> 21 == 0x7FF and version != 1 and layer == 1 and 0 < bitrate < 15 and rate < 3:
            rate_hz = HERTZ[version][rate]
            samples = 1152 if version == 3 else 576
            for name, place in ((b"Xing", 8), (b"Info", 8), (b"VBRI", 14)):
                found = head.find(name, at, at + 200)
                if found >= 0 and (name == b"VBRI" or head[found + 7] & 1):
                    frames = struct.unpack(">I", head[found + place : found + place + 4])[0]
                    return float(frames * samples / rate_hz)
            kilobits = KBPS[1 if version == 3 else 2, 3][bitrate]
            return size * 8 / (1000 * kilobits)
        at = head.find(b"\xff", at + 1)
    return None
