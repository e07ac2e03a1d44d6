"""A run under a launcher, seen from outside: its processes, its ranks, how far it is."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from campaigns.tiny_runs import TRAIN  # noqa: E402
from run_parts import BIN, ENVIRONMENT, deepspeed, deepspeed_launch  # noqa: E402

LAUNCHERS = {
    "python": 1,
    "torchrun 1": 1,
    "torchrun 2": 2,
    "launch 1": 1,
    "launch 2": 2,
    "deepspeed 2": 2,
}
"""Ranks under each; "launch" is ``python -m deepspeed.launcher.launch``."""

_MARK = "ETUDE_CAMPAIGN_RUN"
"""A variable that every process of a run inherits, whatever session it moves to."""
_PATIENCE_SECONDS = 240.0


class Launched:
    """A command that was given for a run, and all the processes that come of it."""

    def __init__(self, launcher: str, recipe: Path, run: Path) -> None:
        self.run = run
        self.size = LAUNCHERS[launcher]
        self._stderr = run.with_suffix(".stderr")
        with self._stderr.open("wb") as stderr:
            self.command = subprocess.Popen(
                [*_command(launcher), str(TRAIN), str(recipe), f"run.dir={run}"],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**ENVIRONMENT, _MARK: str(run)},
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """What it has written to stderr."""
        return self._stderr.read_text(errors="replace")

    @property
    def updates(self) -> int:
        """Updates that are in the metrics: those that are over, with their validation."""
        try:
            return (self.run / "metrics.jsonl").read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    @property
    def is_saving(self) -> bool:
        """Whether there is a draft of a checkpoint."""
        try:
            return any(name.endswith(".tmp") for name in os.listdir(self.run / "checkpoints"))
        except FileNotFoundError:
            return False

    def processes(self) -> list[int]:
        """Of the run, the command included, whatever became of their parents."""
        mark = f"{_MARK}={self.run}".encode()
        everybody = (int(name) for name in os.listdir("/proc") if name.isdigit())
        return [pid for pid in everybody if mark in _read(pid, "environ").split(b"\0")]

    def ranks(self) -> dict[int, int]:
        """The process of each rank: those that run the script, but for their loader workers."""
        running = {pid for pid in self.processes() if _script(pid) == str(TRAIN)}
        return {_rank(pid): pid for pid in running if _parent(pid) not in running}

    def runs(self, script: str) -> bool:
        """Whether one of its processes runs this script or module."""
        return any(_script(pid) == script for pid in self.processes())

    def is_complete(self) -> bool:
        """Whether all ranks are there."""
        return len(self.ranks()) == self.size

    def listens(self) -> bool:
        """Whether all ranks are there and answer signals in a way of their own."""
        ranks = self.ranks()
        return len(ranks) == self.size and all(map(_catches_sigterm, ranks.values()))

    def wait(self, condition: Callable[[], bool]) -> bool:
        """Waits until it holds; ``False`` if the command ended before."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            if self.command.poll() is not None:
                return False
            if time.monotonic() > deadline:
                self.kill()
                raise SystemExit(f"{self.run.name} comes to nothing: {self.said[-2000:]}")
            time.sleep(0.001)
        return True

    def end(self, within: float) -> tuple[float, float]:
        """Seconds until the command ended and until all its processes did; kills the rest."""
        began, command_ended = time.monotonic(), within
        while (passed := time.monotonic() - began) < within:
            if self.command.poll() is not None:
                command_ended = min(command_ended, passed)
                if not self.processes():
                    return command_ended, passed
            time.sleep(0.02)
        self.kill()
        return command_ended, within

    def kill(self) -> None:
        """Ends whatever is left of it."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.command.wait()


def has_child(pid: int) -> bool:
    """Whether a process has started another, such as a loader worker."""
    return bool(_read(pid, f"task/{pid}/children"))


def _command(launcher: str) -> Sequence[str]:
    name, _, ranks = launcher.partition(" ")
    match name:
        case "python":
            return (sys.executable,)
        case "torchrun":
            return (str(BIN / "torchrun"), "--standalone", "--nproc_per_node", ranks)
        case "launch":
            return deepspeed_launch(int(ranks))
        case _:
            return deepspeed(int(ranks))


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""  # it has ended, or is another user's


def _script(pid: int) -> str:
    words = _read(pid, "cmdline").decode(errors="replace").split("\0")[1:]
    return next((word for word in words if not word.startswith("-")), "")


def _rank(pid: int) -> int:
    variables = _read(pid, "environ").split(b"\0")
    return next((int(word[5:]) for word in variables if word.startswith(b"RANK=")), 0)


def _parent(pid: int) -> int:
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0


def _catches_sigterm(pid: int) -> bool:
    caught = [line for line in _read(pid, "status").split(b"\n") if line.startswith(b"SigCgt:")]
    return bool(caught) and bool(int(caught[0].split()[1], 16) >> (signal.SIGTERM - 1) & 1)
