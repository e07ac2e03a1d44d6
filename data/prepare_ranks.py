"""Several processes at one corpus, on one machine or many, that meet only in its folder.

    .ranks/lock-N     held by rank N as long as it lives; rank 0 holds the folder itself
    .ranks/here-N     the process that is rank N: a token drawn at its start, and what it will make
    .ranks/launch     of rank 0: the tokens of the ranks it begins with, and whether there is work
    .ranks/done-N     rank N needs nothing of the folder any more
    .ranks/failed-N   why rank N ended, for those that would wait for it

Rank 0 deletes all but the locks when it starts, so that whatever it then finds was written by a
living process; and nothing is begun, cleared or packed before all ranks are there. A token tells
this launch's files from those of one that was killed.
"""

import fcntl
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

from etude.data.errors import DataError, InputError
from etude.data.files import json_bytes, write_bytes
from etude.data.prepare_start import WORK_NAME

Item = TypeVar("Item")

RANKS_NAME = ".ranks"

_SAY_SECONDS = 30.0
"""Between two lines on what a rank waits for."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_RELUCTANCE = 10.0
"""How long a rank of an earlier launch may take to end, in seconds."""
_LISTENING = 0.1
"""At most this share of a waiting rank's time goes into looking: folders may be large."""


@final
class LaunchBroken(Exception):
    """Another rank is gone or has failed; the same launch again continues."""

    exit_status = 75


@final
@dataclass(frozen=True)
class Place:
    """Which process of how many this is."""

    rank: int = 0
    count: int = 1

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's part of what all ranks have in the same order."""
        return items[self.rank :: self.count]


def place_from_environment(environment: Mapping[str, str]) -> Place:
    """From the variables of torchrun, deepspeed or srun; without any, one process of one."""
    variables = ("RANK", "WORLD_SIZE")
    if "RANK" not in environment:
        # A step of one task is `python` inside an interactive allocation as well.
        if environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
            return Place()
        variables = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    rank, count = (environment.get(name, "") for name in variables)
    if not (rank.isdigit() and count.isdigit() and int(rank) < int(count)):
        raise InputError(
            f"{variables[0]} must be a rank below {variables[1]}, but the environment has "
            f"{rank!r} and {count!r}. Start all ranks with one launcher, or unset both."
        )
    return Place(int(rank), int(count))


