"""The page's tables: what became of each run, what it cost, whether it is alive, what differs."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from etude.pretrain.report_clock import read_clock
from etude.pretrain.report_run import ReportRun

Rows = list[list[str]]
_NONE = "-"


def summary_rows(runs: Sequence[ReportRun]) -> Rows:
    """A line for each run."""
    rows = [["run", "updates", "audio heard", "loss", "held-out loss", "ended"]]
    for run in runs:
        metrics = run.metrics
        rows.append(
            [
                run.name,
                f"{_steps(run):,.0f}",
                number(metrics.last("audio_hours"), " h"),
                number(metrics.last("loss")),
                number(metrics.last("valid/loss")),
                _ending(run.exit),
            ]
        )
    return rows


def cost_rows(runs: Sequence[ReportRun]) -> Rows:
    """What each run has cost so far."""
    rows = [
        ["run", "updates", "audio hours", "wall-clock", "crops / s", "MFU", "ranks", "data wait"]
    ]
    for run in runs:
        clock = read_clock(run.metrics)
        seconds = clock.at([_steps(run)])["seconds"]
        wait = _median(run, "perf/data_wait")
        mfu = _median(run, "perf/mfu")
        rows.append(
            [
                run.name,
                f"{_steps(run):,.0f}",
                number(run.metrics.last("audio_hours")),
                _NONE if seconds is None else number(seconds[0] / 3600, " h"),
                number(_median(run, "perf/crops_per_second")),
                _NONE if mfu is None else f"{100 * mfu:.1f} %",
                number(run.metrics.last("perf/ranks")),
                _NONE if wait is None else f"{100 * wait:.1f} %",
            ]
        )
    return rows


def health_rows(runs: Sequence[ReportRun]) -> Rows:
    """What went wrong in each run, and whether its features still differ."""
    counts = (
        ("loss spikes", "optim/loss_spikes"),
        ("gradient spikes", "optim/grad_norm_spikes"),
        ("skipped updates", "optim/skipped_updates"),
        ("rollbacks", "optim/rollbacks"),
    )
    spreads = [
        name
        for name in dict.fromkeys(name for run in runs for name in run.metrics.names)
        if (name.startswith("health/") and name.endswith(("/std", "/rank")))
        or (name.endswith(("/target_std", "/prediction_std")) and not name.startswith("valid/"))
    ]
    rows = [
        ["run", *(label for label, _ in counts), "not finite", "damaged clips"]
        + [name.removeprefix("health/") for name in spreads]
    ]
    for run in runs:
        last = run.metrics.last
        lost = sum(not math.isfinite(v) for record in run.metrics.records for v in record.values())
        damaged = [v for v in run.metrics.series("data/skipped").values if math.isfinite(v)]
        rows.append(
            [
                run.name,
                *(number(last(name)) for _, name in counts),
                f"{lost:,}",
                number(sum(damaged) if damaged else None),
                *(number(last(name)) for name in spreads),
            ]
        )
    return rows


def held_out_rows(runs: Sequence[ReportRun], targets: Sequence[str], valid: str) -> Rows:
    """Newest held-out values of every target beside what costs nothing."""
    columns = (
        ("loss", ("loss",)),
        ("unigram entropy, or of the mean", ("unigram_entropy", "variance", "constant_loss")),
        ("copying", ("copy_loss",)),
        ("accuracy", ("accuracy",)),
        ("most frequent label", ("majority_rate",)),
        ("copying the label", ("copy_accuracy",)),
    )
    rows = [["run", "target", *(label for label, _ in columns)]]
    for run in runs:
        for target in targets:
            found = [
                next(
                    (
                        v
                        for n in names
                        if (v := run.metrics.last(f"{valid}{target}/{n}")) is not None
                    ),
                    None,
                )
                for _, names in columns
            ]
            if any(value is not None for value in found):
                rows.append([run.name, target, *map(number, found)])
    return rows


def difference_rows(runs: Sequence[ReportRun]) -> Rows:
    """Every key whose values are not the same in all runs."""
    flat = [run.flat_config for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    missing = object()
    differing = [
        key for key in keys if any(f.get(key, missing) != flat[0].get(key, missing) for f in flat)
    ]
    rows = [["key", *(run.name for run in runs)]]
    rows += [[key, *(str(f[key]) if key in f else _NONE for f in flat)] for key in differing]
    return rows


def number(value: float | None, unit: str = "") -> str:
    """Four digits, a dash for nothing, words for what is not finite."""
    if value is None:
        return _NONE
    return f"{value:,.4g}{unit}" if math.isfinite(value) else "not finite"


def _steps(run: ReportRun) -> float:
    return max((record["step"] for record in run.metrics.records), default=0)


def _median(run: ReportRun, name: str) -> float | None:
    values = [value for value in run.metrics.series(name).values if math.isfinite(value)]
    return statistics.median(values) if values else None


def _ending(exit: dict[str, Any] | None) -> str:
    if exit is None:
        return "no EXIT.json: running, or killed"
    code, reason = exit.get("code", "?"), exit.get("reason", "")
    return f"status {code}" + (f": {reason}" if reason else "")
