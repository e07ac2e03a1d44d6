"""One HTML page about one run or several: no server, no network, nothing beside the file.

    summary -> what differs -> curves per target -> curves of the run -> health -> cost -> probes
    -> configurations

Its pieces are in ``report_page.py``, its tables in ``report_tables.py``, its still drawings in
``report_figures.py``; ``report.js`` draws them anew where scripts may run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from etude.data.files import write_bytes
from etude.pretrain.curves import ReferenceCurve
from etude.pretrain.report_clock import Clock, read_clock
from etude.pretrain.report_data import script_data
from etude.pretrain.report_figures import Panel, draw, run_colours
from etude.pretrain.report_page import controls, figure, note, page, panels, table, text
from etude.pretrain.report_panels import (
    VALID,
    health_panels,
    other_panels,
    probe_panels,
    run_panels,
    target_names,
    target_panels,
)
from etude.pretrain.report_probe import ProbeReport, layer_panels
from etude.pretrain.report_run import ReportRun, told_apart
from etude.pretrain.report_tables import (
    Rows,
    cost_rows,
    difference_rows,
    health_rows,
    held_out_rows,
    summary_rows,
)
from etude.pretrain.report_thin import thinned


@dataclass(frozen=True)
class _Shown:
    """All that has a colour: runs, then references, then probes of no run."""

    runs: Sequence[ReportRun]
    references: Sequence[ReportRun]
    others: Sequence[str]
    clocks: Sequence[Clock | None]

    @property
    def names(self) -> list[str]:
        named = [f"reference: {run.name}" for run in self.references]
        return [*(run.name for run in self.runs), *named, *self.others]

    @property
    def colours(self) -> list[str]:
        colours = run_colours(len(self.runs) + len(self.others), len(self.references))
        grey = colours[len(self.runs) + len(self.others) :]
        return [*colours[: len(self.runs)], *grey, *colours[len(self.runs) :][: len(self.others)]]


def render(
    runs: Sequence[ReportRun],
    probes: Sequence[tuple[str, ProbeReport]],
    *,
    curves: Sequence[ReferenceCurve] = (),
    title: str | None = None,
    lead: Sequence[str] = (),
) -> str:
    """The page.

    :param runs: at least one.
    :param probes: titles and results; those of a run have its name.
    :param curves: drawn behind runs whose objective is theirs.
    :param title: the runs' names if not given.
    :param lead: what comes first, in HTML.
    """
    given = [run.name for run in runs]
    runs = told_apart(runs)
    names = " and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    title = title or names
    shown, told = _against(runs, curves, [name for name, _ in probes if name not in given])
    drawn: list[Panel] = []

    def draw_all(made: Sequence[Panel]) -> str:
        figures = []
        for panel in made:
            if not panel.is_empty:
                thin = thinned(panel, runs=len(runs))
                drawing = draw(thin, shown.colours, number=len(drawn))
                figures.append(figure(thin.title, drawing, thin.note, chart=len(drawn)))
                drawn.append(thin)
        return panels(figures)

    everything = [*shown.runs, *shown.references]
    targets = target_names(runs)
    parts = [f"<h1>{text(title)}</h1>", *lead, table(summary_rows(runs)), *_unreadable(runs)]
    if len(runs) > 1:
        parts.append(_differences(runs))
    parts += told
    parts.append(controls(shown.names, shown.colours))
    parts += map(note, _without_axes(shown))
    parts += _section("Held-out tracks, newest values", held_out_rows(runs, targets, VALID))
    for target in targets:
        drawings = draw_all(target_panels(everything, target))
        parts.append(f"<h2>Target: {text(target)}</h2>" + drawings)
    parts.append("<h2>The run as a whole</h2>" + draw_all(run_panels(everything)))
    parts += _section("Health", health_rows(runs))
    parts.append(draw_all(health_panels(everything)))
    parts += _section("Cost", cost_rows(runs))
    parts.append(note(_COST))
    if beside := probe_panels(runs):
        parts.append("<h2>Probes while training went on</h2>" + draw_all(beside))
    if probes:
        parts.append("<h2>Probes, layer by layer</h2>" + note(_PROBES))
        parts.append(draw_all(layer_panels(_numbered(probes, given, shown))))
    parts += [_probe(name, probe) for name, probe in probes]
    if others := other_panels(runs):
        parts.append("<h2>Everything else that was logged</h2>" + draw_all(others))
    parts += [_configuration(run) for run in runs]
    data = script_data(shown.names, shown.colours, shown.clocks, drawn, runs=len(runs))
    return page(title, parts, data=data)


_PROBES = (
    "The encoder is frozen, and a linear classifier reads one task from each layer's features. In "
    "the tables: test accuracy with its 95 % interval, at the layer that validation chose. The "
    "untrained encoder shows what the architecture alone gives, log-mel what the spectrum alone "
    "gives; a difference whose interval contains zero shows nothing."
)
_COST = (
    "Wall-clock is the time of the training loop with its validations, added up from the logged "
    "rates; starts, and pauses between them, are not in it. Rates are medians of log lines."
)


def _against(
    runs: Sequence[ReportRun], curves: Sequence[ReferenceCurve], others: Sequence[str]
) -> tuple[_Shown, list[str]]:
    """Which curves fit, each to the first of the runs that it fits; and what is to be said."""
    clocks: list[Clock | None] = [read_clock(run.metrics) for run in runs]
    references, told, misfits = [], [], []
    of_references: list[Clock | None] = []
    for curve in curves:
        misfit = {run.name: curve.misfit(run.config or {}) for run in runs}
        for run, clock in zip(runs, clocks, strict=True):
            assert clock is not None
            if misfit[run.name] is not None:
                continue
            if (reference := curve.as_run(clock)) is None:
                misfit[run.name] = "no audio_hours logged"
                continue
            references.append(reference)
            of_references.append(clock)
            told.append(_told(curve, run))
            break
        else:
            misfits.append(f"{curve.name} ({misfit[runs[0].name]})")
    if misfits:
        told.append(note("Reference curves that do not fit, for another: " + ", ".join(misfits)))
    if told:
        told.insert(0, "<h2>Reference curves</h2>")
    everyone = [*clocks, *of_references, *[None] * len(others)]
    return _Shown(runs, references, others, everyone), told


def _told(curve: ReferenceCurve, run: ReportRun) -> str:
    """Where a curve comes from, and what else is different there."""
    words = (
        f"{curve.name}: {len(curve.seeds)} training{'s' if len(curve.seeds) > 1 else ''} of ours "
        f"(seed {', '.join(map(str, curve.seeds))}) to update {curve.updates[-1]:,}, "
        f"{curve.audio_hours[-1]:,.4g} h of audio heard, code {curve.commit[:12]}, "
        f"{curve.hardware}. Drawn as a pale band from the lowest to the highest of them, over "
        f"the same audio hours as {run.name}; its own unigram entropy and majority rate lie beside "
        "it in grey."
    )
    rows = [["key", f"reference {curve.name}", run.name]]
    rows += [list(row) for row in curve.differences(run.config or {})]
    if len(rows) == 1:
        return note(words)
    return (
        note(words + " Predicted is the same; these settings are not:")
        + f"<details><summary>{len(rows) - 1} other settings</summary>{table(rows)}</details>"
    )


def _without_axes(shown: _Shown) -> list[str]:
    """Runs that an axis cannot show."""
    words = []
    for name, what in (("hours", "audio hours"), ("seconds", "wall-clock")):
        lacking = [
            run.name
            for run, clock in zip(shown.runs, shown.clocks, strict=False)
            if clock is not None and getattr(clock, name) is None
        ]
        if lacking:
            words.append(f"Not on the axis of {what}, for want of its log: {', '.join(lacking)}.")
    return words


def _unreadable(runs: Sequence[ReportRun]) -> list[str]:
    return [
        note(
            f"{run.name}: {lines} unreadable line{'s' if lines > 1 else ''} of metrics.jsonl "
            "passed over (a run that is killed while writing leaves one)."
        )
        for run in runs
        if (lines := run.metrics.unreadable_lines)
    ]


def _section(title: str, rows: Rows) -> list[str]:
    return [f"<h2>{text(title)}</h2>", table(rows)] if len(rows) > 1 else []


def _numbered(
    probes: Sequence[tuple[str, ProbeReport]], given: Sequence[str], shown: _Shown
) -> list[tuple[int, ProbeReport]]:
    """Each with the number of its colour: its run's, or one of its own."""
    numbers, free = [], len(shown.runs) + len(shown.references)
    of_runs = list(given)
    for name, probe in probes:
        if name in of_runs:
            number = of_runs.index(name)
            of_runs[number] = "\0"  # the next run of the same name has the next results
        else:
            number, free = free, free + 1
        numbers.append((number, probe))
    return numbers


