"""What the header of a FLAC file says, and what its last frame says.

A FLAC that was written into a pipe has no length, and libsndfile ends it with an error. One whose
header promises too little ends too early. Both are read as far as the last frame reaches, whose
number and checksums are in RFC 9639, section 9.
"""

from dataclasses import dataclass
from typing import BinaryIO, final

from etude.data.containers.promise import Part, Promise, empty, truncated
from etude.data.tags import skip_id3, tags_begin

_STREAMINFO = 42
"""Bytes of the magic, the first block's header and STREAMINFO."""
_TAIL = 1 << 18
_BLOCK_SIZES = (0, 192, 576, 1152, 2304, 4608, 0, 0, *(256 << shift for shift in range(8)))


@final
@dataclass(frozen=True)
class StreamInfo:
    """Of the first metadata block."""

    bits: int
    frames: int
    """Samples per channel; 0 where it is not known."""
    md5: bytes
    """Of the samples as they were encoded; zeros where it is not known."""


def read_streaminfo(head: bytes) -> StreamInfo | None:
    """From the first 42 bytes of a FLAC file; None where they are something else."""
    if len(head) < _STREAMINFO or head[:4] != b"fLaC" or head[4] & 127 or head[5:8] != b"\0\0\x22":
        return None
    packed = int.from_bytes(head[18:26], "big")
    bits = (packed >> 36 & 31) + 1
    return StreamInfo(bits, packed & (1 << 36) - 1, head[26:42])


def read_flac(file: BinaryIO, size: int) -> Promise:
    """Compares the length in the header with the last frame."""
    begin, end = skip_id3(file, 0), tags_begin(file, size)
    file.seek(begin)
    head = file.read(_STREAMINFO)
    info = read_streaminfo(head)
    if info is None:
        return Promise()
    at, last = begin + 4, False
    while not last:
        file.seek(at)
        block = file.read(4)
        if len(block) < 4:
            return empty("FLAC headers, and no audio after them")
        last = block[0] >= 128
        at += 4 + int.from_bytes(block[1:], "big")
    if at > end:
        return truncated("the file ends inside its FLAC headers")
    if at == end:
        return empty("FLAC headers, and no audio after them")
    file.seek(at)
    first = _parse(file.read(32))
    if first is None:
        return Promise()  # damaged: the decoder will see
    last_sample = _last_sample(file, at, end, first.samples)
    if last_sample is None:
        return Promise() if info.frames else truncated("the last FLAC frame is cut")
    found = last_sample - first.begins(first.samples)  # a recorded broadcast begins anywhere
    if found < info.frames:
        return truncated(f"{found} of the {info.frames} frames that the header promises")
    if found == info.frames:
        return Promise()
    packed = int.from_bytes(head[18:26], "big") >> 36 << 36 | found
    part = Part(head[:18] + packed.to_bytes(8, "big") + head[26:], begin + _STREAMINFO, end)
    wrong = (
        f"the header promises {info.frames} frames, there are {found}"
        if info.frames
        else "the header leaves the length open"
    )
    return Promise(wrong_header=wrong, parts=(part,))


def _last_sample(file: BinaryIO, begin: int, end: int, block_size: int) -> int | None:
    """Where the last frame ends, in samples; None where the file does not end with a frame."""
    start = max(begin, end - _TAIL)
    file.seek(start)
    tail = file.read(end - start)
    at = tail.rfind(b"\xff")
    while at >= 0:
        frame = _parse(tail[at : at + 32])
        if frame is not None and _crc16(tail[at:]) == 0:
            return frame.begins(block_size) + frame.samples
        at = tail.rfind(b"\xff", 0, at)
    return None


@final
@dataclass(frozen=True)
class _Frame:
    """What the header of a frame says."""

    number: int
    """Of the frame, or of its first sample where frames are of several sizes."""
    counts_samples: bool
    samples: int

    def begins(self, block_size: int) -> int:
        """Its first sample, where all frames but the last have ``block_size``."""
        return self.number if self.counts_samples else self.number * block_size


def _parse(head: bytes) -> _Frame | None:
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xFE != 0xF8 or head[3] & 1:
        return None
    size_code, rate_code = head[2] >> 4, head[2] & 15
    if size_code == 0 or rate_code == 15 or head[3] >> 4 > 10:
        return None
    more = max(0, 8 - (head[4] ^ 0xFF).bit_length() - 1)  # bytes of the number behind its first
    if more > 6 or head[4] & 0xC0 == 0x80:
        return None
    number = head[4] & (0x7F if head[4] < 0x80 else 0x3F >> more)
    for byte in head[5 : 5 + more]:
        number = number << 6 | byte & 0x3F
    at = 5 + more
    samples = _BLOCK_SIZES[size_code]
    if size_code in (6, 7):
        samples = int.from_bytes(head[at : at + size_code - 5], "big") + 1
        at += size_code - 5
    at += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if at >= len(head) or _crc8(head[: at + 1]) != 0:
        return None
    return _Frame(number, bool(head[1] & 1), samples)


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value = _CRC8[value ^ byte]
    return value


def _crc16(data: bytes) -> int:
    value = 0
    for byte in data:
        value = (value << 8 & 0xFF00) ^ _CRC16[value >> 8 ^ byte]
    return value


def _table(polynomial: int, bits: int) -> list[int]:
    top, mask = 1 << bits - 1, (1 << bits) - 1
    table = []
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value & top else 0)) & mask
        table.append(value)
    return table


_CRC8 = _table(0x07, 8)
_CRC16 = _table(0x8005, 16)
