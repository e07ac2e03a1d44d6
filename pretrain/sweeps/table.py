"""The answer to a question: every run's numbers, the differences, and what may be said of them.

``table.json``:

    question, reference, seeds, variants
    probe         the options that all runs were probed with
    runs          [{variant, seed, step, MEASURE: value ...}], those that are done
    missing       ["VARIANT seed S", ...], those that are not
    differences   [{variant, measure, by_seed, value, low, high, seeds, tracks, verdict, words}]

Nothing in it depends on when, where or in how many attempts the runs were trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etude.data.files import json_bytes, write_bytes
from etude.data.text import aligned
from etude.pretrain.report_page import note, table
from etude.pretrain.sweeps.question import Question
from etude.pretrain.sweeps.runs import SweepRun
from etude.pretrain.sweeps.verdict import Measure, Verdict

_DIGITS = 6
_NOTE = (
    "A difference is a variant minus the reference with the same seed, mean over seeds, with its "
    "95 % interval: over test tracks and seeds for accuracies, over seeds for losses. One whose "
    "interval contains zero shows nothing."
)
_SEVERAL = (
    "Each interval stands for itself: of 20 differences between equals, one is expected to lie "
    "outside."
)


@dataclass(frozen=True)
class RunRow:
    """A run that is done."""

    run: SweepRun
    values: Mapping[Measure, float]


@dataclass(frozen=True)
class SweepTable:
    """All that a question has been answered with so far."""

    question: Question
    rows: tuple[RunRow, ...]
    verdicts: tuple[Verdict, ...]
    missing: tuple[SweepRun, ...]

    def as_json(self) -> dict[str, Any]:
        """The content of ``table.json``."""
        question = self.question
        return {
            "question": question.text,
            "reference": question.reference,
            "seeds": list(question.seeds),
            "variants": list(question.variants),
            "probe": question.probe.model_dump(mode="json", exclude={"cache"}),
            "runs": [
                {
                    "variant": row.run.variant,
                    "seed": row.run.seed,
                    "step": row.run.exit()["step"],
                    **{measure.name: _round(value) for measure, value in row.values.items()},
                }
                for row in self.rows
            ],
            "missing": [run.name for run in self.missing],
            "differences": [_verdict_json(verdict) for verdict in self.verdicts],
        }

    def means(self) -> list[list[str]]:
        """Variants down, measures across: means over the seeds that are done."""
        measures = list(dict.fromkeys(measure for row in self.rows for measure in row.values))
        made = [["mean over seeds", "seeds", *(measure.name for measure in measures)]]
        for variant in self.question.variants:
            rows = [row for row in self.rows if row.run.variant == variant]
            found = [[row.values[m] for row in rows if m in row.values] for m in measures]
            cells = [f"{sum(each) / len(each):.3f}" if each else "-" for each in found]
            made.append([variant, str(len(rows)), *cells])
        return made

    def differences(self) -> list[list[str]]:
        """One line per variant and measure."""
        made = [["minus " + self.question.reference, "measure", "difference [95 %]", "verdict"]]
        for verdict in self.verdicts:
            interval = verdict.interval
            ends = "" if interval is None else f" [{interval[0]:+.3f}, {interval[1]:+.3f}]"
            shown = f"{verdict.value:+.3f}{ends}"
            made.append([verdict.variant, verdict.measure.name, shown, verdict.sentence])
        return made

    def notes(self) -> list[str]:
        """What has to be known to read it."""
        notes = [_NOTE]
        if len(self.verdicts) > 1:
            notes.append(_SEVERAL)
        if self.missing:
            names = ", ".join(run.name for run in self.missing)
            notes.append(f"Not done, and left out with their pairs: {names}.")
        return notes

    def text(self) -> str:
        """For a terminal."""
        blocks = [self.question.text, aligned(self.means())]
        if self.verdicts:
            blocks.append(aligned(self.differences()))
        return "\n\n".join([*blocks, "\n".join(self.notes())])

    def markdown(self) -> str:
        """For a notebook or a pull request."""
        blocks = [f"# {self.question.text}", _markdown(self.means())]
        if self.verdicts:
            blocks.append(_markdown(self.differences()))
        return "\n\n".join([*blocks, *self.notes()]) + "\n"

    def html(self) -> list[str]:
        """For the head of the comparison page."""
        parts = ["<h2>Verdict</h2>", table(self.means())]
        if self.verdicts:
            parts.append(table(self.differences()))
        return [*parts, *map(note, self.notes()), "<h2>The runs</h2>"]

    def write(self, folder: Path) -> None:
        """Writes ``table.json`` and ``table.md``."""
        write_bytes(folder / "table.json", json_bytes(self.as_json()))
        write_bytes(folder / "table.md", self.markdown().encode())


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    low, high = verdict.interval or (None, None)
    return {
        "variant": verdict.variant,
        "measure": verdict.measure.name,
        "by_seed": {str(seed): _round(value) for seed, value in verdict.by_seed.items()},
        "value": _round(verdict.value),
        "low": None if low is None else _round(low),
        "high": None if high is None else _round(high),
        "seeds": len(verdict.by_seed),
        "tracks": verdict.tracks,
        "verdict": verdict.word,
        "words": verdict.sentence,
    }


def _round(value: float) -> float:
    return round(value, _DIGITS) + 0.0  # no -0.0


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
