"""A NaN on one of two ranks: both must decide the same, every time, and stay finite.

    torchrun --nproc_per_node 2 tests/campaigns/nan_on_a_rank.py [--nans 50] [--seed S]

Two real ranks train a MERT-like and a music2vec-like model, tiny, on real shards, under DDP and
DeepSpeed's ZeRO 0, 1 and 2, in fp32 and bf16, in turn. At random updates one sample of one
micro-batch of one rank is not a number (or infinite). Checked after every update: both ranks say
the same of it; what was poisoned is thrown away and nothing else is; parameters, moments and the
teacher are finite, equal on both ranks, and unchanged by what was thrown away; and the losses of
clean updates are those of a run in which the poisoned updates never were. At the end a whole run
has more of them on one rank than it bears: both go back, and its lines are those of a run without.
"""

import argparse
import itertools
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from etude.data.batch import AudioBatch, scaled
from etude.data.pipeline import training_batches
from etude.pretrain import assemble
from etude.pretrain.assemble import build_engine, build_objective
from etude.pretrain.config_file import load_config
from etude.pretrain.distributed import complete_environment, current_world
from etude.pretrain.engine import Engine
from etude.pretrain.inputs import check_inputs
from etude.pretrain.random import seed_dropout
from etude.pretrain.run_folder import RunFolder
from etude.pretrain.running import train
from etude.pretrain.watchdog import Watchdog

sys.path[:0] = [str(Path(__file__).parents[1])]
from campaigns.tiny_runs import PARADIGMS, lines, make_corpus, write_recipe  # noqa: E402

ENGINES = ("ddp", 0, 1, 2)
PRECISIONS = ("fp32", "bf16")
UPDATES = 8
"""Of one training; two or three of them are poisoned."""


@dataclass
class Tally:
    """What a campaign saw."""

    nans: int = 0
    trainings: int = 0
    mistakes: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nans", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    complete_environment()
    torch.set_num_threads(1)
    tally = Tally()
    with tempfile.TemporaryDirectory() as own:
        folder = Path(shared(own))
        recipes = make_recipes(folder)
        generator = random.Random(options.seed)
        for case in itertools.cycle(itertools.product(PARADIGMS, ENGINES, PRECISIONS)):
            if tally.nans >= options.nans or tally.mistakes:
                break
            poison = draw(generator, min(3, options.nans - tally.nans))
            try_one(recipes[case[0]], case, poison, tally)
        go_back(recipes["music2vec"], folder, tally)
        dist.barrier()
    if dist.get_rank() == 0:
        print(f"{tally.nans} NaNs in {tally.trainings} trainings, {len(tally.mistakes)} mistakes")
    for mistake in tally.mistakes:
        print(f"rank {dist.get_rank()}: {mistake}")
    dist.destroy_process_group()
    return 1 if tally.mistakes else 0


def draw(generator: random.Random, most: int) -> dict[int, tuple[int, int, float]]:
    """By update: the rank, the micro-batch and the value that is put in."""
    updates = generator.sample(range(1, UPDATES - 1), min(most, generator.choice([2, 3])))
    values = (float("nan"), float("inf"))
    return {
        u: (generator.randrange(2), generator.randrange(2), generator.choice(values))
        for u in updates
    }


def try_one(
    recipe: Path,
    case: tuple[str, object, str],
    poison: dict[int, tuple[int, int, float]],
    tally: Tally,
) -> None:
    """Trains with these updates poisoned, and without their data, and compares."""
    tally.trainings += 1
    tally.nans += len(poison)
    words = [f"train.precision={case[2]}", "train.global_batch=8"]
    words += (
        ["train.engine=ddp"]
        if case[1] == "ddp"
        else [f"deepspeed.zero_optimization.stage={case[1]}"]
    )
    where = f"{case}, poisoned {poison}"
    poisoned = Training(recipe, words)
    clean = Training(recipe, words)
    for update in range(UPDATES):
        before = poisoned.state()
        loss, skipped = poisoned.update(update, poison.get(update))
        after = poisoned.state()
        if len(set(everywhere(skipped))) != 1:
            tally.mistakes.append(f"{where}: the ranks disagree on update {update}")
        if skipped != (update in poison):
            tally.mistakes.append(f"{where}: update {update} skipped: {skipped}")
        if not all(torch.isfinite(value).all() for value in after.values()):
            tally.mistakes.append(f"{where}: not finite after update {update}")
        if not same_everywhere(after):
            tally.mistakes.append(f"{where}: the ranks differ after update {update}")
        if update in poison:
            if any(not torch.equal(before[name], value) for name, value in after.items()):
                tally.mistakes.append(f"{where}: update {update} left a trace")
            continue
        if (loss, skipped) != clean.update(update, None):
            tally.mistakes.append(f"{where}: update {update} is not that of a clean run")
    if any(not torch.equal(clean.state()[k], value) for k, value in poisoned.state().items()):
        tally.mistakes.append(f"{where}: the end is not that of a clean run")


