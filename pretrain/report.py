"""One HTML page about one run or several: no server, no network, nothing beside the file.

    summary -> curves per target -> curves of the run -> probes -> what differs -> configuration

Its pieces are in ``report_page.py``, its drawings in ``report_figures.py``.
"""

import base64
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from etude.data.files import write_bytes
from etude.pretrain.report_figures import RUN_COLOURS, Panel, draw
from etude.pretrain.report_page import figure, note, page, panels, table, text
from etude.pretrain.report_panels import other_panels, run_panels, target_names, target_panels
from etude.pretrain.report_probe import ProbeReport
from etude.pretrain.report_run import ReportRun


def render(
    runs: Sequence[ReportRun],
    probes: Sequence[tuple[str, ProbeReport]],
    *,
    title: str | None = None,
    lead: Sequence[str] = (),
) -> str:
    """The page.

    :param runs: at least one.
    :param probes: titles and results.
    :param title: the runs' names if not given.
    :param lead: what comes first, in HTML.
    """
    runs = _unique_names(runs)
    names = " and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    title = title or names
    numbers = iter(range(10_000))

    def drawn(made: Sequence[Panel]) -> str:
        return panels([_panel(panel, number=next(numbers)) for panel in made if not panel.is_empty])

    parts = [f"<h1>{text(title)}</h1>", *lead, _summary(runs)]
    if len(runs) > 1:
        parts.append(_legend(runs))
    for target in target_names(runs):
        parts.append(f"<h2>Target: {text(target)}</h2>" + drawn(target_panels(runs, target)))
    parts.append("<h2>The run as a whole</h2>" + drawn(run_panels(runs)))
    if others := other_panels(runs):
        parts.append("<h2>Everything else that was logged</h2>" + drawn(others))
    for name, probe in probes:
        parts.append(_probe(name, probe))
    if len(runs) > 1:
        parts.append(_differences(runs))
    parts += [_configuration(run) for run in runs]
    return page(title, parts)


def _unique_names(runs: Sequence[ReportRun]) -> list[ReportRun]:
    """Folders of equal names go by their paths."""
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else replace(run, name=str(run.folder)) for run in runs
    ]


def _summary(runs: Sequence[ReportRun]) -> str:
    header = ["run", "updates", "audio heard", "loss", "held-out loss", "crops / s", "ended"]
    rows = [header]
    notes = []
    for run in runs:
        metrics = run.metrics
        speed = metrics.series("perf/crops_per_second").values
        steps = max((record["step"] for record in metrics.records), default=0)
        rows.append(
            [
                run.name,
                f"{steps:,.0f}",
                _number(metrics.last("audio_hours"), " h"),
                _number(metrics.last("loss")),
                _number(metrics.last("valid/loss")),
                _number(statistics.median(speed) if speed else None),
                _ending(run.exit),
            ]
        )
        if metrics.unreadable_lines:
            plural = "s" if metrics.unreadable_lines > 1 else ""
            notes.append(
                f"{run.name}: {metrics.unreadable_lines} unreadable line{plural} of metrics.jsonl "
                "passed over (a run that is killed while writing leaves one)."
            )
    return table(rows) + "".join(map(note, notes))


def _ending(exit: dict[str, Any] | None) -> str:
    if exit is None:
        return "no EXIT.json: running, or killed"
    code, reason = exit.get("code", "?"), exit.get("reason", "")
    return f"status {code}" + (f": {reason}" if reason else "")


def _legend(runs: Sequence[ReportRun]) -> str:
    entries = (
        f'<span><i style="background:{RUN_COLOURS[number % len(RUN_COLOURS)]}"></i>'
        f"{text(run.name)}</span>"
        for number, run in enumerate(runs)
    )
    return f'<div class="legend">{"".join(entries)}</div>'


def _panel(panel: Panel, *, number: int) -> str:
    return figure(panel.title, draw(panel, number=number), panel.note)


def _probe(name: str, probe: ProbeReport) -> str:
    parts = [
        f'<section class="probe"><h2>Probes: {text(name)}</h2>',
        '<p class="note">The encoder is frozen, and a linear classifier reads one task from each '
        "layer's features. Test accuracy with its "
        "95 % interval, at the layer that validation chose. The untrained encoder shows what the "
        "architecture alone gives, log-mel what the spectrum alone gives; a difference whose "
        "interval contains zero shows nothing.</p>",
    ]
    if probe.problem is not None:
        parts.append(f"<p>{text(probe.problem)}.</p>")
    if probe.rows:
        parts.append(table(probe.rows))
    if probe.figure is not None:
        data = base64.b64encode(probe.figure).decode("ascii")
        parts.append(
            f'<p><img alt="accuracy of every layer" src="data:image/png;base64,{data}"></p>'
        )
    return "".join(parts) + "</section>"


def _differences(runs: Sequence[ReportRun]) -> str:
    flat = [run.flat_config for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    missing = object()
    differing = [
        key for key in keys if any(f.get(key, missing) != flat[0].get(key, missing) for f in flat)
    ]
    if not differing:
        return "<h2>What differs</h2><p>Nothing in the configurations.</p>"
    rows = [["key", *(run.name for run in runs)]]
    rows += [[key, *(str(f[key]) if key in f else "-" for f in flat)] for key in differing]
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


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:,.4g}{unit}"


def write_report(
    runs: Sequence[ReportRun],
    probes: Sequence[tuple[str, ProbeReport]],
    out: Path,
    *,
    title: str | None = None,
    lead: Sequence[str] = (),
) -> None:
    """Renders the page and publishes it as ``out``; the words are those of ``render``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, render(runs, probes, title=title, lead=lead).encode("utf-8"))