@final
class Peers:
    """The other ranks of this launch, as far as their files tell."""

    def __init__(self, out: Path, place: Place, patience: float) -> None:
        self.place = place
        self._out = out
        self._folder = out / RANKS_NAME
        self._patience = patience
        self._token = secrets.token_hex(8)
        self._tokens = {self._token}
        """Of all ranks that are known to take part."""
        self._begun = False

    def begin(self, key: str, begin: Callable[[], bool]) -> bool:
        """Rank 0 begins once all others are there; what it found is everybody's answer.

        :param key: what this rank would make; all have to agree.
        :param begin: called in rank 0: whether there is work to do.
        """
        if self.place.rank == 0:
            here = self._gather(key)
            work = begin()
            if self.place.count > 1:
                self._write("launch", {"tokens": here, "work": work})
            return work
        found: dict[str, Any] = {}

        def missing() -> str:
            # Again and again: rank 0 deletes what it finds when it starts.
            mine = {"token": self._token, "key": key}
            if self._read(f"here-{self.place.rank}") != mine:
                self._write(f"here-{self.place.rank}", mine)
            found.update(self._read("launch") or {})
            return "" if self._token in found.get("tokens", ()) else "rank 0 to begin"

        self.wait(missing)
        self._tokens.update(found["tokens"])
        self._begun = True
        return bool(found["work"])

    def wait(self, missing: Callable[[], str]) -> None:
        """Returns once ``missing()`` says that nothing is.

        :raises LaunchBroken: if a rank has failed, or nothing has moved for too long.
        :raises DataError: at once, if there is no other rank that could help.
        """
        pause, state = _FIRST_PAUSE, None
        moved = said = time.monotonic()
        while what := missing():
            if self.place.count == 1:
                raise DataError(
                    f"{self._out}: {what}, although all were there. Something deleted them: run "
                    f"the same command again."
                )
            self._check_others()
            now = time.monotonic()
            if (found := (what, self._growing())) != state:
                state, moved = found, now
            if now - moved >= self._patience:
                text = (
                    f"rank {self.place.rank} has waited {self._patience / 60:.2g} min for {what}, "
                    f"and nothing has moved. A rank is gone or stuck: start all of them again, "
                    f"the work continues; or allow more with --wait-minutes."
                )
                # Errors are printed by local rank 0 alone, which may be the one that is gone.
                self._say(f"gives up: {text}")
                raise LaunchBroken(text)
            if now - said >= _SAY_SECONDS:
                said = now
                self._say(f"waits for {what}")
            pause = min(pause * 1.3, _LONGEST_PAUSE)
            time.sleep(max(pause, (time.monotonic() - now) / _LISTENING))

    def leave(self) -> None:
        """This rank is done; rank 0 returns when all are, and takes the folder away."""
        if self.place.rank:
            self._write(f"done-{self.place.rank}", {"token": self._token})
            return
        if self.place.count > 1:
            self.wait(self._not_done)
        shutil.rmtree(self._folder, ignore_errors=True)

    def fail(self, why: str) -> None:
        """Tells those that would wait for this rank."""
        if self.place.count > 1 and self._folder.is_dir():
            lost = {"tokens": sorted(self._tokens), "error": why}
            with suppress(OSError):  # the disk may be what failed
                self._write(f"failed-{self.place.rank}", lost)

    def label(self, what: str) -> str:
        """The same words for one process, and whose they are for several."""
        return what if self.place.count == 1 else f"rank {self.place.rank}: {what}"

    def _gather(self, key: str) -> list[str]:
        """Rank 0: the tokens of all ranks, once they are there."""
        if not self._folder.is_dir() and self.place.count == 1:
            return [self._token]
        self._folder.mkdir(exist_ok=True)
        for path in sorted(self._folder.iterdir()):
            if not path.name.startswith("lock-") and path.suffix != ".part":
                path.unlink(missing_ok=True)
        for path in sorted(self._folder.glob("lock-*")):
            if int(path.name[5:]) >= self.place.count:
                os.close(_lock(path, self._out))  # a rank of an earlier, larger launch
        here: dict[int, dict[str, Any]] = {}

        def missing() -> str:
            for rank in range(1, self.place.count):
                if found := self._read(f"here-{rank}"):
                    here[rank] = found
            absent = sorted(set(range(1, self.place.count)) - here.keys())
            return f"{describe_ranks(absent)} to start" if absent else ""

        self.wait(missing)
        self._tokens.update(found["token"] for found in here.values())
        others = [rank for rank, found in here.items() if found["key"] != key]
        if others:
            raise InputError(
                f"{self._out}: {describe_ranks(others)} found other settings or sources than "
                f"rank 0. All ranks need the same command line and the same files, with the same "
                f"dates."
            )
        return [self._token, *(here[rank]["token"] for rank in sorted(here))]

    def _not_done(self) -> str:
        left = []
        for rank in range(1, self.place.count):
            done = self._read(f"done-{rank}")
            if done is None or done["token"] not in self._tokens:
                left.append(rank)
        return f"{describe_ranks(left)} to end" if left else ""

    def _check_others(self) -> None:
        if self._begun and self._token not in (self._read("launch") or {}).get("tokens", ()):
            raise LaunchBroken(f"{self._out}: another launch has taken over in this folder.")
        for rank in range(self.place.count):
            lost = self._read(f"failed-{rank}") if rank != self.place.rank else None
            # Not "is mine among them": it may have ended before it knew of any other.
            if lost is not None and self._tokens & set(lost["tokens"]):
                raise LaunchBroken(f"rank {rank} failed: {lost['error']}")

    def _growing(self) -> list[tuple[str, int]]:
        """What is being written, by whichever rank: a long file moves although none is finished."""
        sizes = []
        for folder in (self._out, self._out / WORK_NAME):
            for path in folder.glob("*.part"):
                try:
                    sizes.append((path.name, path.stat().st_size))
                except FileNotFoundError:
                    continue
        return sorted(sizes)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads((self._folder / name).read_bytes())
        except FileNotFoundError:
            return None
        return content

    def _write(self, name: str, content: dict[str, Any]) -> None:
        self._folder.mkdir(exist_ok=True)
        write_bytes(self._folder / name, json_bytes(content))

    def _say(self, text: str) -> None:
        print(f"rank {self.place.rank}: {text}", file=sys.stderr, flush=True)


@contextmanager
def joined(out: Path, place: Place, patience: float) -> Iterator[Peers]:
    """This rank's place in the folder, held against every other command while the block runs.

    :param patience: seconds that a rank waits while nothing moves.
    :raises InputError: if another command is at work there.
    """
    if place.rank == 0:
        lock = _lock(out, out)
    else:
        (out / RANKS_NAME).mkdir(exist_ok=True)
        lock = _lock(out / RANKS_NAME / f"lock-{place.rank}", out)
    try:
        peers = Peers(out, place, patience)
        try:
            yield peers
        except (Exception, KeyboardInterrupt) as error:
            peers.fail("interrupted" if isinstance(error, KeyboardInterrupt) else str(error))
            raise
    finally:
        os.close(lock)


def _lock(path: Path, out: Path) -> int:
    """A descriptor that holds ``path``; two commands would write the same temporary files."""
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags, 0o644)
    # A waiting rank of an earlier launch ends when it sees that another has begun.
    deadline = time.monotonic() + (0 if path == out else _RELUCTANCE)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError as error:
            if time.monotonic() < deadline:
                time.sleep(_FIRST_PAUSE)
                continue
            os.close(descriptor)
            who = "" if path == out else f" (as rank {path.name[5:]}, maybe of an earlier launch)"
            raise InputError(f"{out}: another prepare is at work in this folder{who}.") from error


def describe_ranks(numbers: Sequence[int]) -> str:
    """Their numbers, for people."""
    shown = ", ".join(map(str, numbers[:8])) + ", ..." * (len(numbers) > 8)
    return f"rank{'s' * (len(numbers) > 1)} {shown}"
