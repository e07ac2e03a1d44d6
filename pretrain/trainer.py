"""The loop and nothing else.

    for every update: accumulate micro-batches, apply, let targets move, count, call the hooks

Everything optional is a hook (:mod:`etude.pretrain.hooks`); everything about ranks is the engine's.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from etude.data.batch import AudioBatch
from etude.data.errors import DataError
from etude.pretrain.distributed import sum_over_ranks
from etude.pretrain.engine import Engine
from etude.pretrain.errors import NumericsError, PreemptedError
from etude.pretrain.hooks import Hook, SaveCheckpoints
from etude.pretrain.metrics import Mean, MetricSums
from etude.pretrain.objective import Objective
from etude.pretrain.random import seed_dropout
from etude.pretrain.schedules import Schedule
from etude.pretrain.stop import StopRequest
from etude.pretrain.watchdog import Watchdog

_FEW_CROPS = 1000
"""Skipped clips are judged as a share of no fewer crops than these: one in ten is no verdict."""


class Trainer:
    """Runs updates until ``max_steps``.

    :param micro_batches: micro-batches per update on this rank.
    :param epochs: what to log of how often corpora have been heard after so many updates.
    :param max_skipped_fraction: share of damaged clips at which the data is unusable.
    :param max_skipped_updates: non-finite gradients in a row at which training has failed.
    :param hours_per_update: audio that all ranks hear in one update.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        objective: Objective,
        batches: Iterator[AudioBatch],
        schedule: Schedule,
        hooks: Sequence[Hook],
        saver: SaveCheckpoints,
        stop: StopRequest,
        watchdog: Watchdog,
        seed: int,
        rank: int,
        step: int,
        max_steps: int,
        micro_batches: int,
        global_batch: int,
        log_every: int,
        hours_per_update: float,
        epochs: Callable[[int], dict[str, float]],
        max_skipped_fraction: float,
        max_skipped_updates: int,
    ) -> None:
        self.engine = engine
        self.step = step
        self.checkpoint: Path | None = None
        self.checkpoint_step = -1
        self.skipped_updates = 0
        self._objective = objective
        self._batches = batches
        self._schedule = schedule
        self._hooks = hooks
        self._saver = saver
        self._stop = stop
        self._watchdog = watchdog
        self._seed = seed
        self._rank = rank
        self._max_steps = max_steps
        self._micro_batches = micro_batches
        self._global_batch = global_batch
        self._log_every = log_every
        self._hours_per_update = hours_per_update
        self._epochs = epochs
        self._max_skipped_fraction = max_skipped_fraction
        self._max_skipped_updates = max_skipped_updates
        self._skipped_in_a_row = 0
        self._skipped_crops = 0.0
        self._crops = 0
        self._reported: dict[str, float] = {}
        self._start_interval()

    def fit(self) -> None:
        """Trains to the end.

        :raises PreemptedError: after a checkpoint, if any rank was asked to stop.
        :raises NumericsError: if gradients stay non-finite.
        :raises DataError: if too many clips are damaged.
        """
        try:
            for hook in self._hooks:
                hook.start(self)
            self._start_interval()
            while self.step < self._max_steps:
                self._one_update()
                self._watchdog.at("after the update")
                for hook in self._hooks:
                    hook.step_end(self)
                if self.step % self._log_every == 0 or self._reported:
                    self._log()
                # After the log: a run that continues from here does not write this line again.
                self._watchdog.at("saving")
                self._saver.step_end(self)
                if self._stop.agreed() and self.step < self._max_steps:
                    self._saver.save(self)
                    raise PreemptedError(
                        f"stopped at update {self.step} ({self._stop.reason}); {self.checkpoint} "
                        "is published. Run the same command again to continue."
                    )
        finally:
            for hook in self._hooks:
                hook.close(self)

    def report(self, values: dict[str, float]) -> None:
        """Adds values to this step's log line; the same on every rank."""
        self._reported.update(values)

    def _one_update(self) -> None:
        for micro_batch in range(self._micro_batches):
            self._watchdog.at("data", self.step)
            waiting = time.perf_counter()
            batch = next(self._batches)
            self._data_seconds += time.perf_counter() - waiting
            self._watchdog.at("forward and backward")
            seed_dropout(self._seed, self.step, micro_batch, self._rank)
            output = self.engine.accumulate(batch)
            self._sums.add(output.metrics)
            self._sums.add({"data/skipped": Mean(batch.skipped.double(), torch.ones(()))})
        lr = self._schedule(self.step)
        self._watchdog.at("update")
        result = self.engine.update(lr)
        if result.skipped:
            self.skipped_updates += 1
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row > self._max_skipped_updates:
                raise NumericsError(
                    f"the gradient was not finite {self._skipped_in_a_row} times in a row, last at "
                    f"update {self.step}. Lower optim.lr, or train with train.precision=fp32 to "
                    "see whether it is the precision."
                )
        else:
            self._skipped_in_a_row = 0
            self._grad_norm += result.grad_norm
            self._applied += 1
            self._objective.after_step(self.step)
        self._lr = lr
        self.step += 1

    def _log(self) -> None:
        seconds = time.perf_counter() - self._interval_start
        updates = self.step - self._interval_step
        # A report alone (a validation between two log lines) does not end the interval.
        values: dict[str, float] = {}
        if self.step % self._log_every == 0 or self.step == self._max_steps:
            wait = torch.tensor(self._data_seconds, dtype=torch.float64)
            sums = list(self._sums.tensors())
            reduced = sum_over_ranks([*sums, wait.to(sums[0].device)])
            self._sums.replace(reduced[:-1])
            values = self._sums.results()
            skipped = self._sums.total("data/skipped")
            self._check_skipped(skipped, updates * self._global_batch)
            values["data/skipped"] = skipped
            values["optim/lr"] = self._lr
            values["optim/grad_norm"] = self._grad_norm / max(1, self._applied)
            values["optim/skipped_updates"] = float(self.skipped_updates)
            values["perf/crops_per_second"] = updates * self._global_batch / seconds
            # Share of the time that a rank waited for data, in the mean over ranks.
            micro_batches = self._sums.count("data/skipped")
            ranks = micro_batches / (updates * self._micro_batches)
            values["perf/data_wait"] = float(reduced[-1]) / (seconds * ranks)
            self._start_interval()
        values.update(self._epochs(self.step))
        values["audio_hours"] = self.step * self._hours_per_update
        values.update(self._reported)
        self._reported = {}
        for hook in self._hooks:
            hook.logged(self, values)

    def _check_skipped(self, skipped: float, crops: int) -> None:
        self._skipped_crops += skipped
        self._crops += crops
        allowed = self._max_skipped_fraction * max(self._crops, _FEW_CROPS)
        if self._skipped_crops > allowed:
            raise DataError(
                f"{self._skipped_crops:.0f} of {self._crops} crops came from damaged clips, more "
                f"than data.max_skipped_fraction ({self._max_skipped_fraction}) allows; train.log "
                "names them. Prepare or copy the corpus again."
            )

    def _start_interval(self) -> None:
        self._sums = MetricSums()
        self._interval_start = time.perf_counter()
        self._interval_step = self.step
        self._data_seconds = 0.0
        self._grad_norm = 0.0
        self._applied = 0
        self._lr = 0.0