class Training:
    """One run's objective under its engine, on this rank."""

    def __init__(self, recipe: Path, words: list[str]) -> None:
        config = load_config(recipe, words)
        world = current_world()
        self.inputs = check_inputs(config, rank=world.rank, ranks=world.size, device="cpu")
        self.objective = build_objective(config, self.inputs)
        self.engine: Engine = build_engine(self.objective, config, world, self.inputs.share)
        self.rank, self.seed = world.rank, config.seed

    def update(self, update: int, poison: tuple[int, int, float] | None) -> tuple[float, bool]:
        """One update of the data that belongs to it; its loss, and whether it was thrown away."""
        losses = []
        for number, batch in enumerate(self.batches(update)):
            if poison is not None and poison[:2] == (self.rank, number):
                batch = batch._replace(waveform=scaled(batch.waveform))
                batch.waveform[0, 1000] = poison[2]
            seed_dropout(self.seed, update, number, self.rank)
            losses.append(float(self.engine.accumulate(batch).loss.detach()))
        result = self.engine.update(1e-3)
        if not result.skipped:
            self.objective.after_step(update)
        return sum(losses), result.skipped

    def batches(self, update: int) -> Iterator[AudioBatch]:
        return itertools.islice(
            training_batches(
                self.inputs.train,
                self.inputs.share,
                first_update=update,
                workers=0,
                pin_memory=False,
            ),
            self.inputs.share.micro_batches,
        )

    def state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.objective.state_dict().items()}


def go_back(recipe: Path, folder: Path, tally: Tally) -> None:
    """A run whose second rank hears three updates that cannot be borne, and one without them."""
    words = ["train.max_steps=16", "train.max_skipped_updates=2", "train.skip_window=10"]
    unbearable, passed_over = (9, 10, 11), (8, 9, 10, 11)  # 8: the checkpoint that is gone back to
    states = []
    for name, kept in (("poisoned", ()), ("clean", passed_over)):
        poisoned = unbearable if name == "poisoned" and dist.get_rank() == 1 else ()
        assemble.training_batches = partial(batches_but, poisoned, kept)
        config = load_config(recipe, [*words, f"run.dir={folder / name}"])
        world = current_world()
        inputs = check_inputs(config, rank=world.rank, ranks=world.size, device="cpu")
        run = RunFolder(config.run.dir)
        if world.is_main:
            run.start(config)
        dist.barrier()
        with Watchdog(run, rank=world.rank, ranks=world.size, limit=300.0) as watchdog:
            states.append(train(config, inputs, world, run, watchdog).state)
    if set(everywhere((states[0].rollbacks, states[0].passed_over))) != {(1, 4)}:
        tally.mistakes.append(f"going back: {states[0]}")
    ignored = ("perf/", "data/epochs", "optim/skipped_updates", "optim/rollbacks")
    one, other = (
        [{k: v for k, v in line.items() if not k.startswith(ignored)} for line in lines(run)]
        for run in (folder / "poisoned", folder / "clean")
    )
    if one != other or [line["step"] for line in one] != list(range(1, 17)):
        tally.mistakes.append("going back: the lines are not those of a clean run")


def batches_but(
    poisoned: Sequence[int], passed_over: Sequence[int], *given: Any, **named: Any
) -> Iterator[AudioBatch]:
    for batch in training_batches(*given, **named):
        if int(batch.update) in poisoned:
            batch = batch._replace(waveform=scaled(batch.waveform))
            batch.waveform[0, 1000] = float("nan")
        if int(batch.update) not in passed_over:
            yield batch


def everywhere(value: object) -> list[Any]:
    """The value of every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def same_everywhere(state: dict[str, Tensor]) -> bool:
    sums = repr([float(value.double().sum()) for value in state.values()])
    return len(set(everywhere(sums))) == 1


def shared(folder: str) -> str:
    """Rank 0's folder, on every rank; the first thing that ranks say to each other."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    found = [folder]
    dist.broadcast_object_list(found)
    return found[0]


def make_recipes(folder: Path) -> dict[str, Path]:
    if dist.get_rank() == 0:
        corpus = make_corpus(folder)
        for name in PARADIGMS:
            write_recipe(folder, name, corpus, dropout=0.1, stage=0)
    dist.barrier()
    return {name: folder / f"{name}.yaml" for name in PARADIGMS}


if __name__ == "__main__":
    sys.exit(main())
