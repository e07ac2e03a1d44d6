"""The loop and nothing else.

    for every update: accumulate micro-batches, apply, let targets move, count, call the hooks

Everything optional is a hook (:mod:`etude.pretrain.hooks`); everything about ranks is the engine's.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from etude.data.batch import AudioBatch
from etude.data.errors import DataError
from etude.pretrain.distributed import sum_over_ranks
from etude.pretrain.engine import Engine
from etude.pretrain.errors import PreemptedError
from etude.pretrain.hooks import Hook, SaveCheckpoints
from etude.pretrain.incidents import Incidents
from etude.pretrain.metrics import Mean, MetricSums
from etude.pretrain.numerics import Skips, find_spikes
from etude.pretrain.objective import Objective
from etude.pretrain.random import seed_dropout
from etude.pretrain.run_state import RunState
from etude.pretrain.schedules import Schedule
from etude.pretrain.stop import StopRequest
from etude.pretrain.watchdog import Watchdog

_FEW_CROPS = 1000
"""Skipped clips are judged as a share of no fewer crops than these: one in ten is no verdict."""


class Trainer:
    """Runs updates until ``max_steps``.

    :param state: of the run so far; it is kept up to date.
    :param micro_batches: micro-batches per update on this rank.
    :param epochs: what to log of how often corpora have been heard after so many updates' data.
    :param max_skipped_fraction: share of damaged clips at which the data is unusable.
    :param skips: how many gradients that are not finite are borne.
    :param spike_sigma: standard deviations above the mean at which losses and gradients stick out.
    :param hours_per_update: audio that all ranks hear in one update.
    :param utilisation: what to log of the devices' use at so many crops per second of all ranks.
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
        incidents: Incidents,
        skips: Skips,
        seed: int,
        rank: int,
        state: RunState,
        max_steps: int,
        micro_batches: int,
        global_batch: int,
        log_every: int,
        hours_per_update: float,
        epochs: Callable[[int], dict[str, float]],
        utilisation: Callable[[float], dict[str, float]],
        max_skipped_fraction: float,
        spike_sigma: float,
    ) -> None:
        self.engine = engine
        self.state = state
        self._objective = objective
        self._batches = batches
        self._schedule = schedule
        self._hooks = hooks
        self._saver = saver
        self._stop = stop
        self._watchdog = watchdog
        self._incidents = incidents
        self._skips = skips
        self._seed = seed
        self._rank = rank
        self._max_steps = max_steps
        self._micro_batches = micro_batches
        self._global_batch = global_batch
        self._log_every = log_every
        self._hours_per_update = hours_per_update
        self._epochs = epochs
        self._utilisation = utilisation
        self._max_skipped_fraction = max_skipped_fraction
        self._spike_sigma = spike_sigma
        self._reported: dict[str, float] = {}
        self._start_interval()

    @property
    def step(self) -> int:
        """Updates that are done."""
        return self.state.step

    def fit(self) -> None:
        """Trains to the end.

        :raises PreemptedError: after a checkpoint, if any rank was asked to stop.
        :raises DivergedError: if too many gradients are not finite.
        :raises DataError: if too many clips are damaged.
        """
        try:
            for hook in self._hooks:
                hook.start(self)
            self._start_interval()
            while self.step < self._max_steps:
                self.one_update()
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
                    self._saver.finish()
                    raise PreemptedError(
                        f"stopped at update {self.step} ({self._stop.reason}); "
                        f"{self._saver.newest} is published. Run the same command again to "
                        "continue."
                    )
            for hook in self._hooks:
                hook.complete(self)
        finally:
            for hook in self._hooks:
                hook.close(self)

    def report(self, values: dict[str, float]) -> None:
        """Adds values to this step's log line; the same on every rank."""
        self._reported.update(values)

    def next_batch(self) -> AudioBatch:
        """This rank's next micro-batch."""
        return next(self._batches)

    def one_update(self) -> None:
        """One turn of the loop, without what is done around it."""
        update, losses = torch.tensor(self.step), []
        for micro_batch in range(self._micro_batches):
            self._watchdog.at("data", self.step)
            waiting = time.perf_counter()
            # Planned for a later update where data was passed over.
            batch = self.next_batch()._replace(update=update)
            self._data_seconds += time.perf_counter() - waiting
            self._watchdog.at("forward and backward")
            seed_dropout(self._seed, self.step, micro_batch, self._rank)
            output = self.engine.accumulate(batch)
            losses.append(output.loss.detach())
            self._sums.add(output.metrics)
            self._sums.add({"data/skipped": Mean(batch.skipped.double(), torch.ones(()))})
        lr = self._schedule(self.step)
        self._watchdog.at("update")
        result = self.engine.update(lr)
        if result.skipped:
            self._skipped()
        else:
            self._grad_norms.append(result.grad_norm)
            self._losses.append(torch.stack(losses).double().mean())
            self._updates.append(self.step)
            self._objective.after_step(self.step)
        self._lr = lr
        self.state.step += 1

    def _skipped(self) -> None:
        state = self.state
        state.skipped_updates += 1
        self._incidents.add("gradient not finite", state.step, state.passed_over)
        state.recent_skips = self._skips.add(state.recent_skips, state.step)

    def _log(self) -> None:
        seconds = time.perf_counter() - self._interval_start
        updates = self.step - self._interval_step
        # A report alone (a validation between two log lines) does not end the interval.
        values: dict[str, float] = {}
        if self.step % self._log_every == 0 or self.step == self._max_steps:
            wait = torch.tensor(self._data_seconds, dtype=torch.float64)
            sums = list(self._sums.tensors())
            losses = torch.stack(self._losses) if self._losses else sums[0].new_zeros(0)
            *reduced, all_losses, all_wait = sum_over_ranks(
                [*sums, losses.to(sums[0].device), wait.to(sums[0].device)]
            )
            self._sums.replace(reduced)
            values = self._sums.results()
            # Share of the time that a rank waited for data, in the mean over ranks.
            ranks = self._sums.count("data/skipped") / (updates * self._micro_batches)
            skipped = self._sums.total("data/skipped")
            self._check_skipped(skipped, updates * self._global_batch)
            grad_norms = torch.stack(self._grad_norms).tolist() if self._grad_norms else []
            self._check_spikes((all_losses / ranks).tolist(), grad_norms)
            values["data/skipped"] = skipped
            values["optim/lr"] = self._lr
            values["optim/grad_norm"] = math.fsum(grad_norms) / max(1, len(grad_norms))
            values["optim/skipped_updates"] = float(self.state.skipped_updates)
            values["optim/loss_spikes"] = float(self.state.loss_spikes)
            values["optim/grad_norm_spikes"] = float(self.state.grad_norm_spikes)
            values["optim/rollbacks"] = float(self.state.rollbacks)
            speed = updates * self._global_batch / seconds
            values["perf/crops_per_second"] = speed
            values["perf/ranks"] = ranks
            values.update(self._utilisation(speed))
            values["perf/audio_hours_per_day"] = updates * self._hours_per_update / seconds * 86400
            values["perf/data_wait"] = float(all_wait) / (seconds * ranks)
            self._start_interval()
        values.update(self._epochs(self.step + self.state.passed_over))
        values["audio_hours"] = self.step * self._hours_per_update
        values.update(self._reported)
        self._reported = {}
        for hook in self._hooks:
            hook.logged(self, values)

    def _check_skipped(self, skipped: float, crops: int) -> None:
        state = self.state
        state.skipped_crops += round(skipped)
        state.crops += crops
        if state.skipped_crops > self._max_skipped_fraction * max(state.crops, _FEW_CROPS):
            raise DataError(
                f"{state.skipped_crops} of {state.crops} crops came from damaged clips, more "
                f"than data.max_skipped_fraction ({self._max_skipped_fraction}) allows; train.log "
                "names them. Prepare or copy the corpus again."
            )

    def _check_spikes(self, losses: list[float], grad_norms: list[float]) -> None:
        """Looks for losses and gradient norms of this interval that stick out."""
        state, sigma = self.state, self._spike_sigma
        spikes, state.losses = find_spikes(state.losses, losses, sigma=sigma)
        state.loss_spikes += len(spikes)
        norms, state.grad_norms = find_spikes(state.grad_norms, grad_norms, sigma=sigma)
        state.grad_norm_spikes += len(norms)
        for kind, found in (("loss", spikes), ("grad_norm", norms)):
            for spike in found:
                update = self._updates[spike.number]
                self._incidents.add(kind, update, state.passed_over, spike)

    def _start_interval(self) -> None:
        self._sums = MetricSums()
        self._interval_start = time.perf_counter()
        self._interval_step = self.step
        self._data_seconds = 0.0
        self._losses: list[Tensor] = []
        self._grad_norms: list[Tensor] = []
        self._updates: list[int] = []
        self._lr = 0.0
