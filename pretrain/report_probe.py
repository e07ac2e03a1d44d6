"""The results of ``launch/probe.py`` as a table and as curves over layers, read from its folder.

``results.json`` is read with distrust: a page about a run should not fail because a probe was
interrupted or made by another version.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etude.pretrain.report_figures import Curve, Panel, Style
from etude.pretrain.report_run import Series

RESULTS_NAME = "results.json"

_LAYERS = (
    "Test accuracy, or the task's own score, of a probe of each layer; higher is better. "
    "Bars: 95 % intervals over test tracks, where the results have them. Solid: trained; dotted: "
    "the same encoder untrained; "
    "dashed: hand-made features, and chance. The layer that a table names was chosen on validation."
)


@dataclass(frozen=True)
class LayerCurve:
    """One model on one task, layer by layer."""

    task: str
    model: str
    kind: str
    """``trained``, ``untrained`` …, as the results say."""
    accuracy: Series


@dataclass(frozen=True)
class ProbeReport:
    """What one folder of probe results shows."""

    folder: Path

    rows: tuple[tuple[str, ...], ...]
    """Cells, the first row being the header; empty where there is nothing to read."""

    layers: tuple[LayerCurve, ...] = ()
    chance: Mapping[str, float] = field(default_factory=dict)
    """By task."""

    problem: str | None = None
    """Why there are no rows."""


def read_probe(folder: Path) -> ProbeReport | None:
    """Reads a folder of probe results; ``None`` if it holds none."""
    path = folder / RESULTS_NAME
    if not path.is_file():
        return None
    try:
        results = json.loads(path.read_text())
        rows, layers = _rows(results), tuple(_layers(results))
        tasks = results["tasks"].items()
        chance = {name: float(task["chance"]) for name, task in tasks if "chance" in task}
    except (
        *(ValueError, KeyError, TypeError, AttributeError),
        *(RecursionError, OverflowError),
    ) as error:
        return ProbeReport(folder, (), problem=f"{path} could not be read ({error!r})")
    return ProbeReport(folder, rows, layers, chance)


def layer_panels(probes: Sequence[tuple[int, ProbeReport]]) -> list[Panel]:
    """A panel for each task.

    :param probes: each with the number of the run that it is of.
    """
    tasks = dict.fromkeys(curve.task for _, probe in probes for curve in probe.layers)
    return [_task_panel(task, probes) for task in tasks]


def _task_panel(task: str, probes: Sequence[tuple[int, ProbeReport]]) -> Panel:
    curves = []
    for run, probe in probes:
        found = [curve for curve in probe.layers if curve.task == task]
        last = max((curve.accuracy.steps[-1] for curve in found), default=0)
        levels = [(c.model, c.accuracy.values[0]) for c in found if len(c.accuracy.steps) == 1]
        if found and task in probe.chance:
            levels.append(("chance", probe.chance[task]))
        for curve in found:
            if len(curve.accuracy.steps) > 1:
                style: Style = "copy" if curve.kind == "untrained" else "layers"
                label = curve.kind if len(found) < 4 else curve.model
                curves.append(Curve(curve.accuracy, label, style, run))
        for label, value in levels:
            curves.append(Curve(Series((0, last), (value, value)), label, "constant", run))
    return Panel(f"Probe: {task}", curves, _LAYERS, "test score", over="layers")


def _layers(results: dict[str, Any]) -> list[LayerCurve]:
    kinds = {str(m["name"]): str(m.get("kind", "trained")) for m in results["models"]}
    curves = []
    for task, content in results["tasks"].items():
        for name, kind in kinds.items():
            if (result := content["results"].get(name)) is None:
                continue
            key = f"test_{content.get('metric', 'accuracy')}"
            layers = [each for each in result.get("layers", []) if key in each]
            if not layers:
                continue
            chosen, test = result["chosen_layer"], result["test"]
            numbers = tuple(int(each.get("layer", n)) for n, each in enumerate(layers))
            # Results of before they had an interval for each layer have it where one was chosen.
            of = [
                each.get("test") or (test if number == chosen else {})
                for number, each in zip(numbers, layers, strict=True)
            ]
            ends = (
                tuple(float(each.get("low", math.nan)) for each in of),
                tuple(float(each.get("high", math.nan)) for each in of),
            )
            values = tuple(float(each[key]) for each in layers)
            curves.append(LayerCurve(str(task), name, kind, Series(numbers, values, ends)))
    return curves


def _rows(results: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Models down, tasks across; below them the two constant guesses and the differences."""
    tasks: dict[str, Any] = results["tasks"]
    rows = [_header(results)]
    for model in results["models"]:
        name = str(model["name"])
        rows.append((name, *(_accuracy(task["results"].get(name)) for task in tasks.values())))
    classes = all("majority_rate" in task for task in tasks.values())
    best = ("most frequent class", "majority_rate") if classes else ("constant answer", "constant")
    for label, key in (best, ("chance", "chance")):
        if any(key in task for task in tasks.values()):
            cells = (f"{float(task[key]):.3f}" if key in task else "-" for task in tasks.values())
            rows.append((label, *cells))
    differences: dict[str, list[str]] = {}
    for task in tasks.values():
        for difference in task.get("differences", []):
            label = f"{difference['model']} minus {difference['baseline']}"
            differences.setdefault(label, []).append(_interval(difference, sign="+"))
    # A pair that one of the tasks lacks would shift the columns.
    complete = {label: cells for label, cells in differences.items() if len(cells) == len(tasks)}
    return (*rows, *((label, *cells) for label, cells in complete.items()))


def _header(results: dict[str, Any]) -> tuple[str, ...]:
    metrics = {name: str(task.get("metric", "accuracy")) for name, task in results["tasks"].items()}
    score = "accuracy" if set(metrics.values()) <= {"accuracy"} else "score"
    head = next(iter(results.get("settings", {}).get("heads", ())), "linear")
    of = "" if head == "linear" else f" of {head} heads"
    names = (
        name if metric == "accuracy" else f"{name} ({metric})" for name, metric in metrics.items()
    )
    return (f"test {score}{of}", *names)


def _accuracy(result: dict[str, Any] | None) -> str:
    if result is None:
        return "-"
    layer = f" (layer {result['chosen_layer']})" if len(result.get("layers", [])) > 1 else ""
    return _interval(result["test"]) + layer


def _interval(interval: dict[str, Any], *, sign: str = "") -> str:
    value, low, high = (float(interval[key]) for key in ("value", "low", "high"))
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
