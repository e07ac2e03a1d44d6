"""How well a run predicts held-out tracks, beside what costs nothing, as a table for a terminal."""

from collections.abc import Sequence

from etude.data.text import aligned
from etude.pretrain.report_panels import VALID, target_names
from etude.pretrain.report_run import ReportRun

_LABELS = ("accuracy", "majority_rate", "copy_accuracy", "loss", "unigram_entropy")
_SPECTRUM = ("loss", "variance", "copy_loss")


def held_out_table(runs: Sequence[ReportRun]) -> str:
    """Newest held-out values of every target of every run; empty where there are none."""
    labels = [["held out, masked frames", "accuracy", "majority", "copying", "loss", "unigram"]]
    spectra = [["held out, masked frames", "error", "of the mean", "copying"]]
    for run in runs:
        for target in target_names([run]):
            if (row := _row(run, target, *_LABELS)) is not None:
                labels.append(row)
            elif (row := _row(run, target, *_SPECTRUM)) is not None:
                spectra.append(row)
    return "\n\n".join(aligned(rows) for rows in (labels, spectra) if len(rows) > 1)


def _row(run: ReportRun, target: str, *quantities: str) -> list[str] | None:
    values = [run.metrics.last(f"{VALID}{target}/{quantity}") for quantity in quantities]
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        return None
    return [f"{run.name} {target}", *(f"{value:.3f}" for value in found)]
