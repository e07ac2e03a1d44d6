"""The run's folder: what is in it, and whether a run may continue there."""

import fcntl
import importlib.metadata
import json
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import yaml
from pydantic import ValidationError

from etude.data.files import json_bytes, write_bytes
from etude.pretrain.config import Config
from etude.pretrain.config_file import as_values, flatten, parse_yaml
from etude.pretrain.errors import ConfigError

_MAY_DIFFER = (
    "train.max_steps",
    "train.micro_batch",
    "train.compile",
    "train.cuda_graph",
    "train.hang_seconds",
    "train.max_rollbacks",
    "train.profile",
    "model.impl",
    "data.workers",
    "data.cache",
    "data.cache_gb",
    "logging.",
    "checkpoint.",
    "health.",
    "probe.",
    "perf.",
)

_PACKAGES = ("etude-music", "torch", "deepspeed", "fairseq2", "nnAudio", "webdataset", "numpy")


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.incidents = path / "incidents.jsonl"
        self.tensorboard = path / "tensorboard"
        self.log = path / "train.log"
        self.profile = path / "profile"
        self.probes = path / "probes"
        self.looks = path / "looks"
        self._config = path / "config.yaml"
        self._exit = path / "EXIT.json"
        self._lock: TextIO | None = None

    def check_config(self, config: Config) -> None:
        """Refuses to continue a run under other settings.

        :raises ConfigError: with the list of differences.
        """
        if not self._config.is_file():
            return
        content = parse_yaml(self._config.read_text(), str(self._config))
        if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
            raise ConfigError(
                f"{self._config} must hold the run's settings under the key `config`. Restore it, "
                "or choose another run.dir."
            )
        old = dict(flatten(with_new_defaults(content["config"])))
        new = dict(flatten(as_values(config)))
        different = [
            f"{key} (was {old.get(key)!r}, now {new.get(key)!r})"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and key != "run.dir" and not key.startswith(_MAY_DIFFER)
        ]
        if different:
            raise ConfigError(
                f"{self.path} holds a run with other settings: {'; '.join(different)}. Continue "
                "it with the old ones, or choose another run.dir."
            )

    def lock(self) -> None:
        """Makes the folder and keeps it for this process until it ends.

        :raises ConfigError: if another process trains in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            # Not flock, which loader workers would hold on to when their parent is killed.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{self.path}: another process is training in this folder. Wait for it, stop it, "
                "or choose another run.dir."
            ) from error

    def start(self, config: Config) -> None:
        """Makes the folder and writes the resolved configuration with versions."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._exit.unlink(missing_ok=True)
        versions = {"python": platform.python_version()}
        for package in _PACKAGES:
            versions[package] = importlib.metadata.version(package)
        content = {"config": as_values(config), "versions": versions}
        write_bytes(self._config, yaml.safe_dump(content, sort_keys=False).encode())

    def write_exit(
        self, *, code: int, reason: str, step: int, rank: int, checkpoint: Path | None
    ) -> None:
        """Says how the run ended, for launchers that change the exit status."""
        content = {
            "code": code,
            "reason": reason,
            "step": step,
            "rank": rank,
            "last_good_checkpoint": None if checkpoint is None else str(checkpoint),
        }
        if self.path.is_dir():
            write_bytes(self._exit, json_bytes(content))


def with_new_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of an earlier version, with the defaults of those that did not exist then."""
    try:
        return as_values(Config.model_validate_json(json.dumps(values)))
    except (ValidationError, TypeError):  # of what YAML knows and JSON does not
        return values  # some are gone by now: compared as they are, and refused by name


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a ``metrics.jsonl``; a last line that a kill tore is left out."""
    if not path.is_file():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def cut_lines(path: Path, step: int) -> None:
    """Drops what was written after ``step``, so that continuing does not write it twice."""
    if path.is_file():
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_bytes(path, text.encode())


def step_folder(folder: Path, step: int) -> Path:
    """Where something of update ``step`` lies in ``folder``."""
    return folder / f"step-{step:08d}"


def step_folders(folder: Path) -> dict[int, Path]:
    """Those that there are, by their update."""
    named = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in folder.glob("step-*"))
    return {int(match[1]): path for match, path in sorted(named, key=str) if match}


def drop_folders(folder: Path, step: int) -> None:
    """Deletes what was made after ``step``, of a history that is given up or comes again."""
    for made, path in step_folders(folder).items():
        if made > step:
            shutil.rmtree(path)
