"""Runs are killed again and again, and must end as if nothing had been.

    python tests/campaigns/chain_kill.py [--kills 100] [--seed S] [--ranks 1 2] [--stage 0]
        [--saving waited behind]

A MERT-like and a music2vec-like run, tiny but real: plain python or torchrun, DeepSpeed, shards, a
checkpoint every few updates. Every process of a run dies of SIGKILL at a random instant: one time
of four while it starts, one of four while a checkpoint is being written, else some updates after it
began. The same command is given again until the run is done; then the next run begins, until all
kills are used. With `--ranks 1 2` every start draws how many there are; with `--saving waited
behind`, whether training waits until a checkpoint is written or goes on meanwhile.

Every line of metrics that was ever written must be that of a run which was left alone: bit for bit
with one rank, to 1e-6 once another number has taken part (without dropout, which every rank draws
for itself). No start may fail. A kill may cost the updates since the last checkpoint was due; where
saving goes on behind training, those before it too, if it was not published yet: a save waits for
the one before.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from campaigns.tiny_runs import (  # noqa: E402
    EVERY,
    PARADIGMS,
    TRAIN,
    UPDATES,
    lines,
    make_corpus,
    write_recipe,
)

BIN = Path(sys.executable).parent


@dataclass
class Tally:
    """What a campaign saw."""

    kills: int = 0
    starts: int = 0
    runs: int = 0
    in_start: int = 0
    """Kills before the first update of a start."""
    in_save: int = 0
    """Kills that left a draft of a checkpoint."""
    changes: int = 0
    """Starts with another number of ranks than the one before."""
    compared: int = 0
    """Lines of metrics."""
    repeated: int = 0
    """Most updates that one kill made a run repeat."""
    mistakes: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1])
    parser.add_argument("--stage", type=int, default=0, choices=[0, 1, 2], help="of ZeRO")
    parser.add_argument("--paradigms", nargs="+", default=list(PARADIGMS), choices=list(PARADIGMS))
    parser.add_argument("--saving", nargs="+", default=["waited"], choices=["waited", "behind"])
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder))
        for number, name in enumerate(options.paradigms):
            count = len(options.paradigms)
            kills = options.kills // count + (number < options.kills % count)
            dropout = 0.1 if set(options.ranks) == {1} else 0.0
            recipe = write_recipe(Path(folder), name, corpus, dropout=dropout, stage=options.stage)
            generator = random.Random(options.seed + number)
            tally = campaign(recipe, kills, options.ranks, options.saving, generator)
            print(f"{name}: {describe(tally)}", flush=True)
            for mistake in tally.mistakes:
                print(f"  {mistake}")
            failed = failed or bool(tally.mistakes)
    return 1 if failed else 0


def describe(tally: Tally) -> str:
    return (
        f"{tally.kills} kills ({tally.in_start} before the first update of a start, "
        f"{tally.in_save} while saving) in {tally.starts} starts of {tally.runs} runs, "
        f"{tally.changes} changes of ranks; {tally.compared} lines compared, at most "
        f"{tally.repeated} updates repeated; {len(tally.mistakes)} mistakes"
    )


def campaign(
    recipe: Path, kills: int, ranks: list[int], saving: list[str], generator: random.Random
) -> Tally:
    """Kills runs of a recipe, ``kills`` times in all."""
    alone = recipe.with_name(f"{recipe.stem}-alone")
    began = time.monotonic()
    done = start(recipe, alone, 1, False)
    said = done.communicate()[1]
    if done.returncode:
        raise SystemExit(f"the run that is left alone failed: {said}")
    seconds = time.monotonic() - began
    reference = {line["step"]: line for line in lines(alone)}
    tally = Tally()
    while tally.kills < kills:
        run = recipe.with_name(f"{recipe.stem}-{tally.runs}")
        tally.runs += 1
        kill_one_run(recipe, run, seconds, reference, kills, ranks, saving, generator, tally)
    return tally


def kill_one_run(
    recipe: Path,
    run: Path,
    seconds: float,
    reference: dict[int, dict[str, Any]],
    kills: int,
    ranks: list[int],
    saving: list[str],
    generator: random.Random,
    tally: Tally,
) -> None:
    """Starts and kills one run until it is done or the kills are used up; then it may end."""
    mixed, before, reached = False, None, 0
    while True:
        size = generator.choice(ranks)
        mixed = mixed or size != 1
        tally.changes += before is not None and size != before
        before = size
        tally.starts += 1
        behind = generator.choice(saving) == "behind"
        process = start(recipe, run, size, behind)
        killed = tally.kills < kills and reached < UPDATES  # else it would never end
        if killed:
            killed = wait_or_kill(process, Moment.draw(generator, seconds, run, reached))
        said = process.communicate()[1]
        written = list(lines(run))
        compare(written, reference, mixed, run, tally)
        last = written[-1]["step"] if written else 0
        if not killed:
            if process.returncode:
                tally.mistakes.append(f"{run.name}: start {tally.starts} failed: {said[-2000:]}")
                return
            if [line["step"] for line in written] != list(range(1, UPDATES + 1)):
                tally.mistakes.append(f"{run.name}: lines are missing or double")
            return
        tally.kills += 1
        tally.in_start += last <= reached
        drafts = list(run.glob("checkpoints/*.tmp"))
        tally.in_save += bool(drafts)
        saved = max((int(p.name[5:]) for p in run.glob("checkpoints/step-????????")), default=0)
        tally.repeated = max(tally.repeated, last - saved)
        # What this start has not written tells of the one before.
        if last > reached and last - saved >= (2 * EVERY if behind else EVERY + 1):
            tally.mistakes.append(f"{run.name}: update {last} reached, but only {saved} is saved")
        reached = last


@dataclass
class Moment:
    """When to kill."""

    run: Path
    updates: int
    """Lines of metrics that must be there."""
    saving: bool
    """Whether a draft of a checkpoint must be there."""
    delay: float
    """Seconds after that."""
    begun: float = field(default_factory=time.time)

    @staticmethod
    def draw(generator: random.Random, seconds: float, run: Path, reached: int) -> "Moment":
        kind = generator.random()
        if kind < 0.25:
            return Moment(run, 0, False, generator.uniform(0.1, seconds))
        updates = min(UPDATES, reached + generator.randint(1, 3 * EVERY))
        return Moment(run, updates, kind < 0.5, generator.uniform(0.0, 0.02 if kind < 0.5 else 0.2))

    def has_come(self) -> bool:
        if self.updates and len(list(lines(self.run))) < self.updates:
            return False
        drafts = self.run.glob("checkpoints/*.tmp")  # one may be left of a kill before
        return not self.saving or any(made_after(path, self.begun) for path in drafts)


def made_after(path: Path, begun: float) -> bool:
    try:
        return path.stat().st_mtime >= begun
    except OSError:  # published meanwhile
        return False


def wait_or_kill(process: "subprocess.Popen[str]", moment: Moment) -> bool:
    """Whether it had to be killed: it and all that it started."""
    while process.poll() is None and not moment.has_come():
        time.sleep(0.002)
    try:
        process.wait(moment.delay)
        return False
    except subprocess.TimeoutExpired:
        family = [process.pid, *descendants(process.pid)]
        for pid in family:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return True


def descendants(pid: int) -> Iterator[int]:
    """Processes below ``pid``; stopped first, so that none begins another meanwhile."""
    try:
        os.kill(pid, signal.SIGSTOP)
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(c) for task in tasks for c in (task / "children").read_text().split()]
    except (OSError, ProcessLookupError):
        return
    for child in children:
        yield child
        yield from descendants(child)


def compare(
    written: list[dict[str, Any]],
    reference: dict[int, dict[str, Any]],
    mixed: bool,
    run: Path,
    tally: Tally,
) -> None:
    for line in written:
        tally.compared += 1
        expected = reference[line["step"]]
        for key, value in expected.items():
            if key.startswith("perf/"):
                continue
            got = line.get(key)
            near = got is not None and abs(got - value) <= 1e-6 * max(abs(value), 1e-9)
            if got != value and not (mixed and near):
                tally.mistakes.append(f"{run.name}: {key} of update {line['step']}: {got}, {value}")
                return


def start(recipe: Path, run: Path, ranks: int, behind: bool) -> "subprocess.Popen[str]":
    launcher = [sys.executable]
    if ranks > 1:
        launcher = [str(BIN / "torchrun"), "--standalone", "--nproc_per_node", str(ranks)]
    return subprocess.Popen(
        [
            *launcher,
            *map(str, (TRAIN, recipe, f"run.dir={run}")),
            f"checkpoint.asynchronous={str(behind).lower()}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


if __name__ == "__main__":
    sys.exit(main())
