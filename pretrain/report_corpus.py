"""The page of ``launch/inspect.py``: one HTML file about one corpus, and nothing beside it.

what was looked at -> what stands out -> figures -> drawings -> labels -> leaks -> clips to hear
"""

from collections.abc import Sequence
from pathlib import Path

from etude.data.files import write_bytes
from etude.data.inspection.findings import findings, oddities
from etude.data.inspection.look import Inspection
from etude.data.inspection.text import (
    figure_rows,
    label_rows,
    leak_rows,
    licence_rows,
    source_rows,
    what_was_looked_at,
)
from etude.pretrain.report_corpus_figures import corpus_panels
from etude.pretrain.report_page import note, page, panels, table, text

_NAMED = 50
"""Damaged clips whose names are shown; all are counted, and stand in the JSON."""


def render_corpus(inspection: Inspection, problems: Sequence[str]) -> str:
    """The page.

    :param problems: why labels were not counted.
    """
    corpus = inspection.corpus
    looked = what_was_looked_at(inspection)
    title = f"Corpus {corpus.root.resolve().name}"
    parts = [
        f"<h1>{text(title)}</h1>",
        note(f"{corpus.root}, {corpus.sample_rate:,} Hz, {corpus.fingerprint[:12]}"),
        f"<p>{text(looked)} Figures over all clips come from the index and are exact; those over "
        "the sample are of clips spread evenly over the shards of each split. docs/inspect.md "
        "says what each of them means.</p>",
        "<h2>What stands out</h2>",
        _list([*findings(inspection), *problems]) or "<p>Nothing.</p>",
        "<h2>Figures</h2>",
        note("Median, and in brackets 5 to 95 % of the clips, where clips differ."),
        table(figure_rows(inspection)),
        "<h2>Drawings</h2>",
        panels(corpus_panels(inspection, looked)),
    ]
    sections = [
        ("Labels", label_rows(inspection), f"Codebooks over sampled clips of all splits. {looked}"),
        ("Licences", licence_rows(inspection), "All clips, by the index."),
        ("Where tracks come from", source_rows(inspection), "From the JSON of a clip per track."),
        ("On both sides of the split", _leak_rows(inspection), _LEAKS),
        ("The same audio more than once", _copy_rows(inspection), "All clips, by the index."),
        ("Clips to listen to", _oddity_rows(inspection), f"The worst of each kind. {looked}"),
        ("Damaged clips", _damage_rows(inspection), "Met while looking; there may be others."),
    ]
    for heading, rows, words in sections:
        if len(rows) > 1:
            parts.append(f"<h2>{text(heading)}</h2>{note(words)}{table(rows)}")
    return page(title, parts)


def write_corpus_report(inspection: Inspection, problems: Sequence[str], out: Path) -> None:
    """Renders the page and publishes it as ``out``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, render_corpus(inspection, problems).encode("utf-8"))


_LEAKS = (
    "Tracks and audio over all clips, by the index. Sources and artists over tracks whose JSON "
    "was read; tracks that name none are not counted."
)


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>" if lines else ""


def _leak_rows(inspection: Inspection) -> list[list[str]]:
    rows = leak_rows(inspection)
    if not rows:
        return []
    examples = ["such as", *(", ".join(leak.examples) or "-" for leak in inspection.leaks)]
    return [[*row, example] for row, example in zip(rows, examples, strict=True)]


def _copy_rows(inspection: Inspection) -> list[list[str]]:
    rows = [["clips with the same audio, the most frequent first"]]
    return rows + [[", ".join(clips)] for clips in inspection.copies.examples]


def _oddity_rows(inspection: Inspection) -> list[list[str]]:
    rows = [["", "clip", "found"]]
    for oddity in oddities(inspection):
        rows += [[f"{oddity.title} ({oddity.count:,})", *clip] for clip in oddity.clips]
    return rows


def _damage_rows(inspection: Inspection) -> list[list[str]]:
    shown = inspection.damages[:_NAMED]
    rows = [["clip", "problem"], *([damage.clip, damage.problem] for damage in shown)]
    if more := len(inspection.damages) - len(shown):
        rows.append([f"and {more:,} more", "see --json"])
    return rows
