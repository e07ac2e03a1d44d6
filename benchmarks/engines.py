"""What an engine costs: DeepSpeed's stages and DistributedDataParallel around the same objective.

    OMP_NUM_THREADS=1 python benchmarks/engines.py [--size 95M] [--crops 4] [--rounds 5]
    OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 benchmarks/engines.py --size small

One update of MERT (codec and CQT heads) on the same crops: forward, backward, clipping, AdamW, as a
run's engine does them. All engines live in each process, in random order within each round (the
same on all ranks); time is CPU time of the process (on a GPU: wall time after a synchronisation),
the slowest rank's, median with its range. With `--size small` hardly anything is computed, and what
is left is the engine itself. `no engine` is plain PyTorch without clipping; with several ranks each
way averages gradients. `--buckets` gives sizes of DeepSpeed's buckets in elements; `--compile` and
`--cuda-graph` do what the settings under `train` do.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import distributed as dist

from etude.data.batch import AudioBatch
from etude.pretrain.compiling import compile_regions
from etude.pretrain.config import Config
from etude.pretrain.config_file import load_config
from etude.pretrain.deepspeed_settings import deepspeed_settings
from etude.pretrain.distributed import World
from etude.pretrain.engine import Engine, move
from etude.pretrain.engine_ddp import DdpEngine
from etude.pretrain.engine_deepspeed import DeepSpeedEngine
from etude.pretrain.masked_prediction import MaskedPrediction
from etude.pretrain.step_graph import graph_steps

sys.path.insert(0, str(Path(__file__).parent))
from step_ways.common import FINAL_DIM, GEOMETRY, Problem, adamw  # noqa: E402
from step_ways.ours import build_objective  # noqa: E402

LR = 1e-5
SMALL = {"layers": 12, "dim": 32, "ffn_dim": 64, "heads": 4}


def main() -> None:
    options = parse()
    world = join()
    if options.size == "small":
        GEOMETRY["small"], FINAL_DIM["small"] = SMALL, 16
    problem = Problem(
        family="mert",
        size=options.size,
        crops=options.crops,
        seconds=options.seconds,
        precision=options.precision,
        device=world.device.type,
    )
    ways = build(problem, options, world)
    batch = AudioBatch(
        problem.waveform(),
        torch.arange(problem.crops) + world.rank * problem.crops,
        torch.tensor(0),
        torch.tensor(0),
        codes={"encodec_24khz": problem.codes()},
    )
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    generator = random.Random(0)
    for round_ in range(options.rounds + 2):
        for name in generator.sample(list(ways), len(ways)):
            dist.barrier()
            began = now(world)
            ways[name](batch)
            passed = torch.tensor(now(world) - began, dtype=torch.float64)
            dist.all_reduce(passed, op=dist.ReduceOp.MAX)
            if round_ > 1:
                seconds[name].append(float(passed))
    if world.is_main:
        report(seconds, problem, options, world)
    dist.destroy_process_group()


def build(
    problem: Problem, options: argparse.Namespace, world: World
) -> dict[str, Callable[[AudioBatch], None]]:
    config = run_config(problem, world)
    ways: dict[str, Callable[[AudioBatch], None]] = {}

    def built() -> MaskedPrediction:
        objective = build_objective(problem, "fast").to(world.device)
        if options.compile and not compile_regions(objective, world.device):
            raise SystemExit("--compile: torch.compile does not work here.")
        if options.cuda_graph:
            graph_steps(objective, world.device)
        return objective

    if world.size == 1:
        ways["no engine"] = bare(problem, built())
    ways["ddp"] = driven(DdpEngine(built(), config, world, micro_batches=1))
    for stage in options.stages:
        for bucket in options.buckets:
            settings = deepspeed_settings(config, micro_batch=problem.crops, ranks=world.size)
            zero = {"stage": stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
            settings["zero_optimization"] = zero
            name = f"DeepSpeed stage {stage}"
            name += f", buckets of {bucket:,}" if len(options.buckets) > 1 else ""
            ways[name] = driven(DeepSpeedEngine(built(), config, settings, world))
    return ways


def bare(problem: Problem, objective: MaskedPrediction) -> Callable[[AudioBatch], None]:
    optimizer = adamw(objective.parameters())

    def update(batch: AudioBatch) -> None:
        with problem.autocast():
            loss = objective(move(batch, torch.device(problem.device))).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return update


def driven(engine: Engine) -> Callable[[AudioBatch], None]:
    def update(batch: AudioBatch) -> None:
        engine.accumulate(batch)
        engine.update(LR)

    return update


def run_config(problem: Problem, world: World) -> Config:
    """A run's settings, of which the engines read precision, batch and optimizer."""
    values: dict[str, Any] = {
        "run": {"dir": "unused"},
        "data": {"corpus": "unused"},
        "objective": {"targets": {"cqt": {"kind": "cqt"}}},
        "train": {
            "max_steps": 1,
            "global_batch": problem.crops * world.size,
            "micro_batch": problem.crops,
            "precision": problem.precision,
        },
        "optim": {"lr": LR, "warmup_steps": 0},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.yaml")
        path.write_text(yaml.safe_dump(values))
        return load_config(path, [])


def join() -> World:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29511")
    cuda = torch.cuda.is_available()
    rank, size, local = (int(os.environ[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    return World(rank=rank, size=size, local_rank=local, device=device)


def now(world: World) -> float:
    if world.device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def report(
    seconds: dict[str, list[float]], problem: Problem, options: argparse.Namespace, world: World
) -> None:
    print(
        f"\n{world.size} rank(s) on {world.device.type}, {torch.get_num_threads()} thread(s), "
        f"torch {torch.__version__}, {problem.size}, {problem.precision}, {problem.crops} crops of "
        f"{problem.seconds:g} s, {options.rounds} rounds\n"
    )
    print("| engine | ms per update (min - max) | of ddp | beyond ddp |\n|---|---|---|---|")
    ddp = statistics.median(seconds["ddp"])
    for name, values in seconds.items():
        median = statistics.median(values)
        shown = f"{1e3 * median:.1f} ({1e3 * min(values):.1f} - {1e3 * max(values):.1f})"
        print(f"| {name} | {shown} | {median / ddp:.3f} | {1e3 * (median - ddp):+.1f} ms |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=["small", "95M", "330M"], default="95M")
    parser.add_argument("--crops", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--buckets", type=int, nargs="+", default=[25_000_000])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cuda-graph", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
