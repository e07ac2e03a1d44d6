"""A command that runs beside training, under ``guard.py``."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

_GUARD = Path(__file__).with_name("guard.py")


@final
class Beside:
    """A command of low priority that ends with this process at the latest.

    :param cores: cores that it may use, and threads of its libraries.
    :param said: file for all that it prints.
    """

    def __init__(
        self, command: Sequence[str], *, cores: int, environment: Mapping[str, str], said: Path
    ) -> None:
        self.said = said
        self._began = time.monotonic()
        threads = dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(cores)
        )
        with said.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_GUARD), str(os.getpid()), str(cores), *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **threads, **environment},
                # A group of its own, to be ended as one; and a terminal's Ctrl-C is the trainer's.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the guard, which is the number of the group too."""
        return self._process.pid

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def status(self) -> int | None:
        """Its exit status; ``None`` while it runs."""
        if self._process.returncode is None:
            # Not `poll`, which would give the number away that the group is still to be ended by.
            how = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, self._process.pid, how) is None:
                return None
            self.end()
        return self._process.returncode

    def end(self) -> None:
        """Kills it, with all that it has started."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def last_words(self, lines: int = 5) -> str:
        """The end of what it printed; empty where somebody removed it."""
        if not self.said.is_file():
            return ""
        return "\n".join(self.said.read_text(errors="replace").strip().splitlines()[-lines:])