def _probe(name: str, probe: ProbeReport) -> str:
    parts = [
        f"<section><h3>Probes: {text(name)}</h3>",
    ]
    if probe.problem is not None:
        parts.append(f"<p>{text(probe.problem)}.</p>")
    if probe.rows:
        parts.append(table(probe.rows))
    return "".join(parts) + "</section>"


def _differences(runs: Sequence[ReportRun]) -> str:
    rows = difference_rows(runs)
    if len(rows) == 1:
        return "<h2>What differs</h2><p>Nothing in the configurations.</p>"
    return (
        "<h2>What differs</h2>"
        '<p class="note">Every key of the resolved configurations whose values are not the same in '
        "all runs; a dash where a run does not have the key.</p>" + table(rows)
    )


def _configuration(run: ReportRun) -> str:
    if run.config_text is None:
        return f'<p class="note">{text(run.name)} has no config.yaml.</p>'
    return (
        f"<details><summary>Configuration of {text(run.name)}</summary>"
        f"<pre>{text(run.config_text)}</pre></details>"
    )


def write_report(
    runs: Sequence[ReportRun],
    probes: Sequence[tuple[str, ProbeReport]],
    out: Path,
    *,
    curves: Sequence[ReferenceCurve] = (),
    title: str | None = None,
    lead: Sequence[str] = (),
) -> None:
    """Renders the page and publishes it as ``out``; the words are those of ``render``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    made = render(runs, probes, curves=curves, title=title, lead=lead)
    write_bytes(out, made.encode("utf-8", errors="replace"))
