"""The pieces that every page is made of: its frame with its style, tables, figures, text.

A page stands alone: no server, no network, nothing beside the file. It is read on a laptop, a phone
or paper, in light or dark, with scripts or without. It says itself what a browser may do with it:
load nothing, and run no script but ours.
"""

import base64
import hashlib
import html
from collections.abc import Sequence
from pathlib import Path

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
svg { width: 100%; height: auto; display: block; } .wide + .panels { margin-top: 1rem; }
section { margin-top: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td { overflow-wrap: break-word; max-width: 24rem; }
.controls { position: sticky; top: 0; background: var(--paper); padding: .4rem 0; z-index: 1;
  border-bottom: 1px solid var(--line); font-size: .9rem; max-height: 35vh; overflow-y: auto; }
.controls fieldset { display: inline; border: 0; margin: 0 1rem 0 0; padding: 0; }
.controls legend { float: left; padding: 0; margin-right: .6rem; color: var(--soft); }
.controls input[type=range] { width: 9rem; vertical-align: middle; }
html:not(.scripted) .switches, html:not(.scripted) .legend :is(input, button) { display: none; }
.legend label { margin-right: 1.2rem; white-space: nowrap; }
.legend label:has(input:not(:checked)) { opacity: .5; }
.legend i { display: inline-block; width: 1.4rem; height: .25rem; margin-right: .4rem;
  vertical-align: middle; border-radius: .1rem; print-color-adjust: exact; }
pre { overflow-x: auto; font-size: .8rem; }
svg.live { touch-action: pan-y; cursor: crosshair; user-select: none; }
svg.live text { font: 10px system-ui, sans-serif; fill: currentColor; }
svg.live .key { font-size: 9px; } svg.live .grid { stroke: currentColor; opacity: .15; }
svg.live .mark { fill: currentColor; opacity: .15; }
.reading { min-height: 1.3em; }
th button { all: unset; cursor: pointer; font-weight: bold; }
th button::after { content: "\\a0\\2195"; opacity: .4; }
th[aria-sort=ascending] button::after { content: "\\a0\\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: "\\a0\\2193"; opacity: 1; }
:is(svg.live, th button):focus-visible { outline: 2px solid #2f7ed8; outline-offset: 2px; }
@media print {
  :root { color-scheme: light; --ink: #000; --paper: #fff; --soft: #444; --line: #ccc;
    --panel: #fff; }
  body { max-width: none; padding: 0; } .controls { position: static; max-height: none; }
  .switches, .legend :is(input, button), .reading { display: none; }
  .panels { grid-template-columns: 1fr 1fr; } th button::after { content: none; }
  .wide, pre { overflow: visible; } pre { white-space: pre-wrap; } tr { break-inside: avoid; } }
"""


def page(title: str, parts: Sequence[str], *, data: str | None = None) -> str:
    """A whole page around parts that are HTML already.

    :param data: JSON for ``report.js``, which then comes with it.
    """
    script, allowed = "", ""
    if data is not None:
        code = Path(__file__).with_name("report.js").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
        script = (
            f'<script type="application/json" id="data">{data}</script>\n<script>{code}</script>\n'
        )
        allowed = f" script-src 'sha256-{digest}';"
    policy = f"default-src 'none'; style-src 'unsafe-inline';{allowed}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + f"\n{script}</body>\n</html>\n"
    )


def panels(figures: Sequence[str]) -> str:
    """Figures beside one another where there is room."""
    return f'<div class="panels">{"".join(figures)}</div>'


def figure(title: str, drawing: str, note: str, *, chart: int | None = None) -> str:
    """One drawing with its title and what should be known about it.

    :param chart: its number in the data of the page's script, which draws it anew.
    """
    number = "" if chart is None else f' data-chart="{chart}"'
    return (
        f"<figure{number}><h3>{text(title)}</h3>{drawing}"
        f'<figcaption class="note">{text(note)}</figcaption></figure>'
    )


def controls(names: Sequence[str], colours: Sequence[str]) -> str:
    """The legend, whose entries the script switches, below what else it switches."""
    axes = (("updates", "updates"), ("hours", "audio hours"), ("seconds", "wall-clock"))
    radios = "".join(
        f'<label><input type="radio" name="axis" value="{value}"'
        f"{' checked' if value == 'updates' else ''}>{label}</label> "
        for value, label in axes
    )
    entries = "".join(
        f'<label><input type="checkbox" value="{number}" checked>'
        f'<i style="background:{colour}"></i>{text(name)}</label> '
        for number, (name, colour) in enumerate(zip(names, colours, strict=True))
    )
    everything = (
        '<button type="button" data-all="on">all</button> '
        '<button type="button" data-all="off">none</button>'
        if len(names) > 2
        else ""
    )
    return (
        '<div class="controls"><div class="switches"><fieldset><legend>over</legend>'
        f"{radios}</fieldset>"
        '<label>smoothing <input type="range" id="smoothing" min="0" max="0.98" step="0.02" '
        'value="0"></label> <output id="smoothed">0</output> '
        '<span class="note">drag over a chart to zoom, double-click to reset; '
        "click a table's heading to sort</span></div>"
        f'<div class="legend">{entries}{everything}</div></div>'
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first one being the header."""
    head = "".join(f"<th>{text(cell)}</th>" for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:]
    )
    made = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{made}</div>'


def note(words: str) -> str:
    """A small paragraph."""
    return f'<p class="note">{text(words)}</p>'


def text(value: str) -> str:
    """Escapes what somebody wrote."""
    return html.escape(value)
