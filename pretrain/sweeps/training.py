"""Runs that are not done yet, one after another, each a command of its own.

A request to stop (Ctrl-C, SIGTERM, SIGUSR1) goes to the run that trains, which publishes a
checkpoint; the same sweep again continues there. A run that fails is told, and the others go on.
"""

import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import final

from etude.pretrain.errors import ConfigError, PreemptedError
from etude.pretrain.sweeps.runs import SweepRun

_LOOK_SECONDS = 0.2
_AGAIN = "run the same command again to continue."


@dataclass(frozen=True)
class Failure:
    """A run that did not come to its end."""

    run: SweepRun
    status: int
    reason: str


@final
class Trainings:
    """Starts the runs; while it is open, signals are the running one's.

    :param command: what starts a run, to which its config is added.
    """

    def __init__(self, command: Sequence[str], signals: Sequence[signal.Signals]) -> None:
        self._command = tuple(command)
        self._signals = signals
        self._child: subprocess.Popen[bytes] | None = None
        self._asked: str | None = None

    def train(self, runs: Sequence[SweepRun]) -> list[Failure]:
        """Trains what is left to train.

        :raises PreemptedError: once the running one has ended, if it was asked to.
        """
        left = [run for run in runs if run.state != "done"]
        for run in left:
            if run.is_training():
                raise ConfigError(
                    f"{run.folder}: another process is training this run. Wait for it, or stop it."
                )
        previous = {number: signal.signal(number, self._pass_on) for number in self._signals}
        try:
            failures = []
            for number, run in enumerate(left, start=1):
                print(
                    f"[{number}/{len(left)}] {run.name}: {self.line(run.config_path)}", flush=True
                )
                if failure := self._train(run):
                    failures.append(failure)
                    print(describe(failure), flush=True)
            if self._asked is not None:  # just after the last one
                raise PreemptedError(f"interrupted ({self._asked}): {_AGAIN}")
            return failures
        finally:
            for number_, handler in previous.items():
                signal.signal(number_, handler)

    def line(self, config: Path) -> str:
        """The command for one run, as one would type it."""
        return shlex.join([*self._command, str(config)])

    def _train(self, run: SweepRun) -> Failure | None:
        if self._asked is None:
            run.write_config()
            run.forget_exit()
            # A group of its own: the terminal would send Ctrl-C to the run too, besides ours.
            self._child = subprocess.Popen(
                [*self._command, str(run.config_path)], start_new_session=True
            )
            if self._asked is not None:  # while it was being started
                self._child.terminate()
            status = self._child.wait()
            self._child = None
            # A launcher may be gone before its ranks have saved.
            while run.is_training():
                time.sleep(_LOOK_SECONDS)
            # A launcher may change the number too.
            status = int(run.exit().get("code", 128 - status if status < 0 else status))
            if status not in (0, 75) and self._asked is None:
                return Failure(run, status, str(run.exit().get("reason", "it said why above")))
            if status == 0 and self._asked is None:
                return None
        raise PreemptedError(
            f"interrupted while {run.name} trained ({self._asked or 'it was asked to stop'}): "
            + _AGAIN
        )

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self._asked is None:
            self._asked = f"received {signal.Signals(number).name}"
            if self._child is not None:
                self._child.terminate()


def describe(failure: Failure) -> str:
    """A failure in a sentence."""
    return f"failed: {failure.run.name}, status {failure.status}: {failure.reason}"
