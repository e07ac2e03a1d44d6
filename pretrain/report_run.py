"""What a run's folder tells: its curves, its configuration, how it ended.

Everything but the curves may be missing: a run that is still going, or was killed, has a page too.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from etude.data.errors import InputError
from etude.pretrain.config_file import flatten, parse_yaml
from etude.pretrain.errors import ConfigError

METRICS_NAME = "metrics.jsonl"
CONFIG_NAME = "config.yaml"
EXIT_NAME = "EXIT.json"

_LARGEST = 1e300
"""What is larger has no room above it for an axis, and counts as not finite."""

Ends = tuple[tuple[float, ...], tuple[float, ...]]
"""Low and high ends, one for each value."""


@dataclass(frozen=True)
class Series:
    """One quantity over steps, or over layers."""

    steps: tuple[float, ...]
    values: tuple[float, ...]
    """NaN where a value was logged that was not finite."""

    ends: Ends | None = None
    """Of an interval at each value, where it has one; NaN where it does not."""


@dataclass(frozen=True)
class Metrics:
    """The content of ``metrics.jsonl``."""

    records: tuple[dict[str, float], ...]
    """One per readable line, in order; every one has ``step``."""

    unreadable_lines: int
    """Lines that are no record, such as the last one of a run that was killed while writing it."""

    ends: Mapping[str, Ends] = field(default_factory=dict)
    """By quantity: lowest and highest of several trainings, where the values are their means."""

    def series(self, name: str) -> Series:
        """All values of a quantity by step; empty where it was never logged."""
        pairs = [(r["step"], r[name]) for r in self.records if name in r]
        # What belongs to an update that lies behind, such as a probe's answer, is logged later.
        pairs.sort(key=lambda pair: pair[0])
        steps, values = tuple(step for step, _ in pairs), tuple(value for _, value in pairs)
        return Series(steps, values, self.ends.get(name))

    @property
    def names(self) -> list[str]:
        """Every quantity but ``step``, in the order of first appearance."""
        names = dict.fromkeys(name for record in self.records for name in record)
        return [name for name in names if name != "step"]

    def last(self, name: str, *, until_step: int | None = None) -> float | None:
        """The newest value of a quantity, at a step or before."""
        for record in reversed(self.records):
            if name in record and (until_step is None or record["step"] <= until_step):
                return record[name]
        return None


@dataclass(frozen=True)
class ReportRun:
    """A run as the report sees it."""

    name: str
    folder: Path
    metrics: Metrics

    config: dict[str, Any] | None
    """``config.yaml`` by section, and ``versions``; ``None`` where there is none."""

    config_text: str | None
    """The same, as written."""

    exit: dict[str, Any] | None
    """``EXIT.json``; ``None`` while a run is going, or after a kill."""

    is_reference: bool = False
    """Whether it is a curve to hold the others against, of several trainings together."""

    @property
    def flat_config(self) -> dict[str, Any]:
        """``key.path`` to value."""
        return dict(flatten(self.config or {}))

    def setting(self, key: str) -> float | None:
        """A number of the configuration; ``None`` where there is none."""
        value = self.flat_config.get(key)
        return _number(value) if _is_number(value) else None


def read_run(folder: Path) -> ReportRun:
    """Reads a run's folder.

    :raises InputError: if it is none.
    """
    if not folder.is_dir():
        raise InputError(f"there is no run folder {folder}.")
    if not (folder / METRICS_NAME).is_file():
        raise InputError(
            f"{folder} must be the folder of a run that has logged a step, but holds no "
            f"{METRICS_NAME}."
        )
    text, config = read_config(folder)
    return ReportRun(
        folder.resolve().name,
        folder,
        read_metrics(folder / METRICS_NAME),
        config,
        text,
        _read_exit(folder / EXIT_NAME),
    )


def told_apart(runs: Sequence[ReportRun]) -> list[ReportRun]:
    """Folders of equal names go by as much of their paths as tells them apart."""
    named = []
    for run in runs:
        same = [other for other in runs if other.name == run.name]
        if len(same) == 1:
            named.append(run)
            continue
        paths = [other.folder.resolve().parts for other in same]
        own = run.folder.resolve().parts
        depth = next(
            (n for n in range(1, len(own)) if [p[-n:] for p in paths].count(own[-n:]) == 1),
            len(own),  # the same run twice
        )
        named.append(replace(run, name=str(Path(*own[-depth:]))))
    return named


def read_metrics(path: Path) -> Metrics:
    """Reads ``metrics.jsonl``, passing over what is no record."""
    records: list[dict[str, float]] = []
    unreadable = 0
    # A kill may cut inside a character too.
    for line in path.read_text(errors="replace").splitlines():
        if not line.strip():
            continue
        record = _record(line)
        if record is None:
            unreadable += 1
        else:
            records.append(record)
    return Metrics(tuple(records), unreadable)


def read_config(folder: Path) -> tuple[str | None, dict[str, Any] | None]:
    """``config.yaml`` as text and as values.

    Read as plain values rather than as a :class:`Config`: an older run must stay readable when keys
    have changed since.

    :raises InputError: if it is not what a run writes.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        return None, None
    try:
        text = path.read_text(encoding="utf-8")
        content = parse_yaml(text, str(path))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} must be the configuration as text, but is not ({error})."
        ) from error
    except ConfigError as error:
        raise InputError(str(error)) from error
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise InputError(f"{path} must hold the configuration under the key `config`.")
    # Another version of torch is a difference between two runs too.
    return text, {**content["config"], "versions": content.get("versions", {})}


def describe_targets(config: dict[str, Any] | None) -> str:
    """What was predicted, such as ``masked prediction (kmeans, cqt)``."""
    objective = (config or {}).get("objective")
    targets = objective.get("targets") if isinstance(objective, dict) else None
    if not isinstance(targets, dict):
        return "masked prediction"
    words = {"kmeans": "k-means", "cqt": "CQT", "codec": "codec tokens", "teacher": "EMA teacher"}
    kinds = [target.get("kind") for target in targets.values() if isinstance(target, dict)]
    named = dict.fromkeys(words.get(str(kind), str(kind)) for kind in kinds)
    return f"masked prediction ({', '.join(named)})"


def step_of(checkpoint: Path) -> int | None:
    """The step in a checkpoint's name, ``step-00000020``; other names, such as one being written,
    have none.
    """
    match = re.fullmatch(r"step-(\d+)", checkpoint.name)
    return int(match[1]) if match else None


def _record(line: str) -> dict[str, float] | None:
    try:
        values = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    # The trainer writes null for what is not finite, for JSON has no word for it.
    record = {name: _number(v) for name, v in values.items() if v is None or _is_number(v)}
    return record if math.isfinite(record.get("step", math.nan)) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float | None) -> float:
    try:
        number = math.nan if value is None else float(value)
    except OverflowError:  # hundreds of digits
        return math.nan
    return number if abs(number) < _LARGEST else math.nan


def _read_exit(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return None
    return values if isinstance(values, dict) else None
