"""Files that exist whole or not at all: written under a temporary name, synced, then renamed.

And read by offset: one ``pread`` on a descriptor that is opened once per process.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, final
from zipfile import BadZipFile

_OPEN_FILES = 128

NO_ARRAY = (
    *(ValueError, EOFError, OSError, SyntaxError, TokenError),
    *(TypeError, OverflowError, MemoryError, RecursionError, BadZipFile),
)
"""What numpy raises for a file that is no array, or a damaged one: its header goes through Python's
own parser, and may promise more than there is memory."""


@contextmanager
def published(path: Path) -> Iterator[BinaryIO]:
    """Opens ``path`` for writing; it takes its name when the block ends well."""
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Publishes ``content`` as ``path``."""
    with published(path) as file:
        file.write(content)


def json_bytes(value: Any, *, indent: int | None = 1) -> bytes:
    """ASCII JSON with a newline at its end; the same value always gives the same bytes."""
    return (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode("ascii")


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_at(path: Path | str, offset: int, size: int, *, version: str) -> bytes:
    """Bytes of a file, fewer where it ends before.

    :param version: what tells this file from another that was at the same path.
    :raises OSError: as the system says.
    """
    # Held by name while it is read: one that the cache has evicted, or that lost a race between
    # threads to be in it, would be closed as soon as its number is known.
    descriptor = _descriptor(path, version)
    return os.pread(descriptor.number, size, offset)


@final
class _Descriptor:
    """A file descriptor, closed when its last reader lets go."""

    def __init__(self, path: Path | str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        number = getattr(self, "number", None)
        if number is not None:
            os.close(number)


@lru_cache(maxsize=_OPEN_FILES)
def _descriptor(path: Path | str, version: str) -> _Descriptor:
    """Opened on first use in a process; pread has no position, so forks may share it."""
    del version  # part of the cache key
    return _Descriptor(path)
