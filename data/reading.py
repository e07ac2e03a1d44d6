"""A user's file read as far as it can be believed, or the reason why not.

    open by content -> what its container promises -> blocks, finite -> as long as was promised?

What is made of the samples, clips of a corpus (``prepare_track.py``) or what a model hears
(``mono_stream.py``), is for others to say.
"""

from collections.abc import Iterator
from typing import BinaryIO, Literal, final

import numpy as np

from etude.data.audio import AudioFile, Samples, Undecodable, open_audio
from etude.data.containers.headers import read_promise, recognised
from etude.data.containers.promise import Promise
from etude.data.interrupts import raise_lost_interrupt
from etude.data.sources import Source

Reason = Literal[
    "empty",
    "not_audio",
    "corrupt",
    "truncated",
    "too_short",
    "silent",
    "dc",
    "nonfinite",
    "duplicate",
    "unreadable",
]


@final
class Unusable(Exception):
    """A file that cannot be used, and why."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


def open_source(source: Source) -> BinaryIO:
    """The file of a source.

    :raises Unusable: if it is empty or cannot be opened.
    """
    if source.size == 0:
        raise Unusable("empty", "0 bytes")
    try:
        return source.path.open("rb")
    except OSError as error:
        raise Unusable("unreadable", error.strerror or str(error)) from error


def open_checked(
    file: BinaryIO, source: Source, *, flac_md5: bool = True
) -> tuple[AudioFile, Promise]:
    """The audio in an opened file, and what its container promises.

    :param flac_md5: whether a FLAC file's samples are compared with the MD5 that it states.
    :raises Unusable: with the reason.
    """
    try:
        head = file.read(12)
        file.seek(0)
        promise = read_promise(file, source.size)
        if promise.broken:
            raise Unusable(promise.broken.reason, promise.broken.detail)
        audio = open_audio(file, source.path, promise, flac_md5=flac_md5)
    except OSError as error:
        raise Unusable("unreadable", error.strerror or str(error)) from error
    except ModuleNotFoundError as error:
        raise Unusable("unreadable", str(error)) from error
    except Undecodable as error:
        if error.foreign or not (recognised(head) or error.damaged):
            raise Unusable("not_audio", str(error)) from error
        raise Unusable("corrupt", str(error)) from error
    finally:
        raise_lost_interrupt()  # it would pass for a fault of the file
    if audio.declared_frames == 0:
        raise Unusable("empty", "the header says that there is no audio")
    return audio, promise


def checked_blocks(audio: AudioFile, file: BinaryIO, source: Source) -> Iterator[Samples]:
    """All frames (T, C), in blocks, compared in the end with those that were promised.

    :raises Unusable: with the reason; some are known only at the end of the file.
    """
    blocks, frames = iter(audio.blocks), 0
    while (block := _next_block(blocks, file, source)) is not None:
        if not np.isfinite(block).all():
            raise Unusable("nonfinite", f"NaN or infinity after frame {frames}")
        frames += len(block)
        yield block
    if frames == 0:
        raise Unusable("empty", "no audio inside")
    declared = audio.declared_frames
    if declared is not None and frames < declared - audio.slack_frames:
        text = f"{frames} of the {declared} frames that the header promises"
        raise Unusable("corrupt", text)


def _next_block(blocks: Iterator[Samples], file: BinaryIO, source: Source) -> Samples | None:
    try:
        return next(blocks, None)
    except OSError as error:
        raise Unusable("unreadable", error.strerror or str(error)) from error
    except Undecodable as error:
        # A decoder that starves at the end of the file was given a cut file.
        if file.tell() >= source.size and not error.damaged:
            raise Unusable("truncated", f"{error} at the end of the file") from error
        near = f" near byte {file.tell()}" if file.tell() else ""
        raise Unusable("corrupt", f"{error}{near}") from error
    finally:
        raise_lost_interrupt()  # of a file whose length nobody knows, the end would just be missing
