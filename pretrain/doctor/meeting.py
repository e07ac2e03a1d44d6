"""Ranks that tell each other what they found, without a collective that could hang.

What goes through the launcher's key-value store has a limit of time, and who did not come is known
by name. Whatever runs in torch's own collectives is bounded by :func:`limited`.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch import distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from etude.pretrain.distributed import COLLECTIVE_TIMEOUT
from etude.pretrain.errors import LostRankError

_GRACE_SECONDS = 5.0
"""What gloo, which tells of its own timeout, is given before the process is ended."""


class MissingRanksError(Exception):
    """Ranks that did not come in time; every rank misses the same.

    :param ranks: which.
    :param stage: what they were to tell.
    """

    def __init__(self, ranks: Sequence[int], stage: str) -> None:
        super().__init__(stage)
        self.ranks = list(ranks)
        self.stage = stage


class Meeting:
    """This rank among the others.

    :param store: where they meet; ``None`` in a world of one.
    :param timeout: seconds that the others are waited for.
    """

    def __init__(
        self, *, rank: int, size: int, local_rank: int, store: Store | None, timeout: float
    ) -> None:
        self.rank, self.size, self.local_rank, self.timeout = rank, size, local_rank, timeout
        self.hosts: dict[int, str] = {}
        """Host of each rank, once they have told."""
        self._store = store

    @property
    def on_this_host(self) -> int:
        """Ranks on this rank's host."""
        return max(1, sum(host == self.hosts.get(self.rank) for host in self.hosts.values()))

    @property
    def is_first_here(self) -> bool:
        """Whether this rank looks at what it shares with the others of its host."""
        own = self.hosts.get(self.rank)
        return self.rank == min((r for r, host in self.hosts.items() if host == own), default=0)

    def tell(self, stage: str, value: Any, *, seconds: float = 0.0) -> dict[int, Any]:
        """Every rank's value; each is plain JSON.

        Rank 0 collects and hands on, so that all ranks have the same answer, or miss the same.

        :param seconds: what the stage itself may take, beside the waiting.
        :raises MissingRanksError: if some do not tell in time.
        """
        if self._store is None:
            return {self.rank: value}
        try:
            told = self._collect(stage, json.dumps(value), self.timeout + seconds)
        except dist.DistError as error:  # the store has ended with rank 0
            raise MissingRanksError([0], stage) from error
        if told["missing"]:
            raise MissingRanksError(told["missing"], stage)
        return {int(rank): one for rank, one in told["values"].items()}

    def _collect(self, stage: str, value: str, limit: float) -> dict[str, Any]:
        assert self._store is not None
        everybody = f"{stage}/all"
        keys = [f"{stage}/{rank}" for rank in range(self.size)]
        self._store.set(keys[self.rank], value)
        if self.rank == 0:
            missing = self._wait(keys, limit)
            there = [rank for rank in range(self.size) if rank not in missing]
            values = {rank: json.loads(self._store.get(keys[rank])) for rank in there}
            self._store.set(everybody, json.dumps({"missing": missing, "values": values}))
        elif self._wait([everybody], limit + _GRACE_SECONDS):
            return {"missing": [0]}
        told: dict[str, Any] = json.loads(self._store.get(everybody))
        return told

    def _wait(self, keys: list[str], seconds: float) -> list[int]:
        """Numbers of the keys that are not there in time.

        The store's own waiting cannot be interrupted by a signal.
        """
        assert self._store is not None
        deadline, pause = time.monotonic() + seconds, 0.02
        while not self._store.check(keys):
            if time.monotonic() > deadline:
                return [n for n, key in enumerate(keys) if not self._store.check([key])]
            time.sleep(pause)
            pause = min(1.0, 1.3 * pause)  # many ranks ask one process
        return []

    def end(self, status: int) -> int:
        """Rank 0 gives the status, the others take it; none ends before rank 0 has printed.

        A launcher kills all ranks as soon as one has failed.
        """
        if self._store is None or self.size == 1:
            return status
        try:
            if self.rank == 0:
                self._store.set("status", json.dumps(status))
                # The store ends with this process; who is missing is not waited for long.
                others = [f"bye/{rank}" for rank in range(1, self.size)]
                self._wait(others, min(self.timeout, _GRACE_SECONDS))
            elif not self._wait(["status"], self.timeout):
                status = int(json.loads(self._store.get("status")))
                self._store.set(f"bye/{self.rank}", "")
        except dist.DistError:
            pass  # rank 0 is gone: all has been said
        return status

    def start_collectives(self, backend: str) -> None:
        """Makes the process group, in the same store, unless there is one rank alone.

        :raises RuntimeError: as torch says, if the ranks cannot reach each other.
        """
        if self._store is None or self.size == 1:
            return
        dist.init_process_group(
            backend,
            store=PrefixStore("collectives", self._store),
            rank=self.rank,
            world_size=self.size,
            # NCCL's own timeout kills the process without a word for the user.
            timeout=timedelta(seconds=self.timeout) if backend == "gloo" else COLLECTIVE_TIMEOUT,
        )


def join(*, rank: int, size: int, local_rank: int, timeout: float) -> Meeting:
    """Meets at the address that the launcher gave.

    :raises LostRankError: if nobody listens there in time.
    """
    store: Store | None = None
    if size > 1:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # torchrun's agent has a store open at that port already.
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        try:
            store = TCPStore(
                address,
                port,
                size,
                is_master=rank == 0 and not agent,
                timeout=timedelta(seconds=timeout),
                wait_for_workers=False,
            )
        except (dist.DistError, RuntimeError) as error:
            listening = "the port may be taken" if rank == 0 else "rank 0 has not come"
            raise LostRankError(
                f"rank {rank}: no meeting at {address}:{port} within {timeout:g} s: {listening}, "
                "or MASTER_ADDR and MASTER_PORT are wrong, or a firewall stands between the nodes.",
                rank=0,
            ) from error
        store = PrefixStore("doctor", store)
    return Meeting(rank=rank, size=size, local_rank=local_rank, store=store, timeout=timeout)


def end_collectives() -> None:
    """Ends the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def limited(seconds: float, leave: Callable[[], None]) -> Iterator[None]:
    """Calls ``leave`` from another thread if the block takes longer: a collective may never return.

    :param leave: says so and ends the process.
    """
    timer = threading.Timer(seconds + _GRACE_SECONDS, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
