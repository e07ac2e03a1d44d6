"""Where the audio of a file begins and ends between the tags that were put around it."""

from typing import BinaryIO


def skip_id3(file: BinaryIO, at: int) -> int:
    """The first byte behind the ID3v2 tags at ``at``; it may lie behind the end of the file."""
    while True:
        file.seek(at)
        head = file.read(10)
        if len(head) < 10 or head[:3] != b"ID3" or max(head[6:]) > 127:
            return at
        shifts = zip(head[6:], (21, 14, 7, 0), strict=True)
        at += 10 + sum(byte << shift for byte, shift in shifts) + (10 if head[5] & 16 else 0)


def tags_begin(file: BinaryIO, size: int) -> int:
    """The end of the audio: before any ID3v1, Lyrics3 and APE tags at the end of the file."""
    end = size
    while end > 0:
        at = max(0, end - 355)
        file.seek(at)
        tail = file.read(end - at)
        footer = tail[-32:]
        if tail[-128:-125] == b"TAG" or tail == b"TAG":
            end -= 128
            if tail[-355:-351] == b"TAG+":
                end -= 227
        elif footer[:8] == b"APETAGEX":
            header = 32 if int.from_bytes(footer[20:24], "little") >> 31 else 0
            end -= int.from_bytes(footer[12:16], "little") + header
        elif tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
            end -= int(tail[-15:-9]) + 15
        else:
            return end
    return 0
