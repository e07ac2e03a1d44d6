"""Tries again what a flaky disk or store failed to do."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""What waiting does not mend."""


def with_retries(
    action: Callable[[], Result],
    *,
    tries: int,
    first_wait: float,
    flaky: tuple[type[Exception], ...] = (OSError,),
) -> Result:
    """``action()``, up to ``tries`` times; waits double from ``first_wait`` seconds on.

    Waits are drawn around that, so that ranks which failed together do not come back together.

    :raises Exception: the last one of ``flaky``; the first that is none of them, or that is final.
    """
    for attempt in range(1, tries):
        try:
            return action()
        except flaky as error:
            if isinstance(error, _FINAL):
                raise
            time.sleep(first_wait * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
    return action()
