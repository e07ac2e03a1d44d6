"""The pieces that every page is made of: its frame with its style, tables, figures, text.

A page stands alone: no server, no network, nothing beside the file. It is read on a laptop, a phone
or paper, in light or dark.
"""

import html
from collections.abc import Sequence

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


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page around parts that are HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def panels(figures: Sequence[str]) -> str:
    """Figures beside one another where there is room."""
    return f'<div class="panels">{"".join(figures)}</div>'


def figure(title: str, drawing: str, note: str) -> str:
    """One drawing with its title and what should be known about it."""
    return (
        f"<figure><h3>{text(title)}</h3>{drawing}"
        f'<figcaption class="note">{text(note)}</figcaption></figure>'
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
