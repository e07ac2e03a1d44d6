"""Progress for people: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from typing import final

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


@final
class Progress:
    """Counts ``total`` things on stderr."""

    def __init__(self, what: str, total: int, *, unit: str) -> None:
        self._what = what
        self._total = total
        self._unit = unit
        self._done = 0
        self._said = time.monotonic()
        self._bar = (
            tqdm(total=total, desc=what, unit=unit, file=sys.stderr)
            if sys.stderr.isatty() and total > 0
            else None
        )

    def advance_to(self, done: int) -> None:
        """``done`` things are done by now."""
        if self._bar is not None:
            self._bar.update(done - self._done)
            if done >= self._total:
                self._bar.close()
        elif done > self._done:
            now = time.monotonic()
            if now - self._said >= _SECONDS_BETWEEN_LINES or done == self._total:
                line = f"{self._what}: {done} of {self._total} {self._unit}s"
                print(line, file=sys.stderr, flush=True)
                self._said = now
        self._done = done

    def advance(self, more: int = 1) -> None:
        """So many more."""
        self.advance_to(self._done + more)
