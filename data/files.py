"""Files that exist whole or not at all: written under a temporary name, synced, then renamed."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


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
