"""Reference curves: what a recipe's metrics looked like in runs of ours, as a small file.

``docs/curves/NAME.json`` is made of finished runs that differ in their seed alone; the page of
``launch/compare.py`` draws it behind a run with the same objective, at equal audio hours.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from etude.data.errors import InputError
from etude.pretrain.config_file import flatten
from etude.pretrain.report_clock import Clock, read_clock
from etude.pretrain.report_run import Metrics, ReportRun
from etude.pretrain.run_folder import with_new_defaults

_LEFT_OUT = ("audio_hours", "step", "perf/", "data/", "probe/", "look/")
"""What belongs to the machine or the corpus, or is no curve of training, by the beginnings of
names: whether a probe was skipped depends on what else the machine did."""

_MAY_DIFFER = ("seed", "run.dir")
_FITTING = ("objective.", "model.", "data.crop_seconds")
"""Beginnings of the keys that decide what a loss means."""
_FREE = ("model.impl",)
_PLACE = ".centroids"
"""The end of keys that say where labels lie, not what they are."""

_DIGITS = 5

Values = tuple[float | None, ...]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Band(_Section):
    """One metric; ``None`` at updates at which it was not logged, or was not finite."""

    mean: Values
    """Over the seeds."""
    low: Values
    """The smallest of them."""
    high: Values


class ReferenceCurve(_Section):
    """The content of a file."""

    name: str
    config: dict[str, Any]
    """Of all runs; ``seed`` and ``run`` are left out."""
    versions: dict[str, Any]
    commit: str
    """Of the code that trained."""
    hardware: str
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    updates: Annotated[tuple[int, ...], Field(min_length=1)]
    audio_hours: tuple[float, ...]
    """Heard at each of ``updates``."""
    metrics: dict[str, Band]
    """Names as in ``metrics.jsonl``; one value for each of ``updates``."""

    @model_validator(mode="after")
    def _as_long(self) -> "ReferenceCurve":
        lists: list[Values] = [self.audio_hours]
        lists += [
            each for band in self.metrics.values() for each in (band.mean, band.low, band.high)
        ]
        if any(len(each) != len(self.updates) for each in lists):
            raise ValueError("every list must have a value for each of `updates`")
        hours = (0.0, *self.audio_hours)
        if any(later <= earlier for earlier, later in zip(hours, hours[1:], strict=False)):
            raise ValueError("`audio_hours` must rise")
        return self

    def json_bytes(self) -> bytes:
        """The file, a line for each list."""
        values = self.model_dump(mode="json")
        metrics = values.pop("metrics")
        lines = [f" {_compact(key)}: {_compact(value)}" for key, value in values.items()]
        bands = [f"  {_compact(key)}: {_compact(value)}" for key, value in metrics.items()]
        lines.append(' "metrics": {\n' + ",\n".join(bands) + "\n }")
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")

    def misfit(self, config: dict[str, Any]) -> str | None:
        """The first key in which a run predicts something else; ``None`` where the curve fits."""
        ours, theirs = _settings(self.config), _settings(config)
        for key in dict.fromkeys([*ours, *theirs]):
            counts = key.startswith(_FITTING) and key not in _FREE and not key.endswith(_PLACE)
            if counts and ours.get(key) != theirs.get(key):
                return key
        return None

    def differences(self, config: dict[str, Any]) -> list[tuple[str, str, str]]:
        """Other keys that differ: key, here, in the run."""
        ours, theirs = _settings(self.config), _settings(config)
        keys = dict.fromkeys([*ours, *theirs])
        return [
            (key, str(ours.get(key, "-")), str(theirs.get(key, "-")))
            for key in keys
            if ours.get(key) != theirs.get(key) and key not in _MAY_DIFFER
        ]

    def as_run(self, clock: Clock) -> ReportRun | None:
        """For the page, at equal audio hours; ``None`` for a run that logged none.

        :param clock: of the run that it is held against.
        """
        steps = clock.updates_at(self.audio_hours)
        if steps is None:
            return None
        records: list[dict[str, float]] = [{"step": step} for step in steps]
        ends = {}
        for name, band in self.metrics.items():
            there = [n for n, value in enumerate(band.mean) if value is not None]
            for n in there:
                records[n][name] = _float(band.mean[n])
            ends[name] = (
                tuple(_float(band.low[n]) for n in there),
                tuple(_float(band.high[n]) for n in there),
            )
        metrics = Metrics(tuple(records), 0, ends)
        return ReportRun(self.name, Path(), metrics, None, None, None, is_reference=True)


def make_curve(
    runs: Sequence[ReportRun], *, name: str, commit: str, hardware: str
) -> ReferenceCurve:
    """The curve of finished runs that differ in their seed alone.

    :raises InputError: if they differ in more, or one is not finished.
    """
    first = runs[0]
    for run in runs:
        if run.config is None or run.exit is None or run.exit.get("code") != 0:
            raise InputError(
                f"a curve is made of finished runs with their config.yaml, but {run.folder} is not "
                "one: its EXIT.json must have the code 0. Train it to its end, or leave it out."
            )
        flat, other = first.flat_config, run.flat_config
        for key in dict.fromkeys([*flat, *other]):
            if key not in _MAY_DIFFER and flat.get(key) != other.get(key):
                raise InputError(
                    f"runs of one curve may differ in their seed alone, but {key} is "
                    f"{flat.get(key)} in {first.folder} and {other.get(key)} in {run.folder}. Make "
                    "a curve of each."
                )
    seeds = [run.flat_config.get("seed") for run in runs]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"each run of a curve must have a seed of its own, but they are {seeds}.")
    logged = [_by_update(run.metrics) for run in runs]
    names = [n for n in first.metrics.names if not n.startswith(_LEFT_OUT)]
    for run, lines in zip(runs, logged, strict=True):
        others = [n for n in run.metrics.names if not n.startswith(_LEFT_OUT)]
        if set(others) != set(names) or list(lines) != list(logged[0]):
            raise InputError(
                f"runs of one curve must have logged the same metrics at the same updates, but "
                f"{first.folder} and {run.folder} have not: train them with the same code."
            )
    updates = sorted(logged[0])
    hours = read_clock(first.metrics).at(updates)["hours"]
    if hours is None:
        raise InputError(f"{first.folder} logged no audio_hours: it was trained by other code.")
    assert first.config is not None
    config = {key: value for key, value in first.config.items() if key != "versions"}
    config.pop("seed", None)
    config.pop("run", None)
    return ReferenceCurve(
        name=name,
        config=config,
        versions=first.config["versions"],
        commit=commit,
        hardware=hardware,
        seeds=tuple(int(run.setting("seed") or 0) for run in runs),
        updates=tuple(updates),
        audio_hours=tuple(map(_rounded, hours)),
        metrics={name: _band(name, logged, updates) for name in names},
    )


def read_curves(folder: Path) -> list[ReferenceCurve]:
    """All curves of a folder, by file name.

    :raises InputError: if one of them cannot be read.
    """
    return [read_curve(path) for path in sorted(folder.glob("*.json"))]


def read_curve(path: Path) -> ReferenceCurve:
    """One file.

    :raises InputError: if it is none.
    """
    try:
        return ReferenceCurve.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "the file"
        raise InputError(
            f"{path} must be a curve made by launch/save_curve.py, but {place}: "
            f"{problem['msg']}. Make it again, or choose another folder with --curves."
        ) from error


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Flat, without what is a run's own; settings that are younger than the run have defaults."""
    own = {key: value for key, value in config.items() if key != "versions"}
    whole = with_new_defaults({"seed": 0, "run": {"dir": "-"}, **own})
    return {key: value for key, value in flatten(whole) if key not in _MAY_DIFFER}


def _by_update(metrics: Metrics) -> dict[int, dict[str, float]]:
    merged: dict[int, dict[str, float]] = {}
    for record in metrics.records:
        if any(not name.startswith(_LEFT_OUT) for name in record):
            merged.setdefault(int(record["step"]), {}).update(record)
    return merged


def _band(name: str, logged: Sequence[dict[int, dict[str, float]]], updates: list[int]) -> Band:
    means: list[float | None] = []
    lows: list[float | None] = []
    highs: list[float | None] = []
    for update in updates:
        values = [lines[update].get(name, math.nan) for lines in logged]
        alive = all(map(math.isfinite, values))
        means.append(_rounded(sum(values) / len(values)) if alive else None)
        lows.append(_rounded(min(values)) if alive else None)
        highs.append(_rounded(max(values)) if alive else None)
    return Band(mean=tuple(means), low=tuple(lows), high=tuple(highs))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _float(value: float | None) -> float:
    return math.nan if value is None else value


def _compact(value: Any) -> str:
    return json.dumps(value, allow_nan=False)
