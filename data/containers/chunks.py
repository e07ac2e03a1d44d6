"""Chunked containers (WAV, AIFF, RF64, W64, CAF, AU, MP4): are the audio's bytes all there?

libsndfile reads a cut WAV to its end and reports no error, so that a cut recording would pass as a
shorter one. And it believes sizes that are wrong, because a recorder was killed before it could
write them: those files are read behind a header made anew.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, final

from etude.data.containers.promise import Part, Promise, corrupt, empty, truncated
from etude.data.tags import tags_begin

_PIPED = (range(0x7FFF_0000, 0x8001_0000), range(0xFFFF_0000, 0x1_0000_0000))
"""Sizes that programs write into a pipe, where they cannot go back to fill in."""

_COMMON = (b"data", b"fmt ", b"fact", b"list", b"bext", b"id3 ", b"junk", b"peak", b"cue ")

_NO_AUDIO = "headers, and no audio after them"
_W64_ID = bytes.fromhex("f3acd3118cd100c04f8edb8a")
"""What follows four letters in most of W64's chunk names."""


def read_wav(file: BinaryIO, size: int) -> Promise:
    """RIFF, RIFX and RF64."""
    file.seek(0)
    head = file.read(12)
    order: Literal["<", ">"] = ">" if head[:4] == b"RIFX" else "<"
    total = struct.unpack(order + "I", head[4:8])[0] + 8
    large: int | None = None
    fmt = b""
    at = 12
    while at + 8 <= size:
        file.seek(at)
        name, length = struct.unpack(order + "4sI", file.read(8))
        held = size - at - 8
        if name == b"ds64":
            riff, large = struct.unpack("<QQ", file.read(16))
            total = riff + 8
        elif name == b"fmt " and length <= min(held, 1 << 12):
            fmt = file.read(length)
        elif name == b"data":
            if large is not None and length == 0xFFFF_FFFF:
                length = large
            chunk = _Audio(at + 8, length, held, total, size)
            return _wav_audio(file, chunk, head, order, fmt, sized=large is not None)
        at += 8 + length
        if length % 2 and _known(file, at) and not _known(file, at + 1):
            return _unpadded(file, size, head, order)
        at += length % 2
    if total > size:
        return truncated("the file ends before its audio begins")
    return empty("no chunk with audio")


@final
@dataclass(frozen=True)
class _Audio:
    at: int
    length: int
    held: int
    total: int
    size: int


def _wav_audio(
    file: BinaryIO, chunk: _Audio, head: bytes, order: str, fmt: bytes, *, sized: bool
) -> Promise:
    at, length, held, size = chunk.at, chunk.length, chunk.held, chunk.size
    if held == 0:
        return empty(_NO_AUDIO)
    if length > held and not sized and _piped(length):
        return Promise(wrong_header="the header leaves the length open")
    if length > held:
        return truncated(f"the header promises {length} bytes of audio, {held} are there")
    end = at + length
    if end + 1 < size and not _name_at(file, end + length % 2, size):
        # Nothing that a chunk could be follows. It is audio if the file is as long as it says, or
        # if the size had no room: it is kept modulo 2^32.
        of_audio = (length == 0) or abs(chunk.total - size) <= 8
        wrapped = size >= 1 << 32 and (held - length) % (1 << 32) == 0
        if (of_audio or wrapped) and not sized and fmt:
            wrong = f"the header promises {length} bytes of audio, there are {held}"
            return Promise(wrong_header=wrong, parts=_wav_parts(head, order, fmt, at, at + held))
    if abs(chunk.total - size) > 8:
        wrong = f"the header promises a file of {chunk.total} bytes, it has {size}"
        return Promise(wrong_header=wrong)
    return Promise()


def _wav_parts(head: bytes, order: str, fmt: bytes, start: int, end: int) -> tuple[Part, ...]:
    """The audio from ``start`` to ``end`` behind a header of its own."""
    frame = struct.unpack(order + "H", fmt[12:14])[0] if len(fmt) >= 14 else 1
    end -= (end - start) % max(1, frame)
    length = min(end - start, 0xFFFF_FFFF)  # which libsndfile takes for "to the end"
    chunk = struct.pack(order + "4sI", b"fmt ", len(fmt)) + fmt + bytes(len(fmt) % 2)
    body = b"WAVE" + chunk + struct.pack(order + "4sI", b"data", length)
    total = min(len(body) + length, 0xFFFF_FFFF)
    return (Part(head[:4] + struct.pack(order + "I", total) + body, start, end),)


def _unpadded(file: BinaryIO, size: int, head: bytes, order: str) -> Promise:
    """A file whose writer left out the byte after chunks of odd length."""
    fmt = b""
    at = 12
    while at + 8 <= size:
        file.seek(at)
        name, length = struct.unpack(order + "4sI", file.read(8))
        held = size - at - 8
        if name == b"fmt " and length <= min(held, 1 << 12):
            fmt = file.read(length)
        elif name == b"data":
            if length > held:
                return truncated(f"the header promises {length} bytes of audio, {held} are there")
            parts = _wav_parts(head, order, fmt, at + 8, at + 8 + length)
            return Promise(wrong_header="chunks of odd length without padding", parts=parts)
        at += 8 + length
    return truncated("the file ends before its audio begins")


