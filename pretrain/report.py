"""One HTML page about one run or several: no server, no network, nothing beside the file.

    summary -> curves per target -> curves of the run -> probes -> what differs -> configuration

Read on a laptop, a phone or paper, in light or dark: the page carries its style and drawings.
"""

import base64
import html
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from etude.data.files import write_bytes
from etude.pretrain.report_figures import RUN_COLOURS, Panel, draw
from etude.pretrain.report_panels import other_panels, run_panels, target_names, target_panels
from etude.pretrain.report_probe import ProbeReport
from etude.pretrain.report_run import ReportRun

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --soft: #666; --line: #ddd;
  --panel: #fafafa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e6e3; --paper: #16181b; --soft: #a5a29c; --line: #3a3d42; --panel: #1d2024; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
p { max-width: 46rem; } .note { color: var(--soft); font-size: .85rem; margin: .25rem 0 0; }
.panels { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; padding: .75rem; border: 1px solid var(--line); border-radius: .4rem;
  background: var(--panel); break-inside: avoid; min-width: 0; }
svg, img { width: 100%; height: auto; display: block; } img { background: #fff; }
.probe img { max-width: 60rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td { overflow-wrap: break-word; max-width: 24rem; }
.legend { position: sticky; top: 0; background: var(--paper); padding: .4rem 0; z-index: 1;
  border-bottom: 1px solid var(--line); font-size: .9rem; }
.legend span { margin-right: 1.2rem; white-space: nowrap; }
.legend i { display: inline-block; width: 1.4rem; height: .25rem; margin-right: .4rem;
  vertical-align: middle; border-radius: .1rem; print-color-adjust: exact; }
pre { overflow-x: auto; font-size: .8rem; }
@media print { .legend { position: static; } body { max-width: none; padding: 0; } }
"""


def render(runs: Sequence[ReportRun], probes: Sequence[tuple[str, ProbeReport]]) -> str:
    """The page.

    :param runs: at least one.
    :param probes: titles and results.
    """
    runs = _unique_names(runs)
    title = " and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    numbers = iter(range(10_000))

    def panels(made: Sequence[Panel]) -> str:
        drawn = (_panel(panel, number=next(numbers)) for panel in made if not panel.is_empty)
        return f'<div class="panels">{"".join(drawn)}</div>'

    parts = [f"<h1>{_text(title)}</h1>", _summary(runs)]
    if len(runs) > 1:
        parts.append(_legend(runs))
    for target in target_names(runs):
        parts.append(f"<h2>Target: {_text(target)}</h2>" + panels(target_panels(runs, target)))
    parts.append("<h2>The run as a whole</h2>" + panels(run_panels(runs)))
    if others := other_panels(runs):
        parts.append("<h2>Everything else that was logged</h2>" + panels(others))
    for name, probe in probes:
        parts.append(_probe(name, probe))
    if len(runs) > 1:
        parts.append(_differences(runs))
    parts += [_configuration(run) for run in runs]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


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
    return _table(rows) + "".join(f'<p class="note">{_text(note)}</p>' for note in notes)


def _ending(exit: dict[str, Any] | None) -> str:
    if exit is None:
        return "no EXIT.json: running, or killed"
    code, reason = exit.get("code", "?"), exit.get("reason", "")
    return f"status {code}" + (f": {reason}" if reason else "")


def _legend(runs: Sequence[ReportRun]) -> str:
    entries = (
        f'<span><i style="background:{RUN_COLOURS[number % len(RUN_COLOURS)]}"></i>'
        f"{_text(run.name)}</span>"
        for number, run in enumerate(runs)
    )
    return f'<div class="legend">{"".join(entries)}</div>'


def _panel(panel: Panel, *, number: int) -> str:
    return (
        f"<figure><h3>{_text(panel.title)}</h3>{draw(panel, number=number)}"
        f'<figcaption class="note">{_text(panel.note)}</figcaption></figure>'
    )


def _probe(name: str, probe: ProbeReport) -> str:
    parts = [
        f'<section class="probe"><h2>Probes: {_text(name)}</h2>',
        '<p class="note">The encoder is frozen, and a linear classifier reads one task from each '
        "layer's features. Test accuracy with its "
        "95 % interval, at the layer that validation chose. The untrained encoder shows what the "
        "architecture alone gives, log-mel what the spectrum alone gives; a difference whose "
        "interval contains zero shows nothing.</p>",
    ]
    if probe.problem is not None:
        parts.append(f"<p>{_text(probe.problem)}.</p>")
    if probe.rows:
        parts.append(_table(probe.rows))
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
        "all runs; a dash where a run does not have the key.</p>" + _table(rows)
    )


def _configuration(run: ReportRun) -> str:
    if run.config_text is None:
        return f'<p class="note">{_text(run.name)} has no config.yaml.</p>'
    return (
        f"<details><summary>Configuration of {_text(run.name)}</summary>"
        f"<pre>{_text(run.config_text)}</pre></details>"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:]
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:,.4g}{unit}"


def _text(value: str) -> str:
    return html.escape(value)


def write_report(
    runs: Sequence[ReportRun], probes: Sequence[tuple[str, ProbeReport]], out: Path
) -> None:
    """Renders the page and publishes it as ``out``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, render(runs, probes).encode("utf-8"))
