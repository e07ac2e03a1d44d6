"""What is left out of a drawing, and the sentence that says so."""

import math
from dataclasses import replace

from etude.pretrain.report_figures import Panel
from etude.pretrain.report_run import Series

POINTS_OF_A_PANEL = 6_000
"""Shared out among the curves of a panel's runs, so that a page of many runs stays small."""

MOST, LEAST = 1_000, 200
"""Points of a line, whatever the number of runs."""


def thinned(panel: Panel, *, runs: int) -> Panel:
    """The panel with long curves drawn through equal parts of them; its note tells of it.

    :param runs: how many share the page.
    """
    points = max(LEAST, min(MOST, POINTS_OF_A_PANEL // runs))
    longest = max((len(curve.series.steps) for curve in panel.curves), default=0)
    words = [panel.note]
    if longest > points:
        way = "the largest value" if panel.keep_peaks else "the mean"
        words.append(
            f"Thinned out: of up to {longest:,} values of a curve, {way} of each of {points:,} "
            "equal parts is drawn."
        )
    lost = sum(not math.isfinite(v) for curve in panel.curves for v in curve.series.values)
    if lost:
        words.append(
            f"{lost:,} value{'s were' if lost > 1 else ' was'} not finite: "
            f"{'gaps' if lost > 1 else 'a gap'} in the curve."
        )
    curves = [
        replace(curve, series=thin(curve.series, points, peaks=panel.keep_peaks))
        for curve in panel.curves
    ]
    return replace(panel, curves=curves, note=" ".join(words))


def thin(series: Series, points: int, *, peaks: bool) -> Series:
    """At most ``points`` values: means (or peaks) of the finite values of equal parts."""
    count = len(series.steps)
    if count <= points:
        return series
    edges = [count * part // points for part in range(points + 1)]
    steps, values = [], []
    lows, highs = [], []
    for start, end in zip(edges, edges[1:], strict=False):
        finite = [value for value in series.values[start:end] if math.isfinite(value)]
        steps.append(sum(series.steps[start:end]) / (end - start))
        if not finite:
            values.append(math.nan)  # leaves a gap
        else:
            values.append(max(finite) if peaks else sum(finite) / len(finite))
        if series.ends is not None:
            lows.append(min(series.ends[0][start:end]))
            highs.append(max(series.ends[1][start:end]))
    ends = None if series.ends is None else (tuple(lows), tuple(highs))
    return Series(tuple(steps), tuple(values), ends)
