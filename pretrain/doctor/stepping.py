"""What an update takes: the real objective under the real engine, for a few micro-batches.

An update accumulates micro-batches and exchanges gradients with the last. Two of them are enough
to know both times, and any number follows.
"""

import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from etude.data.batch import AudioBatch
from etude.pretrain.assemble import build_engine
from etude.pretrain.config import Config, TrainConfig
from etude.pretrain.distributed import World
from etude.pretrain.doctor.rows import NUMERICS, Row, failed, ok, warning
from etude.pretrain.inputs import Inputs
from etude.pretrain.masked_prediction import MaskedPrediction
from etude.pretrain.random import seed_dropout

_MOST_UPDATES = 20
_MOST_WAITING = 0.1
"""Share of the time that reading may cost; without workers it always costs some."""


@dataclass(frozen=True)
class UpdateTime:
    """Of one rank."""

    accumulate: float
    """Seconds of a micro-batch that is not the update's last; 0 if there are none."""
    last: float
    """Seconds of the last one, with the exchange of gradients and the update."""
    loss: float
    peak_bytes: int
    """Most memory of the device, or of the process on a CPU."""

    def seconds(self, micro_batches: int) -> float:
        """An update of so many micro-batches."""
        return (micro_batches - 1) * self.accumulate + self.last


def time_updates(
    config: Config,
    inputs: Inputs,
    objective: MaskedPrediction,
    world: World,
    batches: Sequence[AudioBatch],
    *,
    seconds: float,
    agree: Callable[[float], float],
) -> UpdateTime:
    """Updates of up to two micro-batches, for about ``seconds``; every rank calls it.

    :param agree: the largest of the ranks' numbers: all of them must do equally many updates.
    """
    share = inputs.share
    accumulated = min(2, share.micro_batches)
    share = replace(share, global_batch=share.micro_batch * share.ranks * accumulated)
    train = config.train.model_copy(update={"global_batch": share.global_batch})
    engine = build_engine(objective, config.model_copy(update={"train": train}), world, share)

    def update(number: int) -> tuple[list[float], float]:
        marks = [time.perf_counter()]
        for micro_batch in range(accumulated):
            seed_dropout(config.seed, number, micro_batch, world.rank)
            batch = batches[micro_batch % len(batches)]
            output = engine.accumulate(batch._replace(update=torch.tensor(number)))
            if micro_batch == accumulated - 1:
                result = engine.update(config.optim.lr)
                if not result.skipped:
                    objective.after_step(number)
            if world.device.type == "cuda":
                torch.cuda.synchronize(world.device)
            marks.append(time.perf_counter())
        times = [after - before for before, after in zip(marks, marks[1:], strict=False)]
        return times, float(output.loss.detach())

    times, loss = update(0)  # makes kernels, buffers and moments
    count = int(min(_MOST_UPDATES, seconds / agree(sum(times))))
    if count:
        measured = [update(1 + number)[0] for number in range(count)]
        times = [sum(column) / count for column in zip(*measured, strict=True)]
    return UpdateTime(times[0] if accumulated > 1 else 0.0, times[-1], loss, _peak(world))


def describe_updates(
    config: Config, inputs: Inputs, told: dict[int, UpdateTime], *, device: str
) -> Row:
    """One row from all ranks' times: the slowest rank's, for the others wait for it."""
    share = inputs.share
    each = max(one.seconds(share.micro_batches) for one in told.values())
    peak = max(one.peak_bytes for one in told.values()) / 1e9
    hours = each * config.train.max_steps / 3600
    plain = "".join(f", without train.{key}" for key in left_out(config.train, device))
    found = (
        f"{each:.3g} s per update of {share.global_batch} crops ({share.micro_batches} x "
        f"{share.micro_batch} on each of {share.ranks} ranks, {config.train.engine}{plain}); "
        f"{config.train.max_steps:,} updates would take {hours:,.2f} h; "
        f"memory {peak:.2f} GB at most"
    )
    if not all(math.isfinite(one.loss) for one in told.values()):
        return failed(
            "step", f"{found}; the loss is not finite", "train.precision=fp32", status=NUMERICS
        )
    return ok("step", found)


def left_out(train: TrainConfig, device: str) -> list[str]:
    """Settings of ``train`` that make a run's updates quicker than the ones that are timed here."""
    faster = {"compile": train.compiles_on(device), "cuda_graph": train.records_on(device)}
    return [key for key, used in faster.items() if used]


def judge_data(
    loader: float, step: float, *, workers: int, hint: str, faster: Sequence[str] = ()
) -> Row:
    """Whether the loader keeps up, from crops per second of a rank, loaded and trained on.

    :param hint: what else would help.
    :param faster: what was left out of the step; a run will want more data by so much.
    """
    waiting = waiting_share(loader, step, workers=workers)
    numbers = f"{loader:,.1f} crops/s are read, {step:,.1f} are trained on, per rank"
    if faster:
        numbers += f", and more with {' and '.join(f'train.{key}' for key in faster)}"
    if waiting <= _MOST_WAITING:
        return ok("data speed", f"data keeps up: {loader / step:.1f} x ({numbers})")
    return warning(
        "data speed",
        f"data is the bottleneck: {waiting:.0%} of the time would be waiting for it ({numbers})",
        f"raise data.workers (now {workers}){hint}",
    )


def waiting_share(loader: float, step: float, *, workers: int) -> float:
    """Share of the time that data would be waited for.

    Workers read while others compute, and are waited for where they are slower; without any, every
    crop is read first and computed on then.
    """
    if workers:
        return max(0.0, 1 - loader / step)
    return step / (loader + step)


def _peak(world: World) -> int:
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(world.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
