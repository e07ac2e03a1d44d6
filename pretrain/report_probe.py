"""The results of ``launch/probe.py`` as a table, read from its folder.

``results.json`` is read with distrust: a page about a run should not fail because a probe was
interrupted or made by another version.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS_NAME = "results.json"
FIGURE_NAME = "layers.png"


@dataclass(frozen=True)
class ProbeReport:
    """What one folder of probe results shows."""

    folder: Path

    rows: tuple[tuple[str, ...], ...]
    """Cells, the first row being the header; empty where there is nothing to read."""

    figure: bytes | None
    """The plot over layers as PNG."""

    problem: str | None = None
    """Why there are no rows."""


def read_probe(folder: Path) -> ProbeReport | None:
    """Reads a folder of probe results; ``None`` if it holds none."""
    path = folder / RESULTS_NAME
    if not path.is_file():
        return None
    figure_path = folder / FIGURE_NAME
    figure = figure_path.read_bytes() if figure_path.is_file() else None
    try:
        rows = _rows(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return ProbeReport(folder, (), figure, f"{path} could not be read ({error!r})")
    return ProbeReport(folder, rows, figure)


def _rows(results: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Models down, tasks across; below them the two constant guesses and the differences."""
    tasks: dict[str, Any] = results["tasks"]
    rows = [("test accuracy", *tasks)]
    for model in results["models"]:
        name = str(model["name"])
        rows.append((name, *(_accuracy(task["results"].get(name)) for task in tasks.values())))
    for label, key in (("most frequent class", "majority_rate"), ("chance", "chance")):
        if all(key in task for task in tasks.values()):
            rows.append((label, *(f"{float(task[key]):.3f}" for task in tasks.values())))
    differences: dict[str, list[str]] = {}
    for task in tasks.values():
        for difference in task.get("differences", []):
            label = f"{difference['model']} minus {difference['baseline']}"
            differences.setdefault(label, []).append(_interval(difference, sign="+"))
    # A pair that one of the tasks lacks would shift the columns.
    complete = {label: cells for label, cells in differences.items() if len(cells) == len(tasks)}
    return (*rows, *((label, *cells) for label, cells in complete.items()))


def _accuracy(result: dict[str, Any] | None) -> str:
    if result is None:
        return "-"
    layer = f" (layer {result['chosen_layer']})" if len(result.get("layers", [])) > 1 else ""
    return _interval(result["test"]) + layer


def _interval(interval: dict[str, Any], *, sign: str = "") -> str:
    value, low, high = (float(interval[key]) for key in ("value", "low", "high"))
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
