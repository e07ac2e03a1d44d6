"""Locks that a start leaves when it is killed while it compiles, on which every later one hangs."""

import os
import time
from pathlib import Path

_OLD_SECONDS = 600.0
"""Extensions compile in a minute or two: whoever made an older lock is gone."""


def extensions_folder() -> Path:
    """Where torch compiles extensions."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    return Path(given) if given else Path.home() / ".cache" / "torch_extensions"


def stale_locks() -> list[Path]:
    """Old locks in the folder where torch compiles extensions, DeepSpeed's operations among them.

    ``torch.utils.cpp_extension`` waits for them without a word and without end.
    """
    root = extensions_folder()
    old = time.time() - _OLD_SECONDS
    found = []
    for path in sorted([*root.glob("*/lock"), *root.glob("*/*/lock")]):
        try:
            if path.stat().st_mtime < old:
                found.append(path)
        except OSError:  # gone, or not ours to see
            continue
    return found


def describe_locks(locks: list[Path]) -> str:
    """A sentence on what to do about them."""
    names = ", ".join(map(str, locks))
    return (
        f"{names}: a start that was killed while it compiled has left this, and a start that wants "
        "to compile the same waits for it without end. Delete it, unless another job is compiling"
    )
