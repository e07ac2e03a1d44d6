"""Walks the frames of an MP3 (or ADTS) file: how many there are, and whether any bytes are none.

MP3 has no checksums and often no length. libsndfile guesses the length from the first frame's bit
rate and stops there, which loses half of a VBR file without a Xing header and all but the first of
several files in one; and it skips over a hole in silence. The headers of the frames tell all that.

Xing, Info and VBRI headers: G. Bouvigne, "Mp3 info tag", http://gabriel.mp3-tech.org/mp3infotag.html
"""

import struct
from dataclasses import dataclass
from typing import BinaryIO, final

from etude.data.containers.promise import Part, Promise, corrupt, empty, truncated
from etude.data.tags import skip_id3, tags_begin

_BLOCK = 1 << 20
_SEARCH = 1 << 16
"""Bytes before the first frame that are looked through."""
_SURE = 8
"""Frames in a row that cannot be chance."""
_RESYNC = 3
_PADDING = 1 << 16
"""Zeros at the end of a file that nobody minds."""
_REST = 1 << 12
"""Other bytes there: not more than a few frames could have been."""
_SLACK_SECONDS = 0.1
"""Editors cut a few frames and leave the count."""

KBPS = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates by (MPEG 1 or later, layer) and their number in the header."""
HERTZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
"""Sample rates by the header's version bits and their number in it."""
_SAME = 0x1E0C
"""Bits of the second and third byte that do not change within a stream: version, layer, rate."""


