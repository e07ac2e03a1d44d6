"""What a container promised, and the parts of a file that hold the audio.

A decoder believes the header. Where the header is wrong and the audio is not (an MP3 whose length
nobody wrote down, a WAV whose writer was killed, two Ogg streams one after the other), the decoder
is given a `Part`: bytes of the file behind a header that is right.
"""

import io
from dataclasses import dataclass
from typing import BinaryIO, Literal, final


@final
@dataclass(frozen=True)
class Part:
    """``head``, and then the bytes from ``start`` to ``end`` of a file."""

    head: bytes
    start: int
    end: int


@final
@dataclass(frozen=True)
class Broken:
    """Why a file is of no use, known before it is decoded."""

    reason: Literal["empty", "truncated", "corrupt"]
    detail: str


@final
@dataclass(frozen=True)
class Promise:
    """What was found; texts are for the report."""

    broken: Broken | None = None
    wrong_header: str | None = None
    parts: tuple[Part, ...] = ()
    """To be decoded one after the other; nothing where the file is read as it is."""
    demuxer: str | None = None
    """FFmpeg's name of the container, where libsndfile cannot read it."""
    complete: bool = True
    """Whether the end of the file was seen to be there: what fails then is not for want of it."""
    frames_are_known: bool = True
    """Whether the number of frames that a decoder tells is more than a guess."""


def empty(detail: str) -> Promise:
    """There is no audio."""
    return Promise(Broken("empty", detail))


def truncated(detail: str) -> Promise:
    """There is less than was promised."""
    return Promise(Broken("truncated", detail))


def corrupt(detail: str) -> Promise:
    """Bytes are not what was written."""
    return Promise(Broken("corrupt", detail))


@final
class PartFile(io.RawIOBase):
    """A part as a file of its own, for a decoder."""

    def __init__(self, file: BinaryIO, part: Part) -> None:
        self._file = file
        self._part = part
        self._size = len(part.head) + part.end - part.start
        self._at = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Position from the first byte of the head."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fills the buffer as far as the part reaches."""
        view = memoryview(buffer).cast("B")
        head = self._part.head[self._at : self._at + len(view)]
        view[: len(head)] = head
        self._at += len(head)
        wanted = min(len(view) - len(head), self._size - self._at)
        if wanted <= 0:
            return len(head)
        self._file.seek(self._part.start + self._at - len(self._part.head))
        body = self._file.read(wanted)
        view[len(head) : len(head) + len(body)] = body
        self._at += len(body)
        return len(head) + len(body)
