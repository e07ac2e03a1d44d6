"""Runs that are not done yet, one after another, each a command of its own.

A request to stop (Ctrl-C, SIGTERM, SIGUSR1) goes to the run that trains, which publishes a
checkpoint; the same sweep again continues there. A run that fails is told, and the others go on.
"""

import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import final

from etude.pretrain.errors import ConfigError, PreemptedError
from etude.pretrain.sweeps.runs import SweepRun

_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Failure:
    """A run that did not come to its end."""

    run: SweepRun
    status: int
    reason: str

    def __str__(self) -> str:
        return f"{self.run.name} failed with status {self.status}: {self.reason}"


@final
class _Stop:
    """Collects the wish to stop, and hands it to the run that trains."""

    def __init__(self) -> None:
        self._signal: str | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def reason(self) -> str | None:
        """Which signal came first."""
        return self._signal

    @contextmanager
    def listening(self, signals: Sequence[signal.Signals]) -> Iterator[None]:
        """Takes the signals for a while."""
        previous = {number: signal.signal(number, self._on_signal) for number in signals}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def run(self, command: Sequence[str]) -> int:
        """Runs a command to its end; signals are its own meanwhile.

        :returns: its exit status, as a shell has it.
        """
        # A group of its own: the terminal would send Ctrl-C to the run too, besides us.
        self._child = subprocess.Popen(command, start_new_session=True)
        if self._signal is not None:  # it came while the run was being started
            self._child.terminate()
        status = self._child.wait()
        self._child = None
        return 128 - status if status < 0 else status

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal = f"received {signal.Signals(number).name}"
            if self._child is not None:
                # Not the signal itself: torchrun would die of SIGUSR1 and save nothing.
                self._child.terminate()


def train_runs(
    runs: Sequence[SweepRun], command: Sequence[str], signals: Sequence[signal.Signals]
) -> list[Failure]:
    """Trains what is left to train.

    :param command: what starts a run, to which its config is added.
    :param signals: what asks the sweep to stop.
    :raises ConfigError: if another process trains one of them.
    :raises PreemptedError: if it was asked to stop, once the running one has ended.
    """
    left = [run for run in runs if run.state != "done"]
    for run in left:
        if run.is_training():
            raise ConfigError(
                f"{run.folder}: another process is training this run. Wait for it, or stop it."
            )
    stop = _Stop()
    failures: list[Failure] = []
    with stop.listening(signals):
        for number, run in enumerate(left, start=1):
            words = [*command, str(run.config_path)]
            print(f"[{number}/{len(left)}] {run.name}: {shlex.join(words)}", flush=True)
            status = _train(run, words, stop)
            # Whoever stopped a run alone wants its place in the queue, not the next run's start.
            if status == 75 or stop.reason() is not None:
                raise PreemptedError(
                    f"interrupted while {run.name} trained ({stop.reason() or 'as it was'}): run "
                    "the same command again to continue."
                )
            if status != 0:
                reason = str(run.exit().get("reason", "it said why when it ended"))
                failures.append(Failure(run, status, reason))
                print(failures[-1], flush=True)
    return failures


def _train(run: SweepRun, words: Sequence[str], stop: _Stop) -> int:
    run.write_config()
    run.forget_exit()
    status = stop.run(words)
    # A launcher may be gone before its ranks have saved, and may change the number.
    while run.is_training():
        time.sleep(_LOOK_SECONDS)
    return int(run.exit().get("code", status))
