"""How fast the loader is, as training would use it."""

import time
from dataclasses import dataclass

from etude.data.batch import AudioBatch
from etude.data.pipeline import training_batches
from etude.pretrain.config import Config
from etude.pretrain.inputs import Inputs

_KEPT = 2
_WARMING = 1 / 3
"""Of the time: workers start, and fill their queues faster than they could go on."""


@dataclass(frozen=True)
class Loaded:
    """What a loader gave."""

    crops_per_second: float
    crops: int
    skipped: int
    """Of them, crops whose clip was damaged."""
    batches: list[AudioBatch]
    """The last ones."""


def load_for(seconds: float, config: Config, inputs: Inputs, *, pin_memory: bool) -> Loaded:
    """Takes micro-batches of this rank, as fast as they come.

    :raises DataError: if the corpus is too damaged to go on.
    """
    batches = training_batches(
        inputs.train,
        inputs.share,
        first_update=0,
        workers=config.data.workers,
        pin_memory=pin_memory,
        stock=config.data.reader == "webdataset",
    )
    kept: list[AudioBatch] = []
    taken = skipped = 0
    try:
        next(batches)
        start = time.perf_counter()
        while time.perf_counter() - start < seconds * _WARMING:
            next(batches)
        start = time.perf_counter()
        while not taken or time.perf_counter() - start < seconds * (1 - _WARMING):
            batch = next(batches)
            taken += inputs.share.micro_batch
            skipped += int(batch.skipped)
            kept = [*kept, batch][-_KEPT:]
        speed = taken / (time.perf_counter() - start)
    finally:
        del batches  # its workers end
    return Loaded(speed, taken, skipped, kept)
