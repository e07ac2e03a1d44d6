"""A whole training step beside what a user would run instead: time, memory, and on a GPU MFU.

    OMP_NUM_THREADS=1 python benchmarks/step.py [--crops 4] [--rounds 5] [--precision bf16]
        [--ways ours,A,B,D] [--family mert|music2vec] [--reference PATH]

One run. Every way lives in a process of its own, so that its peak memory is its own (on a CPU:
beyond what imports took); in each round the ways take one step each in random order, alone on the
machine. A step is forward, backward and AdamW on the same crops, masks and labels, dropout 0. Time
is CPU time of the process (on a GPU: wall time after a synchronisation), median over rounds with
its range. MFU counts the student's products, forward and backward (and the teacher's forward), of
the size in ``flops.py``, against a matrix product of 8192 x 8192 measured in the same run; neither
recomputation nor targets count.

The ways are described in ``step_ways/``: ours; A the published MERT step; B what most would write
with transformers; C the same compiled, without CQT; D torchaudio's HuBERT; E transformers'
Data2VecAudio with an EMA; F fairseq2's wav2vec 2.0 as it comes; R, where ``--reference`` gives a
source tree of fairseq, the original's own model and loss. `plain` is ours in the form that the fast
one is held against, `compiled` is ours under ``train.compile=true``, `graphed` under
``train.cuda_graph=true`` as well.
"""

import argparse
import multiprocessing
import platform
import random
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from step_ways import WAYS, Problem, build  # noqa: E402
from step_ways.fairseq_hubert import check_reference, import_reference  # noqa: E402
from step_ways.flops import train_flops  # noqa: E402

_WARM_UP = 0
_WARM_UP_CUDA = 4
"""Rounds after the first step."""
_PEAK_SIDE = 8192


@dataclass
class Figures:
    """What a way cost."""

    seconds: list[float]
    peak_gigabytes: float
    loss: float


def main() -> None:
    options = parse()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    problem = Problem(
        family=options.family,
        size=options.size,
        crops=options.crops,
        seconds=options.seconds,
        precision=options.precision,
        device=device,
        reference=options.reference,
    )
    names = ways(options)
    if "R" in names:
        check_reference(options.reference)
    context = multiprocessing.get_context("spawn")
    workers: dict[str, tuple[Any, Connection]] = {}
    for name in names:
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(name, problem, there), daemon=True)
        process.start()
        there.close()  # or nobody would hear that the process has ended
        workers[name] = (process, here)
        try:
            print(f"{name}: {here.recv()}", flush=True)
        except EOFError:
            for running, _ in workers.values():
                running.terminate()
            raise SystemExit(f"{name}: ended before its first step, as it says above.") from None
    figures = measure(workers, options.rounds, _WARM_UP_CUDA if device == "cuda" else _WARM_UP)
    report(problem, figures, options.rounds)


def ways(options: argparse.Namespace) -> list[str]:
    """Those asked for; R with a reference alone, beside A; recorded steps on a GPU alone."""
    known = WAYS[options.family]
    apart = {"R"} if torch.cuda.is_available() else {"R", "graphed"}
    names = options.ways.split(",") if options.ways else [n for n in known if n not in apart]
    if options.reference is not None and "R" not in names:
        names.insert(names.index("A") + 1 if "A" in names else len(names), "R")
    unknown = set(names) - set(known)
    if unknown:
        raise SystemExit(f"{', '.join(sorted(unknown))}: no way of the family {options.family}.")
    return names


def measure(
    workers: dict[str, tuple[Any, Connection]], rounds: int, warm_up: int
) -> dict[str, Figures]:
    found: dict[str, Figures] = {name: Figures([], 0.0, 0.0) for name in workers}
    for _, connection in workers.values():  # all at once: some compile
        connection.send("step")
    for _, connection in workers.values():
        connection.recv()
    for round_ in range(warm_up + rounds):
        for name in random.sample(list(workers), len(workers)):
            connection = workers[name][1]
            connection.send("step")
            seconds, peak, loss = connection.recv()
            if round_ >= warm_up:
                found[name].seconds.append(seconds)
            found[name].peak_gigabytes, found[name].loss = peak, loss
    for process, connection in workers.values():
        connection.send("stop")
        process.join()
    return found


def serve(name: str, problem: Problem, connection: Connection) -> None:
    """A way's process: one step whenever it is told to."""
    torch.manual_seed(0)
    if name == "R":  # else its imports would be part of its peak
        import_reference(problem.reference)
    imported = resident_gigabytes()
    way = build(name, problem)
    connection.send(way.what)
    cuda = problem.device == "cuda"
    while connection.recv() == "step":
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter() if cuda else time.process_time()
        loss = way.step()
        if cuda:
            torch.cuda.synchronize()
        seconds = (time.perf_counter() if cuda else time.process_time()) - began
        peak = (
            torch.cuda.max_memory_allocated() / 1e9
            if cuda
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9 - imported
        )
        connection.send((seconds, peak, loss))


def resident_gigabytes() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e9


def report(problem: Problem, figures: dict[str, Figures], rounds: int) -> None:
    cuda = problem.device == "cuda"
    machine = torch.cuda.get_device_name() if cuda else cpu_name()
    threads = "" if cuda else f", {torch.get_num_threads()} thread(s)"
    print(
        f"\n{machine}{threads}, torch {torch.__version__}, {problem.precision}, {problem.size}, "
        f"{problem.crops} crops of {problem.seconds:g} s, {rounds} rounds\n"
    )
    unit, scale = ("ms", 1e3 / problem.crops) if cuda else ("CPU s", 1.0 / problem.crops)
    columns = ["way", f"{unit} per crop (min - max)", "crops/s", "of ours", "peak GB"]
    columns += ["MFU"] if cuda else []
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    ours = statistics.median(figures["ours"].seconds) if "ours" in figures else None
    peak = matrix_peak() if cuda else 0.0
    for name, found in figures.items():
        median = statistics.median(found.seconds)
        low, high = scale * min(found.seconds), scale * max(found.seconds)
        row = [
            name,
            f"{scale * median:.3g} ({low:.3g} - {high:.3g})",
            f"{problem.crops / median:.3g}",
            "-" if ours is None else f"{median / ours:.2f}x",
            f"{found.peak_gigabytes:.2f}",
        ]
        if cuda:
            row.append(f"{train_flops(problem) * problem.crops / median / peak:.1%}")
        print(f"| {' | '.join(row)} |")


def matrix_peak() -> float:
    """FLOP/s of a large matrix product in bfloat16, here and now."""
    a = torch.randn(_PEAK_SIDE, _PEAK_SIDE, device="cuda", dtype=torch.bfloat16)
    times = []
    for _ in range(20):
        torch.cuda.synchronize()
        began = time.perf_counter()
        a @ a
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * _PEAK_SIDE**3 / statistics.median(times)


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", choices=list(WAYS), default="mert")
    parser.add_argument("--size", choices=["95M", "330M"], default="95M")
    parser.add_argument("--crops", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--ways", help="comma-separated; all by default")
    parser.add_argument(
        "--reference", type=Path, help="source tree of fairseq: measures the original, R, as well"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
