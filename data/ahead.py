"""Fetches the shards of crops to come while the current ones are read."""

import logging
import queue
import threading
from typing import final

from etude.data.errors import DataError
from etude.data.plan import Plan
from etude.data.shards import Shard, Store

_log = logging.getLogger(__name__)

_THREADS = 2
_REMEMBERED = 256  # shards; one that was evicted since is asked for again


@final
class ReadAhead:
    """Looks ``plan.lookahead`` positions ahead; does nothing for corpora on this machine's disk."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._asked: dict[tuple[int, int], None] = {}
        self._queue: queue.SimpleQueue[tuple[Store, Shard]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def at(self, position: int) -> None:
        """Asks for the shard of the crop that comes ``lookahead`` positions after this one."""
        if not self._plan.lookahead:
            return
        planned = self._plan.crop(position + self._plan.lookahead)
        split = self._plan.parts[planned.part].split
        number = int(split.members[planned.clip]["shard"])
        store = split.corpus.store
        if store is None or (planned.part, number) in self._asked:
            return
        self._asked[planned.part, number] = None
        if len(self._asked) > _REMEMBERED:
            del self._asked[next(iter(self._asked))]
        self._queue.put((store, split.corpus.shards[number]))
        if len(self._threads) < _THREADS:
            # Daemons: a program that ends does not wait for a download.
            self._threads.append(threading.Thread(target=self._fetch, daemon=True))
            self._threads[-1].start()

    def _fetch(self) -> None:
        while True:
            store, shard = self._queue.get()
            try:
                store.fetch(shard.file, size=shard.bytes, sha256=shard.sha256)
            except DataError as error:
                # Whoever reads a clip of it meets the same error, and counts it.
                _log.debug("not fetched ahead: %s", error)
