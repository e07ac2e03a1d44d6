"""Checksums of parts of a clip, so that a crop costs the reading of a crop and not of its clip.

    blocks.npy    crc32 of each BLOCK_BYTES of every audio member, in the order of the index

A crop of 5 s needs a sixth of a clip of 30 s. To read and check all of it took a quarter as long
as to decode the crop (265 us and 1,040 us); its blocks take 80 us, and nothing that is heard goes
unchecked.
"""

import io
import zlib
from collections.abc import Callable
from typing import TypeVar, final

import numpy as np
import numpy.typing as npt

from etude.data.errors import DataError

BLOCKS_NAME = "blocks.npy"

BLOCK_BYTES = 1 << 15
"""Small beside a crop (5 s at 24 kHz are 240,000 bytes, or 160,000 as FLAC), and still few."""

Number = TypeVar("Number", int, npt.NDArray[np.int64])


def count_blocks(size: Number) -> Number:
    """Blocks of a member of so many bytes; the last one may be shorter."""
    return -(-size // BLOCK_BYTES)


def block_checksums(content: bytes) -> list[int]:
    """The checksum of each block of these bytes, which begin with one."""
    if len(content) <= BLOCK_BYTES:
        return [zlib.crc32(content)] if content else []
    view = memoryview(content)
    return [zlib.crc32(view[i : i + BLOCK_BYTES]) for i in range(0, len(view), BLOCK_BYTES)]


@final
class BlockFile:
    """A member as a file for a decoder: a block is read, and checked, when it is first needed.

    :param read_blocks: the checked bytes of the blocks from one number up to another; may raise
        DataError.
    """

    def __init__(self, size: int, read_blocks: Callable[[int, int], bytes]) -> None:
        self._size = size
        self._read_blocks = read_blocks
        self._blocks: dict[int, bytes] = {}
        self._place = 0
        self.failure: DataError | None = None
        """Why a read gave nothing: no exception passes through a decoder written in C."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As a file does."""
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def tell(self) -> int:
        """As a file does."""
        return self._place

    def readinto(self, into: bytearray) -> int:
        """As a file does; nothing more once a block was damaged."""
        done, wanted = 0, min(len(into), self._size - self._place)
        try:
            while done < wanted:
                number, first = divmod(self._place, BLOCK_BYTES)
                block = self._blocks.get(number)
                if block is None:
                    block = self._blocks[number] = self._read_blocks(number, number + 1)
                piece = block[first : first + wanted - done]
                into[done : done + len(piece)] = piece
                done += len(piece)
                self._place += len(piece)
        except DataError as error:
            self.failure = error
            return 0
        return done
