"""Curves as small SVG drawings that live inside an HTML page, readable without any script.

One drawing per panel, so that a phone stacks them and a wide screen lays them side by side. Text
and axes take the page's own colour (``currentColor``): the same drawing is readable on white, on
black and on paper.
"""

import colorsys
import html
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from etude.pretrain.report_run import Series

RUN_COLOURS = ("#2f7ed8", "#d9730d", "#2a9d5c", "#c2408c", "#8a63d2", "#7d8b00")
"""Readable on white and on black alike."""

REFERENCE_COLOUR = "#868c95"

LOG_RANGE = 50.0
"""A loss whose largest value exceeds its smallest so many times is drawn on a logarithmic axis."""

Style = Literal["train", "valid", "constant", "copy", "band", "layers"]

_INK = "#010203"  # replaced by the page's text colour

_LINES: dict[Style, dict[str, Any]] = {
    "train": {"linewidth": 0.9, "alpha": 0.75},
    "valid": {"linewidth": 1.2, "marker": "o", "markersize": 3.5},
    "constant": {"linewidth": 1.2, "linestyle": "--", "alpha": 0.8},
    "copy": {"linewidth": 1.2, "linestyle": ":", "alpha": 0.9},
    "band": {"linewidth": 0.7, "alpha": 0.6},
    "layers": {"linewidth": 1.2, "marker": "o", "markersize": 4},
}


@dataclass(frozen=True)
class Curve:
    """One line of a panel."""

    series: Series
    label: str
    """What it is, without the run: in the page's legend, colour tells the run."""

    style: Style
    run: int
    """Which run, for its colour."""


@dataclass(frozen=True)
class Panel:
    """One drawing."""

    title: str
    curves: Sequence[Curve]
    note: str
    """What a newcomer should know about it."""

    unit: str = ""
    may_be_log: bool = False
    keep_peaks: bool = False
    """Thin a long curve by its largest values instead of means, where spikes are the point."""

    over: Literal["steps", "layers"] = "steps"

    @property
    def is_empty(self) -> bool:
        """Whether nothing was logged for it."""
        return not any(curve.series.steps for curve in self.curves)

    @property
    def is_log(self) -> bool:
        """Whether its values span decades."""
        values = [v for curve in self.curves for v in curve.series.values if math.isfinite(v)]
        spans = bool(values) and min(values) > 0 and max(values) > LOG_RANGE * min(values)
        return self.may_be_log and spans


def run_colours(runs: int, references: int = 0) -> list[str]:
    """A colour for each run, and grey for what they are held against."""
    colours = list(RUN_COLOURS[:runs])
    for number in range(runs - len(colours)):
        # Hues a golden ratio apart: neighbours in the legend differ most.
        red, green, blue = colorsys.hls_to_rgb(
            (0.05 + 0.618034 * number) % 1.0, (0.40, 0.58)[number % 2], (0.8, 0.55)[number % 2]
        )
        colours.append(f"#{int(255 * red):02x}{int(255 * green):02x}{int(255 * blue):02x}")
    return [*colours, *[REFERENCE_COLOUR] * references]


def draw(panel: Panel, colours: Sequence[str], *, number: int) -> str:
    """The panel as an ``<svg>`` element.

    :param colours: of all runs.
    :param number: makes its ids unique within the page.
    """
    return drawing(
        panel.title, lambda figure, axes: _plot(panel, colours, figure, axes), number=number
    )


def drawing(title: str, plot: Callable[[Figure, Axes], None], *, number: int) -> str:
    """An ``<svg>`` element with what ``plot`` draws, in the page's own colours and font.

    :param number: makes its ids unique within the page.
    """
    style: Any = {  # the keys are literals to newer stubs of matplotlib
        "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
        "svg.hashsalt": str(number),
        "text.parse_math": False,  # a name with two dollars is a name
        "font.family": "sans-serif",
        "font.size": 9.0,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "text.color": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "legend.labelcolor": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.8, 2.9), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        plot(figure, axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
    return _inline(buffer.getvalue(), number=number, title=title)


def grid(axes: Axes) -> None:
    """Faint lines behind the curves."""
    axes.grid(color=_INK, alpha=0.15, linewidth=0.6)


def legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Outside: on top of no curve."""
    figure.legend(
        handles=list(handles), fontsize=7.5, frameon=False, ncols=4, loc="outside upper right"
    )


def _plot(panel: Panel, colours: Sequence[str], figure: Figure, axes: Axes) -> None:
    for curve in panel.curves:
        if curve.series.steps:
            _line(axes, curve, colours[curve.run])
    if panel.is_log:
        axes.set_yscale("log")
    axes.set_xlabel("update" if panel.over == "steps" else "layer (0: input of the first)")
    axes.set_ylabel(_drawable(panel.unit))
    grid(axes)
    styles = {curve.label: curve for curve in panel.curves}
    if len(styles) > 1:
        several = len({curve.run for curve in panel.curves}) > 1
        handles = [
            Line2D(
                [],
                [],
                color=_INK if several else colours[curve.run],
                label=_drawable(label),
                **_LINES[curve.style],
            )
            for label, curve in styles.items()
        ]
        legend(figure, handles)


def _line(axes: Axes, curve: Curve, colour: str) -> None:
    steps, values = curve.series.steps, curve.series.values
    line = _LINES[curve.style]
    if len(steps) == 1 and curve.style in ("constant", "copy"):
        # A single validation: its baseline is a level, not a point.
        axes.axhline(values[0], color=colour, **line)
        return
    axes.plot(steps, values, color=colour, **line)
    if alone := _alone(values):  # a line needs two ends
        axes.plot(
            [steps[n] for n in alone], [values[n] for n in alone], ".", color=colour, markersize=4
        )
    if curve.series.ends is not None:
        low, high = curve.series.ends
        if curve.style == "layers":
            axes.vlines(steps, low, high, color=colour, alpha=0.5)
        else:
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)


def _drawable(name: str) -> str:
    """Half of a character, which JSON may hold, is none that can be drawn."""
    return name.encode("utf-8", errors="replace").decode("utf-8")


def _alone(values: Sequence[float]) -> list[int]:
    """Which finite values have no finite neighbour."""
    finite = [False, *map(math.isfinite, values), False]
    return [n for n in range(len(values)) if finite[n : n + 3] == [False, True, False]]


def _inline(text: str, *, number: int, title: str) -> str:
    """Drops what is only right in a file of its own, and makes every id unique in the page."""
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="f{number}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>f{number}-", text)
    # The page sets the width; the viewBox keeps the proportions.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    label = html.escape(title, quote=True)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()
