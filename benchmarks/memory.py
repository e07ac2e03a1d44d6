"""What a step keeps in memory, and how its time grows with the batch and with the crop.

    OMP_NUM_THREADS=1 python benchmarks/memory.py [--ways ours,plain,A,B] [--crops 2 4]
    OMP_NUM_THREADS=1 python benchmarks/memory.py --batches 4x5 8x5 16x5 1x30 [--rounds 3]

First: bytes that a crop keeps for backward, which is the difference between steps with two and with
four crops, as saved-tensor hooks count them (each storage once; parameters and casts of them cancel
out), and peak memory with four crops, beyond what imports took; a process for every number. On a
CPU the peak is what was held at once, for blocks from 1 MB on go back to the system as soon as they
are free, which also costs time; ``--pools`` leaves them to glibc, which keeps most of them.

Second: our step with other batches, CROPSxSECONDS, as ``step.py`` measures ways: one run, randomly
interleaved, a process each.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from step import measure, serve  # noqa: E402
from step_ways import Problem, build  # noqa: E402


def main() -> None:
    options = parse()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    problem = Problem(
        family=options.family,
        size=options.size,
        crops=options.crops[-1],
        seconds=5.0,
        precision=options.precision,
        device=device,
    )
    if options.batches:
        compare_batches(problem, options.batches, options.rounds)
    else:
        compare_ways(problem, options.ways.split(","), options.crops, pools=options.pools)


def compare_ways(problem: Problem, names: list[str], crops: list[int], *, pools: bool) -> None:
    few, many = crops
    found = {}
    for name in names:
        kept = [run(count_kept, name, replace(problem, crops=count)) for count in crops]
        if not pools:
            os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)  # a process reads it as it starts
        _, peak, _ = run(serve, name, problem)
        os.environ.pop("MALLOC_MMAP_THRESHOLD_", None)
        found[name] = (kept[1] - kept[0]) / (many - few) / 1e6, peak
    ours = next(iter(found.values()))
    print(
        f"\n| way | kept for backward, MB per crop | of it, {names[0]} | peak GB, {many} crops | "
        f"of it, {names[0]} |\n|{'---|' * 5}"
    )
    for name, (kept, peak) in found.items():
        print(f"| {name} | {kept:.0f} | {ours[0] / kept:.2f} | {peak:.2f} | {ours[1] / peak:.2f} |")


def compare_batches(problem: Problem, batches: list[str], rounds: int) -> None:
    context = multiprocessing.get_context("spawn")
    workers: dict[str, tuple[Any, Connection]] = {}
    sizes = {}
    for batch in batches:
        crops, _, seconds = batch.partition("x")
        own = replace(problem, crops=int(crops), seconds=float(seconds))
        sizes[batch] = own
        here, there = context.Pipe()
        process = context.Process(target=serve, args=("ours", own, there), daemon=True)
        process.start()
        workers[batch] = process, here
        here.recv()
    figures = measure(workers, rounds, 1)
    first: float | None = None
    print(f"\n| crops | s per 5 s of audio (min - max) | of the first |\n|{'---|' * 3}")
    for batch, own in sizes.items():
        scale = 5.0 / (own.crops * own.seconds)
        times = [scale * seconds for seconds in figures[batch].seconds]
        median = statistics.median(times)
        first = first or median
        print(
            f"| {own.crops} of {own.seconds:g} s | {median:.3g} ({min(times):.3g} - "
            f"{max(times):.3g}) | {median / first:.2f}x |"
        )


def run(target: Any, name: str, problem: Problem) -> Any:
    """What a process of its own answers to one step, and to a second one that is warm."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(name, problem, there), daemon=True)
    process.start()
    here.recv()
    for _ in range(2):
        here.send("step")
        answer = here.recv()
    here.send("stop")
    process.join()
    return answer


def count_kept(name: str, problem: Problem, connection: Connection) -> None:
    """Bytes that a step keeps for backward, parameters among them."""
    way = build(name, problem)
    connection.send(way.what)
    while connection.recv() == "step":
        kept: dict[int, Tensor] = {}  # holds them, lest an address is used again

        def keep(tensor: Tensor, kept: dict[int, Tensor] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            way.step()
        connection.send(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", choices=["mert", "music2vec"], default="mert")
    parser.add_argument("--size", choices=["95M", "330M"], default="95M")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--ways", default="ours,plain,A,B")
    parser.add_argument("--pools", action="store_true", help="peaks with glibc's pools")
    parser.add_argument("--crops", type=int, nargs=2, default=[2, 4])
    parser.add_argument("--batches", nargs="+", metavar="CROPSxSECONDS")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
