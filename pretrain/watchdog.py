"""No run hangs unseen: a rank that dies, stops or stalls ends the job, and is named.

Every rank notes in a small file of its own what it is doing, and a thread keeps saying that the
process lives:

    RUN/alive/rank-00003.json    host, process, update, phase, since when, when last seen

A rank that makes no progress for ``limit`` seconds (its own fault or, in a collective, another's)
writes all its stacks to ``RUN/stacks-rank-N.txt``, looks at the files of the others for whom it may
be waiting, and ends with status 76; launchers then end the rest.
"""

import faulthandler
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import final

from etude.pretrain.checkpoint import published
from etude.pretrain.compile_locks import describe_locks, stale_locks
from etude.pretrain.errors import LostRankError
from etude.pretrain.launchers import start_time
from etude.pretrain.run_folder import RunFolder

_log = logging.getLogger(__name__)

_SLOWEST_TICK = 5.0
_START = "start"
_START_SECONDS = 600.0  # kernels may be compiled, and other ranks come late
_SILENT_TICKS = 4
"""A rank that says nothing for so many ticks is stopped, or its machine is gone."""


@final
@dataclass(frozen=True)
class RankState:
    """What a rank said last."""

    rank: int
    host: str
    pid: int
    started: str
    """When the process began, as the kernel has it: a pid alone can be another's by now."""
    step: int
    phase: str
    since: float
    """When the phase began, in seconds since the epoch."""
    seen: float
    """When the rank last said anything."""
    failure: str = ""
    """The error that ended it."""

    def describe(self, now: float) -> str:
        """A clause for the message."""
        where = f"`{self.phase}` of update {self.step}"
        return f"rank {self.rank} has been in {where} for {now - self.since:.0f} s"


@final
class Watchdog:
    """Watches this rank while it is open.

    :param limit: seconds without progress after which the job ends.
    """

    def __init__(self, folder: RunFolder, *, rank: int, ranks: int, limit: float) -> None:
        self._folder = folder
        self._alive = folder.path / "alive"
        self._rank = rank
        self._ranks = ranks
        self._limit = limit
        self._tick = min(_SLOWEST_TICK, limit / 10)
        self._step, self._phase = 0, _START
        self._since = time.time()
        self._failure = ""
        self._progress = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        self._say()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._thread.join()
        if error is None:
            self._file(self._rank).unlink(missing_ok=True)

    def at(self, phase: str, step: int | None = None) -> None:
        """This rank has come to ``phase`` (of update ``step``): it makes progress."""
        self._progress = time.monotonic()
        if phase != self._phase or (step is not None and step != self._step):
            self._phase, self._since = phase, time.time()
            self._step = self._step if step is None else step

    def failed(self, reason: str) -> None:
        """This rank ends with an error of its own; the others are to know."""
        self._failure = reason
        self._say()

    def lost_rank(self) -> tuple[int, str] | None:
        """The rank that failed or is gone, and a sentence about it, once its silence is certain."""
        lost = self._lost()
        return None if lost is None else (lost.rank, _about(lost))

    def _watch(self) -> None:
        while not self._closed.wait(self._tick):
            self._say()
            limit = self._limit if self._phase != _START else max(self._limit, _START_SECONDS)
            if time.monotonic() - self._progress > limit:
                self._end()

    def _end(self) -> None:
        try:
            self._tell()
        except OSError as error:  # several ranks write at once, or the disk is what is waited for
            print(f"error: how it ended could not be written: {error}.", file=sys.stderr)
        finally:
            # The main thread may never come back to be asked.
            os._exit(LostRankError.exit_status)

    def _tell(self) -> None:
        now, own = time.time(), self._state()
        if (lost := self._lost()) is not None:
            guilty, about = lost.rank, _about(lost)
            _end_stopped(lost)
        else:
            # Whoever waits in a collective waits for one that is elsewhere.
            elsewhere = [state for state in self._others() if state.phase != own.phase]
            slow = min([own, *elsewhere], key=lambda state: (state.step, state.since))
            guilty, about = slow.rank, slow.describe(now)
        stacks = self._folder.path / f"stacks-rank-{self._rank}.txt"
        reason = (
            f"no progress for {self._limit:g} s (train.hang_seconds): {about}; "
            f"{own.describe(now)}, its stacks are in {stacks}"
        )
        if self._phase == _START and (locks := stale_locks()):
            reason += f"; {describe_locks(locks)}"
        print(f"error: {reason}.", file=sys.stderr, flush=True)
        with stacks.open("w") as file:
            faulthandler.dump_traceback(file)
        self._folder.write_exit(
            code=LostRankError.exit_status,
            reason=reason,
            step=own.step,
            rank=guilty,
            checkpoint=next(iter(published(self._folder.checkpoints)), None),
        )

    def _lost(self) -> RankState | None:
        others = self._others()
        failed = next((state for state in others if state.failure), None)
        dead = next((state for state in others if _is_dead(state)), None)
        return failed or dead or self._silent()

    def _silent(self) -> RankState | None:
        """A rank that says nothing while one looks: clocks of several machines need not agree."""
        before = {state.rank: state.seen for state in self._others()}
        for _ in range(_SILENT_TICKS):
            self._say()  # or others who look would take this one for silent
            time.sleep(self._tick)
        same = [state for state in self._others() if before.get(state.rank) == state.seen]
        return min(same, key=lambda state: state.rank, default=None)

    def _state(self) -> RankState:
        return RankState(
            rank=self._rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=start_time(os.getpid()) or "",
            step=self._step,
            phase=self._phase,
            since=self._since,
            seen=time.time(),
            failure=self._failure,
        )

    def _say(self) -> None:
        path = self._file(self._rank)
        draft = path.with_suffix(f".{threading.get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not `write_bytes`, which waits for the disk: nothing is lost with it.
            draft.write_text(json.dumps(asdict(self._state())))
            draft.replace(path)
        except OSError as error:  # a full disk must not end the watch
            _log.warning("could not write %s: %s", path, error)

    def _others(self) -> list[RankState]:
        states = []
        for rank in range(self._ranks):
            if rank == self._rank:
                continue
            try:
                states.append(RankState(**json.loads(self._file(rank).read_bytes())))
            except (OSError, ValueError, TypeError):
                continue  # not begun yet, ended well, or of another version
        return states

    def _file(self, rank: int) -> Path:
        return self._alive / f"rank-{rank:05d}.json"


def _about(gone: RankState) -> str:
    if gone.failure:
        return f"rank {gone.rank} failed: {gone.failure}"
    how = "died" if _is_dead(gone) else "is stopped, or its machine is gone: it shows no life"
    return (
        f"rank {gone.rank} (process {gone.pid} on {gone.host}) {how}; it was in `{gone.phase}` of "
        f"update {gone.step}"
    )


def _is_dead(state: RankState) -> bool:
    return state.host == socket.gethostname() and start_time(state.pid) != state.started


def _end_stopped(state: RankState) -> None:
    """A stopped process hears no SIGTERM, and its launcher would wait for it."""
    if state.host == socket.gethostname() and start_time(state.pid) == state.started:
        os.kill(state.pid, signal.SIGKILL)