def _name_at(file: BinaryIO, at: int, size: int) -> bool:
    """Whether a chunk begins there, or nothing follows."""
    if at + 8 > size:
        return at >= size - 1
    file.seek(at)
    name = file.read(4)
    return all(32 <= byte < 127 for byte in name)


def _known(file: BinaryIO, at: int) -> bool:
    """Whether one of the common chunks begins there."""
    file.seek(at)
    return file.read(4).lower() in _COMMON


def read_aiff(file: BinaryIO, size: int) -> Promise:
    """AIFF and AIFF-C."""
    file.seek(4)
    total = struct.unpack(">I", file.read(4))[0] + 8
    for name, at, length in _chunks(file, 12, size):
        if name == b"SSND":
            held = size - at
            if held <= 8:
                return empty(_NO_AUDIO)
            if length > held and _piped(length):
                return Promise(wrong_header="the header leaves the length open")
            if length > held:
                return truncated(f"the header promises {length} bytes of audio, {held} are there")
            if abs(total - size) > 8:
                wrong = f"the header promises a file of {total} bytes, it has {size}"
                return Promise(wrong_header=wrong)
            return Promise()
    if total > size:
        return truncated("the file ends before its audio begins")
    return empty("no chunk with audio")


def _chunks(file: BinaryIO, at: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, place and length of big-endian chunks."""
    while at + 8 <= size:
        file.seek(at)
        name, length = struct.unpack(">4sI", file.read(8))
        yield name, at + 8, length
        at += 8 + length + length % 2


def _piped(length: int) -> bool:
    return any(length in lengths for lengths in _PIPED)


def read_au(file: BinaryIO, size: int) -> Promise:
    """Sun's AU."""
    file.seek(4)
    head = file.read(8)
    if len(head) < 8:
        return truncated("the file ends inside its header")
    at, length = struct.unpack(">II", head)
    return _plain(length, size - at, open_ended=length == 0xFFFF_FFFF)


def read_caf(file: BinaryIO, size: int) -> Promise:
    """Apple's Core Audio Format."""
    at = 8
    while at + 12 <= size:
        file.seek(at)
        name, length = struct.unpack(">4sq", file.read(12))
        if name == b"data":
            return _plain(length, size - at - 12, open_ended=length < 0)
        if length < 0:
            break
        at += 12 + length
    return truncated("the file ends before its audio begins")


def read_w64(file: BinaryIO, size: int) -> Promise:
    """Sonic Foundry's 64-bit WAV."""
    at = 40
    while at + 24 <= size:
        file.seek(at)
        name, length = struct.unpack("<16sQ", file.read(24))
        if length < 24:
            break
        if name == b"data" + _W64_ID:
            return _plain(length - 24, size - at - 24, open_ended=False)
        at += (length + 7) // 8 * 8
    return truncated("the file ends before its audio begins")


def _plain(length: int, held: int, *, open_ended: bool) -> Promise:
    if held <= 0:
        return empty(_NO_AUDIO)
    if open_ended:
        return Promise(wrong_header="the header leaves the length open")
    if length > held:
        return truncated(f"the header promises {length} bytes of audio, {held} are there")
    return Promise()


def read_mp4(file: BinaryIO, size: int) -> Promise:
    """The boxes of an MP4 or M4A file."""
    at = 0
    names: set[bytes] = set()
    size = tags_begin(file, size)
    while at + 8 <= size:
        file.seek(at)
        length, name = struct.unpack(">I4s", file.read(8))
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        elif length == 0:
            length = size - at
        if length < 8 or not all(32 <= byte < 127 for byte in name[1:]):
            if {b"moov", b"mdat"} <= names:
                wrong = f"{size - at} bytes behind the last MP4 box"
                return Promise(wrong_header=wrong, demuxer="mov")
            return corrupt(f"no MP4 box at byte {at}")
        names.add(name)
        at += length
        if at > size:
            told = name.decode("ascii", "replace")
            return truncated(f"box {told} reaches {at - size} bytes beyond the end of the file")
    if b"moov" not in names:
        return truncated("there is no moov box: the file was not finished")
    return Promise(demuxer="mov")


def read_wavpack(file: BinaryIO, size: int) -> Promise:
    """The blocks of a WavPack file."""
    at = 0
    promised, held = -1, 0
    while at + 32 <= size:
        file.seek(at)
        head = file.read(32)
        if head[:4] != b"wvpk":
            break  # a tag
        length, total, index, samples = struct.unpack("<4x I 4x I I I 8x", head)
        if at + 8 + length > size:
            return truncated("the last WavPack block is cut")
        if at == 0 and total != 0xFFFF_FFFF:
            promised = total
        held = max(held, index + samples)
        at += 8 + length
    if held < promised:
        return truncated(f"{held} of the {promised} frames that the header promises")
    return Promise(demuxer="wv")


def read_asf(file: BinaryIO, size: int) -> Promise:
    """The header of a WMA file, which says how long the file is."""
    file.seek(0)
    head = file.read(1 << 16)
    at = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    if at >= 0 and at + 104 <= len(head):
        promised = int.from_bytes(head[at + 40 : at + 48], "little")
        live = int.from_bytes(head[at + 88 : at + 92], "little") & 1
        if not live and promised > size:
            return truncated(f"the header promises a file of {promised} bytes, it has {size}")
    return Promise(demuxer="asf")
