"""The runs of a question: where each lives, and how far it is.

DIR/VARIANT/seed-S/run.yaml     its resolved config, as it is given to launch/train.py
DIR/VARIANT/seed-S/…            a run's folder like any other; probe/ beside the checkpoints
"""

import fcntl
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from etude.data.files import write_bytes
from etude.pretrain.config import Config
from etude.pretrain.config_file import dump_yaml
from etude.pretrain.errors import ConfigError
from etude.pretrain.report_run import EXIT_NAME
from etude.pretrain.run_folder import RunFolder, read_metrics
from etude.pretrain.sweeps.question import Question

State = Literal["new", "begun", "failed", "done"]


@dataclass(frozen=True)
class SweepRun:
    """One variant with one seed."""

    variant: str
    seed: int
    config: Config

    @property
    def name(self) -> str:
        """What people are shown."""
        return f"{self.variant} seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Its ``run.dir``."""
        return self.config.run.dir

    @property
    def probe(self) -> Path:
        """Where its probe's results are."""
        return self.folder / "probe"

    @property
    def config_path(self) -> Path:
        """Its resolved config as a file."""
        return self.folder / "run.yaml"

    def write_config(self) -> None:
        """Makes the folder with the config that the run is started with."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self.config_path, dump_yaml(self.config).encode())

    def exit(self) -> dict[str, Any]:
        """How it ended, from ``EXIT.json``; empty where it has not."""
        try:
            content = json.loads((self.folder / EXIT_NAME).read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def forget_exit(self) -> None:
        """Takes away how an earlier start ended: it would be taken for the next one's."""
        (self.folder / EXIT_NAME).unlink(missing_ok=True)

    @property
    def state(self) -> State:
        """How far it is."""
        found = self.exit()
        if found.get("code") == 0 and found.get("step", 0) >= self.config.train.max_steps:
            return "done"
        if found.get("code") not in (None, 0, 75):
            return "failed"
        return "begun" if RunFolder(self.folder).metrics.is_file() else "new"

    @property
    def step(self) -> int:
        """Updates that are logged."""
        lines = read_metrics(RunFolder(self.folder).metrics)
        return max((int(line["step"]) for line in lines), default=0)

    @property
    def speed(self) -> float | None:
        """Crops per second over all ranks, median of what was logged; ``None`` before that."""
        lines = read_metrics(RunFolder(self.folder).metrics)
        speeds = [
            line["perf/crops_per_second"] for line in lines if "perf/crops_per_second" in line
        ]
        return statistics.median(speeds) if speeds else None

    def is_training(self) -> bool:
        """Whether a process holds its folder."""
        try:
            with (self.folder / ".lock").open("r+") as lock:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def check_folder(self) -> None:
        """Refuses a folder that holds another run, or a longer one.

        :raises ConfigError: with what differs.
        """
        RunFolder(self.folder).check_config(self.config)
        trained, wanted = self.exit().get("step", 0), self.config.train.max_steps
        if trained > wanted:
            raise ConfigError(
                f"{self.folder} has trained {trained} updates, more than train.max_steps "
                f"({wanted}). Give the old number, or the sweep another `dir`."
            )


def all_runs(question: Question) -> tuple[SweepRun, ...]:
    """Every variant with every seed, seed by seed: a sweep that is cut short has whole pairs.

    :raises ConfigError: if a config or what lies in a folder is not what it should be.
    """
    runs = tuple(
        SweepRun(variant, seed, question.config(variant, seed))
        for seed in question.seeds
        for variant in question.variants
    )
    for run in runs:
        run.check_folder()
    return runs
