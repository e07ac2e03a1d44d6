"""The loader and the training step, each as fast as it goes, and one against the other."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from etude.data.errors import DataError
from etude.pretrain.distributed import World
from etude.pretrain.doctor.loading import Loaded, load_for
from etude.pretrain.doctor.meeting import Meeting, limited
from etude.pretrain.doctor.opening import Opened
from etude.pretrain.doctor.rows import DATA, Row, failed, merged, name_ranks, ok, unchecked, warning
from etude.pretrain.doctor.stepping import (
    UpdateTime,
    describe_updates,
    judge_data,
    left_out,
    time_updates,
)

_LOADING, _STEPPING = 1 / 6, 1 / 3
"""Shares of the time that is given; starting takes the rest."""


def try_training(
    run: Opened,
    meeting: Meeting,
    world: World,
    *,
    seconds: float,
    hindrance: str | None,
    leave: Callable[[str], None],
) -> Iterator[Row]:
    """Loads for a while, then trains for a while; every rank calls it.

    :param hindrance: why no step is to be tried.
    """
    with limited(meeting.timeout + seconds, partial(leave, "loader")):
        loaded, mine = _load(run, world, seconds * _LOADING)
    told = meeting.tell("loader", mine, seconds=seconds)
    loader = _rows_of_loaders(told, meeting, run.config.data.workers)
    yield from loader
    if loaded is None or any(row.mark == "failed" for row in loader):
        hindrance = "the loader has failed"
    if hindrance is not None or loaded is None:
        yield unchecked("step", hindrance or "")
        return
    with limited(meeting.timeout + 2 * seconds, partial(leave, "step")):
        mine = _train(run, meeting, world, loaded, seconds * _STEPPING)
    steps = meeting.tell("step", mine, seconds=2 * seconds)
    errors = {
        rank: [failed("step", one["error"], one["advice"])]
        for rank, one in steps.items()
        if "error" in one
    }
    if errors:
        yield from merged(
            {rank: errors.get(rank, [ok("step", "")]) for rank in steps}, meeting.hosts
        )
        return
    times = {rank: UpdateTime(**one) for rank, one in steps.items()}
    yield describe_updates(run.config, run.inputs, times, device=world.device.type)
    share = run.inputs.share
    slowest = max(one.seconds(share.micro_batches) for one in times.values())
    compressed = any(corpus.audio_format != "pcm16" for corpus in run.inputs.corpora)
    yield judge_data(
        min(one["speed"] for one in told.values()),
        share.micro_batch * share.micro_batches / slowest,
        workers=run.config.data.workers,
        hint=", or use pcm16 shards (launch/prepare.py --audio-format pcm16)" if compressed else "",
        faster=left_out(run.config.train, world.device.type),
    )


def _load(run: Opened, world: World, seconds: float) -> tuple[Loaded | None, dict[str, Any]]:
    try:
        loaded = load_for(seconds, run.config, run.inputs, pin_memory=world.device.type == "cuda")
    except DataError as error:
        return None, {"error": str(error)}
    return loaded, {
        "speed": loaded.crops_per_second,
        "crops": loaded.crops,
        "skipped": loaded.skipped,
    }


def _rows_of_loaders(told: dict[int, dict[str, Any]], meeting: Meeting, workers: int) -> list[Row]:
    errors = {
        rank: [
            failed("loader", one["error"], "prepare or copy the corpus again", status=DATA)
            if "error" in one
            else ok("loader", "")
        ]
        for rank, one in told.items()
    }
    if any("error" in one for one in told.values()):
        return merged(errors, meeting.hosts)
    slow = min(told, key=lambda rank: float(told[rank]["speed"]))
    total = sum(one["speed"] for one in told.values())
    found = f"{total:,.1f} crops/s on all ranks with data.workers={workers}"
    if len(told) > 1:
        found += f"; slowest {name_ranks([slow], meeting.hosts)}, {told[slow]['speed']:,.1f}"
    crops, skipped = (sum(one[key] for one in told.values()) for key in ("crops", "skipped"))
    if skipped:
        return [
            warning(
                "loader",
                f"{found}; {skipped} of {crops} crops came from damaged clips, named above",
                "copy the corpus again, or prepare it anew",
            )
        ]
    return [ok("loader", found)]


def _train(
    run: Opened, meeting: Meeting, world: World, loaded: Loaded, seconds: float
) -> dict[str, Any]:
    try:
        measured = time_updates(
            run.config,
            run.inputs,
            run.objective,
            world,
            loaded.batches,
            seconds=seconds,
            agree=lambda mine: max(meeting.tell("first update", mine, seconds=seconds).values()),
        )
    except RuntimeError as error:  # torch's, for memory and for ranks that are gone
        reason = str(error).strip().partition("\n")[0]
        memory = isinstance(error, torch.OutOfMemoryError) or "allocate memory" in reason
        micro_batch = run.inputs.share.micro_batch
        return {
            "error": reason,
            "advice": f"a smaller train.micro_batch than {micro_batch}"
            if memory
            else "training would end with the same words",
        }
    return asdict(measured)
