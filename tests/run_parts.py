"""``launch/train.py`` as a user runs it: what tests of real processes share."""

import base64
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from training_parts import ROOT

BIN = Path(sys.executable).parent
LAUNCH = ROOT / "launch"
TRAIN = LAUNCH / "train.py"
PYTHON = (sys.executable,)
TORCHRUN = (str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2")

ENVIRONMENT = {
    **os.environ,
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    # Threads share sums differently, and these tensors are too small to share.
    "OMP_NUM_THREADS": "1",
}

Done = subprocess.CompletedProcess[str]
T = TypeVar("T")


def deepspeed(ranks: int) -> tuple[str, ...]:
    return (
        str(BIN / "deepspeed"),
        *("--num_gpus", str(ranks)),
        *("--master_port", str(free_port())),
    )


def deepspeed_launch(ranks: int) -> tuple[str, ...]:
    """What the deepspeed command starts on each node."""
    world = json.dumps({"localhost": list(range(ranks))}).encode()
    return (
        *(sys.executable, "-m", "deepspeed.launcher.launch"),
        f"--world_info={base64.urlsafe_b64encode(world).decode()}",
        f"--master_port={free_port()}",
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def train(*words: object, launcher: Sequence[str] = PYTHON) -> Done:
    return subprocess.run(
        [*launcher, str(TRAIN), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT,
    )


def together(*jobs: Callable[[], T]) -> list[T]:
    with ThreadPoolExecutor(max_workers=2) as pool:
        futures = [pool.submit(job) for job in jobs]
        return [future.result() for future in futures]


@dataclass(frozen=True)
class Run:
    """A run's folder and the commands that made it."""

    folder: Path
    done: tuple[Done, ...]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").open()]

    @property
    def exit(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "EXIT.json").read_text())
        return content

    @property
    def checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("step-*"))

    def files(self) -> dict[str, tuple[int, int]]:
        """Every file with its size and time: what it takes to see that nothing was touched."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]


def run_stages(
    recipe: Path,
    name: str,
    *stages: tuple[tuple[str, ...], int],
    words: Sequence[str] = (),
) -> Run:
    """Trains in the folder ``name`` beside the recipe: launcher and number of updates, in turn."""
    folder = recipe.parent / name
    done = tuple(
        train(recipe, f"run.dir={folder}", f"train.max_steps={steps}", *words, launcher=how)
        for how, steps in stages
    )
    return Run(folder, done)
