"""What the page's script draws from: the panels' points as JSON, on every horizontal axis."""

import json
import math
from collections.abc import Sequence
from typing import Any

from etude.pretrain.report_clock import AXES, Clock
from etude.pretrain.report_figures import Curve, Panel

_DIGITS = 5
"""Significant ones: a drawing shows three."""


def script_data(
    names: Sequence[str],
    colours: Sequence[str],
    clocks: Sequence[Clock | None],
    panels: Sequence[Panel],
    *,
    runs: int,
) -> str:
    """JSON that may stand in a ``<script>``.

    :param names: of the runs, then of what they are held against.
    :param clocks: of each run; of a reference, that of the run it is held against. ``None``: it
        has nothing but layers.
    :param runs: how many of the names are runs.
    """
    axes: list[Any] = []
    numbers: dict[tuple[int, tuple[float, ...]], int] = {}

    def axis(panel: Panel, curve: Curve) -> int:
        """Curves that were logged at the same steps share their axes."""
        steps = curve.series.steps
        if panel.over == "layers":
            key = (-1, steps)
            found: dict[str, list[float] | None] = {"layers": list(steps)}
        else:
            clock = clocks[curve.run]
            assert clock is not None
            key = (curve.run, steps)
            found = clock.at(steps)
        if key not in numbers:
            numbers[key] = len(axes)
            axes.append({name: _numbers(values) for name, values in found.items() if values})
        return numbers[key]

    charts = [
        {
            "log": panel.is_log,
            "over": panel.over,
            "unit": panel.unit,
            "curves": [
                {
                    "run": curve.run,
                    "style": curve.style,
                    "label": curve.label,
                    "x": axis(panel, curve),
                    "y": _numbers(curve.series.values),
                    "ends": curve.series.ends and [_numbers(end) for end in curve.series.ends],
                }
                for curve in panel.curves
                if curve.series.steps
            ],
        }
        for panel in panels
    ]
    data = {
        "runs": [
            {"name": name, "colour": colour, "reference": number >= runs}
            for number, (name, colour) in enumerate(zip(names, colours, strict=True))
        ],
        "switch": list(AXES),
        "axes": axes,
        "charts": charts,
    }
    # No "<" at all: nothing that somebody wrote ends the element or begins a comment in it.
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _numbers(values: Sequence[float]) -> list[float | None]:
    return [_short(value) if math.isfinite(value) else None for value in values]


def _short(value: float) -> float:
    if value == round(value) and abs(value) < 1e9:
        return int(value)
    return float(f"{value:.{_DIGITS}g}")
