"""An inspection as rows of text, which the terminal and the page share."""

from collections.abc import Callable, Mapping, Sequence

from etude.data.inspection.figures import Figure, Quantiles, Unit, figures
from etude.data.inspection.look import Inspection
from etude.data.text import aligned

Rows = list[list[str]]

_BASES = {"index": "all clips", "sample": "sample"}

_FORMATS: Mapping[Unit, Callable[[float], str]] = {
    "count": lambda value: f"{value:,.0f}",
    "hours": lambda value: f"{value:,.2f} h",
    "seconds": lambda value: f"{value:.1f} s",
    "bytes": lambda value: f"{value / 1e6:,.1f} MB",
    "share": lambda value: "0" if value == 0 else f"{value:.2%}",
    "dBFS": lambda value: f"{value:.1f} dBFS",
    "Hz": lambda value: f"{value:,.0f} Hz",
}


def what_was_looked_at(inspection: Inspection) -> str:
    """One sentence on the sample, and on time if it ran out."""
    of = {split.name: split.clips for split in inspection.splits}
    said = [f"{s.looked_at:,} of {of[s.name]:,} {s.name} clips" for s in inspection.samples]
    sentence = f"Looked at {' and '.join(said)}"
    if inspection.out_of_time:
        chosen = sum(sample.chosen for sample in inspection.samples)
        return (
            f"{sentence}: {chosen:,} were to be, but {inspection.seconds:g} s of reading were over "
            "(--seconds allows more)."
        )
    return f"{sentence}, within {inspection.seconds:g} s of reading."


def figure_rows(inspection: Inspection) -> Rows:
    """Figures down, splits across; quantities with a spread as median and, in brackets, 5 to 95 %
    of the clips."""
    names = [split.name for split in inspection.splits]
    rows = [["", "over", *names]]
    for figure in figures(inspection):
        cells = [_cell(figure, figure.values[name]) for name in names]
        rows.append([figure.label, _BASES[figure.basis], *cells])
    return rows


def source_rows(inspection: Inspection) -> Rows:
    """Rates of the files that tracks come from."""
    rates = inspection.tracks.source_rates
    names = [split.name for split in inspection.splits]
    rows = [["tracks by rate of their file", *names]]
    for rate in sorted({rate for counts in rates.values() for rate in counts}):
        rows.append([f"{rate:,} Hz", *(f"{rates[name][rate]:,}" for name in names)])
    total = inspection.tracks.total
    read = inspection.tracks.read
    rows.append(["tracks read", *(f"{read[name]:,} of {total[name]:,}" for name in names)])
    return rows


def licence_rows(inspection: Inspection) -> Rows:
    """Hours per licence, by the index; no rows where the corpus tells none."""
    licences = inspection.corpus.licences
    if not licences:
        return []
    total = sum(licences.values())
    rows = [["licence", "over", "audio", "share"]]
    for name, seconds in licences.items():
        rows.append([name, "all clips", f"{seconds / 3600:,.2f} h", f"{seconds / total:.1%}"])
    return rows


def leak_rows(inspection: Inspection) -> Rows:
    """What train and the held-out clips have in common; no rows where nothing is held out."""
    if not inspection.leaks:
        return []
    tracks = " + ".join(f"{count:,} {name}" for name, count in inspection.tracks.read.items())
    over = {"index": "all clips", "tracks": f"JSON of {tracks} tracks"}
    rows = [["held out and in train too", "over", "found"]]
    for leak in inspection.leaks:
        what = "clips" if leak.basis == "index" else "tracks"
        found = f"{leak.found:,} of {leak.held_out:,} {what}"
        rows.append([f"same {leak.kind}", over[leak.basis], found])
    return rows


def label_rows(inspection: Inspection) -> Rows:
    """Use of each codebook; no rows where there are no labels."""
    if not inspection.labels:
        return []
    rows = [["labels", "over", "in use", "perplexity", "most common"]]
    for usage in inspection.labels:
        common = ", ".join(f"{label} ({share:.1%})" for label, share in usage.most_common)
        rows.append(
            [
                usage.name,
                f"{usage.frames:,} frames of {usage.clips:,} clips",
                f"{usage.used:,} of {usage.classes:,}",
                f"{usage.perplexity:,.0f}" if usage.frames else "-",
                common or "-",
            ]
        )
    return rows


def terminal_text(inspection: Inspection, *, found: Sequence[str], problems: Sequence[str]) -> str:
    """The tables, and below them what was found."""
    tables = [rows(inspection) for rows in (figure_rows, licence_rows, leak_rows, label_rows)]
    parts = [what_was_looked_at(inspection), *(aligned(rows) for rows in tables if rows)]
    notes = [f"  - {line}" for line in (*found, *problems)]
    parts.append("\n".join(["Found:", *notes]) if notes else "Nothing out of the ordinary.")
    return "\n\n".join(parts)


def _cell(figure: Figure, value: float | Quantiles | None) -> str:
    form = _FORMATS[figure.unit]
    if value is None:
        return "-"
    if isinstance(value, tuple):
        low, _, middle, _, high = value
        unit = form(0).partition(" ")[2]
        short = [form(v).removesuffix(f" {unit}") for v in (low, high)]
        return f"{form(middle)} ({short[0]} to {short[1]})"
    return form(value)