def _frame_lengths() -> list[int]:
    """Bytes of a frame by the second and third byte of its header; 0 where there is none."""
    lengths = [0] * 0x10000
    for key in range(0xE000, 0x10000):
        version, layer = key >> 11 & 3, 4 - (key >> 9 & 3)
        bit_rate, rate, padding = key >> 4 & 15, key >> 2 & 3, key >> 1 & 1
        if version == 1 or layer == 4 or bit_rate in (0, 15) or rate == 3:
            continue
        generation = 1 if version == 3 else 2
        bits = KBPS[generation, layer][bit_rate] * 1000
        hertz = HERTZ[version][rate]
        if layer == 1:
            lengths[key] = (12 * bits // hertz + padding) * 4
        else:
            slots = 72 if layer == 3 and generation == 2 else 144
            lengths[key] = slots * bits // hertz + padding
    return lengths


_LENGTHS = _frame_lengths()


@final
@dataclass
class _Run:
    """Frames one after the other that were encoded as one file."""

    start: int
    header: bytes
    """Of the first frame, four bytes."""
    promised: int | None
    """What its Xing, Info or VBRI header says."""
    counted: bool
    """Whether it has such a header, which is a frame without sound."""
    end: int = 0
    frames: int = 0
    """With sound."""

    @property
    def kind(self) -> int:
        """The bits that all frames share."""
        return self._key & _SAME

    @property
    def _key(self) -> int:
        return self.header[1] << 8 | self.header[2]

    @property
    def seconds_of_a_frame(self) -> float:
        key = self._key
        version, layer = key >> 11 & 3, 4 - (key >> 9 & 3)
        samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
        return samples / HERTZ[version][key >> 2 & 3]


def read_mp3(file: BinaryIO, size: int) -> Promise | None:
    """Compares an MP3's header with its frames; None where there are no MP3 frames."""
    begin = skip_id3(file, 0)
    if begin > size:
        return truncated(f"the file ends inside its ID3 tag of {begin} bytes")
    end = tags_begin(file, size)
    first = _first_frame(file, begin, end)
    if first is None:
        if begin and _zeros(file, begin, end):
            return empty("nothing but an ID3 tag")
        return None
    runs, cut, rest = _walk(file, first, end)
    counted = runs[-1].promised is not None and runs[-1].promised <= runs[-1].frames
    behind = 0
    if rest is not None:
        after = _resync(file, rest, end, runs[-1].kind)
        if after is not None:
            return corrupt(f"{after - rest} bytes at byte {rest} are no MP3 frames")
        behind = end - rest
        limit = _PADDING if _zeros(file, rest, end) else _REST
        if behind > limit and not counted and not _lyrics(file, rest):
            return corrupt(f"{behind} bytes from byte {rest} to the end are no MP3 frames")
    if not any(run.frames for run in runs):
        return empty("a header, and no audio after it")
    wrong: list[str] = []
    if first != begin and not _zeros(file, begin, first):
        wrong.append(f"{first - begin} bytes before the first MP3 frame")
    if len(runs) > 1:
        wrong.append(f"{len(runs)} files in one, read one after the other")
    if behind and not _zeros(file, end - behind, end):
        wrong.append(f"{behind} bytes after the last MP3 frame")
    repaired = len(runs) > 1 or first != begin
    parts: list[Part] = []
    for number, run in enumerate(runs):
        here_cut = cut and number == len(runs) - 1
        missing = 0 if run.promised is None else run.promised - run.frames
        if missing * run.seconds_of_a_frame > _SLACK_SECONDS:
            return truncated(f"{run.frames} of the {run.promised} MP3 frames that were promised")
        if run.promised is None and here_cut:
            return truncated("the last MP3 frame is cut")
        if missing < -1:
            wrong.append(f"the header promises {run.promised} MP3 frames, there are {run.frames}")
        if run.promised is None or missing < -1:
            repaired = True
            start = run.start + (_length(run.header) if run.counted else 0)
            parts.append(Part(_xing_frame(run.header, run.frames), start, run.end))
        else:
            parts.append(Part(b"", run.start, run.end))
    return Promise(wrong_header="; ".join(wrong) or None, parts=tuple(parts) if repaired else ())


def read_adts(file: BinaryIO, size: int) -> Promise | None:
    """Walks the frames of an AAC stream; None where there are none."""
    at, end = skip_id3(file, 0), tags_begin(file, size)
    frames = 0
    while at < end:
        file.seek(at)
        head = file.read(7)
        if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
            break
        length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        if length < 7 or at + length > end:
            break
        at += length
        frames += 1
    if not frames or (frames < _RESYNC and at < end):
        return None
    if at < end and not _zeros(file, at, end):
        file.seek(at)
        head = file.read(7)
        if head[:1] == b"\xff" and (len(head) < 2 or head[1] & 0xF6 == 0xF0):
            return truncated("the last AAC frame is cut")
        return corrupt(f"bytes from {at} on are no AAC frame")
    return Promise(demuxer="aac", frames_are_known=False)


def _length(header: bytes) -> int:
    if len(header) < 4 or header[0] != 0xFF:
        return 0
    return _LENGTHS[header[1] << 8 | header[2]]


def _chain(file: BinaryIO, at: int, end: int, wanted: int, kind: int | None = None) -> bool:
    """Whether frames of one kind follow each other from ``at``, ``wanted`` of them or to the end.

    One frame at the end is too little to be believed when it was searched for.
    """
    for number in range(wanted):
        if at == end and number > 0:
            return True
        file.seek(at)
        header = file.read(4)
        length = _length(header)
        if not length:
            return False
        key = (header[1] << 8 | header[2]) & _SAME
        if kind is not None and key != kind:
            return False
        kind = key
        at += length
    return at <= end


def _first_frame(file: BinaryIO, begin: int, end: int) -> int | None:
    if _chain(file, begin, end, _RESYNC):
        return begin
    file.seek(begin)
    head = file.read(min(_SEARCH, max(0, end - begin)))
    at = head.find(b"\xff")
    while at >= 0:
        if _length(head[at : at + 4]) and _chain(file, begin + at, end, _SURE):
            return begin + at
        at = head.find(b"\xff", at + 1)
    return None


def _walk(file: BinaryIO, first: int, end: int) -> tuple[list[_Run], bool, int | None]:
    """All runs, whether the last frame is cut, and where the first bytes are that are no frames."""
    runs: list[_Run] = []
    block, base, at = b"", first, first
    kind = -1
    while at + 4 <= end:
        i = at - base
        if i + 64 > len(block) and base + len(block) < end:
            file.seek(at)
            block = file.read(min(_BLOCK, end - at))
            if not block:
                break
            base, i = at, 0
        key = block[i + 1] << 8 | block[i + 2]
        length = _LENGTHS[key] if block[i] == 0xFF and (key & _SAME == kind or kind < 0) else 0
        if not length:
            behind = _behind_tags(file, at, end)
            if behind is not None and _chain(file, behind, end, _RESYNC):
                at, kind = behind, -1
                block, base = b"", at
                _begin_run(file, runs, at)
                continue
            return runs, False, at
        if at + length > end:
            return runs, True, None
        if not runs or kind < 0 or _info_at(block, i, key):
            if not runs or runs[-1].start != at:
                _begin_run(file, runs, at)
            kind = key & _SAME
        run = runs[-1]
        if at != run.start or not run.counted:
            run.frames += 1
        at += length
        run.end = at
    return runs, False, None


def _begin_run(file: BinaryIO, runs: list[_Run], at: int) -> None:
    file.seek(at)
    frame = file.read(256)
    key = frame[1] << 8 | frame[2]
    info = _info_at(frame, 0, key)
    promised = None
    if info and frame[info : info + 4] == b"VBRI":
        promised = int.from_bytes(frame[info + 14 : info + 18], "big")
    elif info and frame[info + 7] & 1:
        promised = int.from_bytes(frame[info + 8 : info + 12], "big")
    runs.append(_Run(at, frame[:4], promised or None, info > 0))


def _info_at(block: bytes, at: int, key: int) -> int:
    """Where a Xing, Info or VBRI header lies in the frame at ``at``; 0 where there is none."""
    mono = block[at + 3] >> 6 == 3
    side = (17 if mono else 32) if key >> 11 & 3 == 3 else (9 if mono else 17)
    place = at + 4 + side
    if block.startswith((b"Xing", b"Info"), place):
        return place
    return at + 36 if block.startswith(b"VBRI", at + 36) else 0


def _behind_tags(file: BinaryIO, at: int, end: int) -> int | None:
    """The first byte after tags in the middle, as where files were joined; None if none is."""
    start = at
    while True:
        before = at
        at = skip_id3(file, at)
        file.seek(at)
        head = file.read(32)
        if head[:3] == b"TAG" and at + 128 <= end:
            at += 128
        elif head[:8] == b"APETAGEX":
            at += 32 + int.from_bytes(head[12:16], "little")
        if at == before:
            return at if at > start else None


def _resync(file: BinaryIO, at: int, end: int, kind: int) -> int | None:
    """Where frames of the same kind go on; None if they do not."""
    base = at + 1
    while base < end:
        file.seek(base)
        block = file.read(_BLOCK)
        if not block:
            break
        i = block.find(b"\xff")
        while i >= 0:
            if _chain(file, base + i, end, _RESYNC, kind):
                return base + i
            i = block.find(b"\xff", i + 1)
        base += len(block)
    return None


def _lyrics(file: BinaryIO, at: int) -> bool:
    file.seek(at)
    return file.read(11) == b"LYRICSBEGIN"


def _zeros(file: BinaryIO, at: int, end: int) -> bool:
    file.seek(at)
    while at < end:
        block = file.read(min(_BLOCK, end - at))
        if not block or block.count(0) != len(block):
            return not block
        at += len(block)
    return True


def _xing_frame(header: bytes, frames: int) -> bytes:
    """A frame without sound that promises ``frames`` more."""
    key = header[1] << 8 | header[2]
    plain = (key | 0x0100) & ~0x0002  # no checksum, no padding
    for bit_rate in range(1, 15):
        plain = plain & ~0x00F0 | bit_rate << 4
        if _LENGTHS[plain] >= 200:
            break
    mono = header[3] >> 6 == 3
    side = (17 if mono else 32) if key >> 11 & 3 == 3 else (9 if mono else 17)
    start = bytes([0xFF, plain >> 8, plain & 0xFF, header[3]]) + bytes(side)
    start += b"Xing" + struct.pack(">II", 1, frames)
    return start + bytes(_LENGTHS[plain] - len(start))
