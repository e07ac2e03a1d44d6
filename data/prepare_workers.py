"""Runs a function over many files in processes that may die.

A decoder is C code fed with whatever a disk holds. When one takes its process down, the files that
were in work are tried again one by one, and the one that kills its process again is named.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4
"""Items per worker that are handed out before they are needed."""


def map_unordered(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    crashed: Callable[[Item], Result],
    decoder_log: Path,
) -> Iterator[Result]:
    """Yields ``function(item)`` in the order they finish, and ``crashed(item)`` for a killer.

    With ``workers=0`` everything runs in this process.
    """
    if workers == 0:
        for item in items:
            yield function(item)
        return
    left = list(items)
    while left:
        suspects: list[Item] = []
        handed = yield from _run_pool(function, left, workers, decoder_log, suspects)
        left = left[handed:]
        for item in suspects:
            again: list[Item] = []
            yield from _run_pool(function, [item], 1, decoder_log, again)
            if again:
                yield crashed(item)


def _run_pool(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    decoder_log: Path,
    suspects: list[Item],
) -> Generator[Result, None, int]:
    """Returns how many items were handed out; ``suspects`` are those lost with their process."""
    context = multiprocessing.get_context("spawn")
    workers = min(workers, len(items))
    pool = ProcessPoolExecutor(workers, context, _start_worker, (decoder_log,))
    running: dict[Future[Result], Item] = {}
    handed = 0
    try:
        while not suspects and (handed < len(items) or running):
            while handed < len(items) and len(running) < _AHEAD * workers:
                try:
                    running[pool.submit(function, items[handed])] = items[handed]
                except BrokenProcessPool:
                    break
                handed += 1
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                item = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    suspects.append(item)
                else:
                    yield result
        suspects.extend(running.values())
    finally:
        # Without this Ctrl-C or a full disk would first wait for every file handed out.
        pool.shutdown(wait=True, cancel_futures=True)
    return handed


def _start_worker(decoder_log: Path) -> None:
    """Ctrl-C is the parent's business; a killed parent takes its workers with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
    # mpg123 writes its remarks on odd MP3 files straight to stderr, in between the progress bar.
    log = os.open(decoder_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 2)
    os.close(log)
