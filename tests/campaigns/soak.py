"""Half an hour left alone, and half an hour with a kill every two minutes: memory, and the end.

    python tests/campaigns/soak.py [--minutes 30] [--kill-every 120] [--paradigm mert]

Two runs of the same tiny recipe side by side, with as many updates as are made in that time. The
one is watched: resident memory and open files of the trainer and its loader worker, every five
seconds. The other dies of SIGKILL again and again and is started again. Memory must stay flat once
it is warm (a line through the second two thirds rises by less than a megabyte in ten minutes), and
both must end with the same weights, and the same metrics line by line.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

sys.path[:0] = [str(Path(__file__).parents[1])]
from campaigns.chain_kill import Moment, start, wait_or_kill  # noqa: E402
from campaigns.tiny_runs import PARADIGMS, lines, make_corpus, write_recipe  # noqa: E402

SAMPLE_SECONDS = 5.0
TRIAL_UPDATES = 400
EVERY = 200
"""Updates between checkpoints."""


@dataclass
class Watch:
    """Samples of a process: seconds, megabytes, open files."""

    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def add(self, seconds: float, pid: int) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            files = len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:  # it has ended
            return
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        self.seconds.append(seconds)
        self.megabytes.append(int(resident.split()[1]) / 1024)
        self.files.append(files)

    def growth(self) -> float:
        """Megabytes in ten minutes, by a line through the second two thirds."""
        warm = len(self.seconds) // 3
        slope = np.polyfit(self.seconds[warm:], self.megabytes[warm:], 1)[0]
        return float(600 * slope)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--kill-every", type=float, default=120.0, help="seconds")
    parser.add_argument("--paradigm", choices=list(PARADIGMS), default="mert")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = write_recipe(folder, options.paradigm, make_corpus(folder), dropout=0.1, stage=0)
        lengthen(recipe, TRIAL_UPDATES)
        speed = measured_speed(recipe, folder / "trial")
        updates = max(2 * EVERY, round(60 * options.minutes * speed))
        lengthen(recipe, updates)
        print(f"{updates} updates, {speed:.1f} per second when two runs go on", flush=True)
        mistakes = soak(recipe, folder, options.kill_every, random.Random(options.seed))
    for mistake in mistakes:
        print(mistake)
    return 1 if mistakes else 0


def soak(recipe: Path, folder: Path, kill_every: float, generator: random.Random) -> list[str]:
    alone, killed = folder / "alone", folder / "killed"
    began, kills = time.monotonic(), 0
    watched = start(recipe, alone, 1, True)
    other, killed_at = start(recipe, killed, 1, True), began
    trainer, worker = Watch(), Watch()
    next_sample = began
    while watched.poll() is None or other.poll() is None:
        time.sleep(0.2)
        now = time.monotonic()
        if now >= next_sample and watched.poll() is None:
            next_sample += SAMPLE_SECONDS
            trainer.add(now - began, watched.pid)
            for child in children(watched.pid)[:1]:
                worker.add(now - began, child)
        if other.poll() is None and now - killed_at > kill_every * generator.uniform(0.8, 1.2):
            kills += wait_or_kill(other, Moment(killed, 0, False, 0.0))
            other.communicate()
            other, killed_at = start(recipe, killed, 1, True), now
    minutes = (time.monotonic() - began) / 60
    for name, watch in (("trainer", trainer), ("loader worker", worker)):
        print(
            f"{name}: {watch.megabytes[len(watch.megabytes) // 3]:.1f} MB when warm, "
            f"{watch.megabytes[-1]:.1f} MB at the end, {watch.growth():+.2f} MB in ten minutes; "
            f"{min(watch.files)} to {max(watch.files)} open files"
        )
    print(f"{minutes:.1f} minutes, {kills} kills")
    return [*judge_memory(trainer, worker), *judge_end(watched, other, alone, killed)]


def judge_memory(*watches: Watch) -> list[str]:
    return [f"memory grows: {w.growth():+.2f} MB in ten minutes" for w in watches if w.growth() > 1]


def judge_end(
    watched: "subprocess.Popen[str]", other: "subprocess.Popen[str]", alone: Path, killed: Path
) -> list[str]:
    mistakes = []
    for process, run in ((watched, alone), (other, killed)):
        said = process.communicate()[1]
        if process.returncode:
            mistakes.append(f"{run.name} ended with {process.returncode}: {said[-1000:]}")
    one, two = ([without_times(line) for line in lines(run)] for run in (alone, killed))
    if one != two:
        mistakes.append("the runs' metrics differ")
    names = ("encoder.safetensors", "engine/engine/mp_rank_00_model_states.pt")
    newest = [max(run.glob("checkpoints/step-????????")) for run in (alone, killed)]
    for name in names:
        contents = [(checkpoint / name).read_bytes() for checkpoint in newest]
        if contents[0] != contents[1]:
            mistakes.append(f"{name} of the runs' ends differ")
    if not mistakes:
        print(f"{len(one)} lines of metrics and the files of {newest[0].name}: no difference")
    return mistakes


def without_times(line: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in line.items() if not key.startswith("perf/")}


def measured_speed(recipe: Path, run: Path) -> float:
    """Updates per second of one of two runs that share the machine."""
    pair = [start(recipe, run.with_name(f"{run.name}-{n}"), 1, True) for n in range(2)]
    for process in pair:
        said = process.communicate()[1]
        if process.returncode:
            raise SystemExit(f"the trial failed: {said}")
    speeds = [line["perf/crops_per_second"] for line in lines(run.with_name(f"{run.name}-0"))]
    return float(np.median(speeds)) / 4  # crops per update


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(c) for task in tasks for c in (task / "children").read_text().split()]


def lengthen(recipe: Path, updates: int) -> None:
    values = yaml.safe_load(recipe.read_text())
    values["train"]["max_steps"] = updates
    values["checkpoint"]["every_steps"] = EVERY
    values["logging"] |= {"every_steps": 20, "valid_every_steps": 1000}
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))


if __name__ == "__main__":
    sys.exit(main())
