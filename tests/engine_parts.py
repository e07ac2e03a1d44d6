"""Engines and runs in a world of one, built as a run builds them."""

import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from etude.data.batch import AudioBatch, scaled
from etude.data.pipeline import training_batches
from etude.pretrain.assemble import build_engine, build_objective
from etude.pretrain.checkpoint import step_of
from etude.pretrain.config_file import load_config
from etude.pretrain.distributed import World
from etude.pretrain.engine import UpdateResult
from etude.pretrain.inputs import check_inputs
from etude.pretrain.run_folder import RunFolder
from etude.pretrain.running import train
from etude.pretrain.trainer import Trainer
from etude.pretrain.watchdog import Watchdog

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
LR = 1e-3
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

DDP = ("train.engine=ddp",)
STAGES = [(f"deepspeed.zero_optimization.stage={stage}",) for stage in (0, 1, 2)]
ENGINES = [pytest.param(DDP, id="ddp")]
ENGINES += [pytest.param(words, id=f"stage {stage}") for stage, words in enumerate(STAGES)]


class Update(NamedTuple):
    """What one update of all its micro-batches gave."""

    loss: float
    grad_norm: float
    skipped: bool


class Training:
    """An engine built as a run builds it, and its batches."""

    def __init__(self, recipe: Path, *words: str) -> None:
        config = load_config(recipe, words)
        self.inputs = check_inputs(config, rank=0, ranks=1, device="cpu")
        self.objective = build_objective(config, self.inputs)
        self.engine = build_engine(self.objective, config, ALONE, self.inputs.share)

    def batches(self, first_update: int) -> Iterator[AudioBatch]:
        return training_batches(
            self.inputs.train,
            self.inputs.share,
            first_update=first_update,
            workers=0,
            pin_memory=False,
        )

    def train(self, updates: range) -> list[Update]:
        batches = self.batches(updates.start)
        done = []
        for _ in updates:
            losses = [
                self.engine.accumulate(next(batches)).loss.item()
                for _ in range(self.inputs.share.micro_batches)
            ]
            result = self.engine.update(LR)
            loss = sum(losses) / len(losses)
            done.append(Update(loss, result.grad_norm.item(), result.skipped))
        return done

    def train_on_nan(self, update: int, *, micro_batch: int) -> UpdateResult:
        """One update in which a single sample of one micro-batch is not a number."""
        batches = self.batches(update)
        for number in range(self.inputs.share.micro_batches):
            batch = next(batches)
            if number == micro_batch:
                batch = batch._replace(waveform=scaled(batch.waveform))
                batch.waveform[1, 1000] = math.nan
            self.engine.accumulate(batch)
        return self.engine.update(LR)

    def state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.objective.state_dict().items()}


def run(recipe: Path, folder: Path, *words: str) -> Trainer:
    """A whole run in this process, in the folder ``folder``."""
    config = load_config(recipe, [f"run.dir={folder}", *words])
    inputs = check_inputs(config, rank=0, ranks=1, device="cpu")
    run_folder = RunFolder(folder)
    run_folder.start(config)
    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        with Watchdog(run_folder, rank=0, ranks=1, limit=config.train.hang_seconds) as watchdog:
            return train(config, inputs, ALONE, run_folder, watchdog)
    finally:  # a run is the last thing that its process does, and lets nothing interrupt the end
        for number, handler in before.items():
            signal.signal(number, handler)


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).open()]


def saved(folder: Path) -> list[int]:
    return sorted(step_of(path) for path in (folder / "checkpoints").glob("step-*"))
