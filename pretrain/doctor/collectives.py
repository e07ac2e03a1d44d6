"""Sums over all ranks, timed on each, and who arrives late.

All ranks leave a barrier together, so whoever does the same work more slowly is the one that the
others wait for in every update.
"""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed as dist

from etude.pretrain.doctor.rows import Row, failed, name_ranks, ok, warning

_ROUNDS = 5
_BARRIERS = 15
_SLOW_FACTOR = 1.5
"""Times the median of the others at which a rank is told to be slow."""
_SIZES_KB = {"cpu": (4, 1024, 16_384), "cuda": (4, 1024, 65_536)}
_WORK_ROWS = {"cpu": 512, "cuda": 4096}


def time_collectives(device: torch.device) -> dict[str, Any]:
    """This rank's times, in seconds; every rank calls it.

    :returns: ``right``, whether sums are; ``sums``, per size in KB; ``work``, between barriers.
    """
    ranks = dist.get_world_size()
    right, sums = True, {}
    for size in _SIZES_KB[device.type]:
        tensor = torch.empty(size * 256, device=device)
        seconds = []
        for _ in range(_ROUNDS):
            tensor.fill_(dist.get_rank() + 1.0)
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(tensor)
            _wait(device)
            seconds.append(time.perf_counter() - start)
            right &= bool((tensor == ranks * (ranks + 1) / 2).all())
        sums[str(size)] = statistics.median(seconds[1:])  # the first one makes connections
    matrix = torch.ones(_WORK_ROWS[device.type], _WORK_ROWS[device.type], device=device)
    work = []
    for _ in range(_BARRIERS):
        dist.barrier()
        start = time.perf_counter()
        matrix @ matrix
        _wait(device)
        work.append(time.perf_counter() - start)
    return {"right": right, "sums": sums, "work": statistics.median(work[1:])}


def slowest(seconds: Mapping[int, float]) -> tuple[int, float]:
    """The slowest rank, and its factor against the median of the others."""
    rank = max(seconds, key=lambda one: seconds[one])
    others = statistics.median(value for one, value in seconds.items() if one != rank)
    return rank, seconds[rank] / max(others, 1e-9)


def rows_of_times(told: Mapping[int, Mapping[str, Any]], hosts: Mapping[int, str]) -> list[Row]:
    """What the ranks' times say together."""
    rows = []
    if wrong := [rank for rank, one in told.items() if not one["right"]]:
        rows.append(
            failed(
                "all_reduce",
                f"{name_ranks(wrong, hosts)}: sums over the ranks are wrong",
                "take this node or its network card out of service",
            )
        )
    else:
        sizes = list(next(iter(told.values()))["sums"])
        by_size = {size: {rank: one["sums"][size] for rank, one in told.items()} for size in sizes}
        shown = ", ".join(
            f"{_size(int(size))} {max(times.values()) * 1e3:.2f} ms"
            for size, times in by_size.items()
        )
        last = by_size[sizes[-1]]
        speed = int(sizes[-1]) * 1024 / max(last.values())
        rank, factor = slowest(last)
        found = (
            f"{shown} ({speed / 1e9:.2f} GB/s); slowest {name_ranks([rank], hosts)}, {factor:.2f} "
            "times the median of the others"
        )
        rows.append(_judge("all_reduce", found, factor))
    work = {rank: float(one["work"]) for rank, one in told.items()}
    rank, factor = slowest(work)
    found = (
        f"after the same work, {name_ranks([rank], hosts)} comes to the barrier last: "
        f"{work[rank] * 1e3:.1f} ms, {factor:.2f} times the median of the others"
    )
    rows.append(_judge("arrival", found, factor))
    return rows


def _judge(check: str, found: str, factor: float) -> Row:
    if factor < _SLOW_FACTOR:
        return ok(check, found)
    return warning(
        check,
        found,
        "every update waits for it: look for other processes, heat, its network card",
    )


def _size(kilobytes: int) -> str:
    return f"{kilobytes} KB" if kilobytes < 1024 else f"{kilobytes // 1024} MB"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
