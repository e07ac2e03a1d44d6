"""Walks the pages of an Ogg file: checksums, numbers, where one stream ends and the next begins.

libsndfile reads the first of several streams in a row and no more, and where the last pages are
damaged it takes those before them for the end. RFC 3533 has the layout of a page.
"""

import struct
import zlib
from typing import BinaryIO

from etude.data.containers.promise import Part, Promise, corrupt, empty, truncated

_BLOCK = 1 << 20
_LARGEST_PAGE = 27 + 255 + 255 * 255
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_LIBSNDFILE = (b"\x01vorbis", b"OpusHead")
_PYAV = (b"\x7fFLAC", b"Speex   ")
"""libsndfile knows these too, but not as everybody writes them."""


def read_ogg(file: BinaryIO, size: int) -> Promise:
    """Compares what the pages say with what is there."""
    starts: list[int] = []
    numbers: dict[int, int] = {}
    audio: int | None = None
    demuxer: str | None = None
    granule = 0
    ended = True
    beginning = False
    block, base, at = b"", 0, 0
    while at < size:
        if at + _LARGEST_PAGE > base + len(block) and base + len(block) < size:
            file.seek(at)
            block = file.read(_BLOCK)
            base = at
        i = at - base
        if block[i : i + 4] != b"OggS":
            if ended and starts:
                break  # a tag or padding after the end
            if b"OggS".startswith(block[i : i + 4]):
                return truncated("the last Ogg page is cut")
            return corrupt(f"no Ogg page at byte {at}")
        length = _page_length(block, i)
        if length is None or i + length > len(block):
            if _another_page(file, at + 4, size):
                return corrupt(f"the Ogg page at byte {at} is damaged")
            return truncated("the last Ogg page is cut")
        page = block[i : i + length]
        if not _whole(page):
            return corrupt(f"the checksum of the Ogg page at byte {at} is wrong")
        flags, position, serial, number = struct.unpack_from("<xBqII", page, 4)
        if flags & 2:
            if not beginning:
                starts.append(at)
                numbers, audio = {}, None
            body = 27 + page[26]
            if audio is None and page[body:].startswith(_LIBSNDFILE + _PYAV):
                audio, granule, ended = serial, 0, False
                if page[body:].startswith(_PYAV):
                    demuxer = "ogg"
            numbers[serial] = number
        else:
            if serial not in numbers:
                return corrupt(f"the Ogg page at byte {at} belongs to no stream")
            if number != numbers[serial] + 1:
                return corrupt(
                    f"Ogg page {number} follows page {numbers[serial]} at byte {at}: some are lost"
                )
            numbers[serial] = number
        beginning = bool(flags & 2)
        if serial == audio:
            granule = max(granule, position)
            ended = ended or bool(flags & 4)
        at += length
    if not ended:
        if not granule:
            return empty("Ogg headers, and no audio after them")
        return truncated("the last Ogg page is not marked as the end of the stream")
    if len(starts) < 2 or demuxer:
        return Promise(demuxer=demuxer)
    ends = [*starts[1:], at]
    return Promise(
        wrong_header=f"{len(starts)} streams in one, read one after the other",
        parts=tuple(Part(b"", start, end) for start, end in zip(starts, ends, strict=True)),
    )


def _page_length(block: bytes, i: int) -> int | None:
    if i + 27 > len(block) or i + 27 + block[i + 26] > len(block):
        return None
    segments = block[i + 27 : i + 27 + block[i + 26]]
    return 27 + len(segments) + sum(segments)


def _another_page(file: BinaryIO, at: int, size: int) -> bool:
    """Whether a whole page lies near: then this one is not the last one, cut, but damaged."""
    file.seek(at)
    tail = file.read(min(size - at, 2 * _LARGEST_PAGE))
    i = tail.find(b"OggS")
    while i >= 0:
        length = _page_length(tail, i)
        if length is not None and i + length <= len(tail) and _whole(tail[i : i + length]):
            return True
        i = tail.find(b"OggS", i + 1)
    return False


def _whole(page: bytes) -> bool:
    """Whether the checksum is right: zlib's polynomial with all bits the other way round."""
    mirrored = (page[:22] + bytes(4) + page[26:]).translate(_MIRRORED)
    checksum = zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return checksum.to_bytes(4, "big").translate(_MIRRORED) == page[22:26]
