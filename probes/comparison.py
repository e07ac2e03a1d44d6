"""Probes of several trainings side by side: their answers per test track, read back, and paired.

Runs that were probed with the same options were asked the same questions on the same tracks.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from etude.data.errors import InputError
from etude.probes.intervals import Interval, paired_interval
from etude.probes.results import RESULTS_NAME


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model answered in one task's test."""

    tracks_T: npt.NDArray[np.int64]
    examples_T: npt.NDArray[np.float64]
    """Questions asked of each track."""
    right_T: npt.NDArray[np.float64]

    @property
    def accuracy(self) -> float:
        """Over examples, as the probe's table has it."""
        return float(self.right_T.sum() / self.examples_T.sum())


@dataclass(frozen=True)
class ProbeFolder:
    """Results of one model, with what they were made with."""

    checkpoint: str
    """Name of the folder that the weights came from."""

    settings: dict[str, Any]
    tasks: Mapping[str, Answers]


def read_answers(folder: Path) -> ProbeFolder | None:
    """Reads the first model's answers; ``None`` where there are no results of this version."""
    try:
        content = json.loads((folder / RESULTS_NAME).read_text())
        model = content["models"][0]
        return ProbeFolder(
            Path(model["path"]).name,
            content["settings"],
            {name: _answers(task, model["name"]) for name, task in content["tasks"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def paired_difference(
    variant: Sequence[Answers], reference: Sequence[Answers], *, seed: int
) -> Interval:
    """Accuracy minus the reference's, over trainings that share a seed in pairs.

    :param variant: one for each training.
    :param reference: the same in the same order.
    :param seed: decides the draws.
    :raises InputError: if they were not asked the same.
    """
    first = reference[0]
    for each in (*variant, *reference):
        if not (
            np.array_equal(each.tracks_T, first.tracks_T)
            and np.array_equal(each.examples_T, first.examples_T)
        ):
            raise InputError(
                "runs must have been probed on the same tracks to be compared, but were not: "
                "delete their probe folders, and they are probed again."
            )
    gain_ST = np.stack([a.right_T - b.right_T for a, b in zip(variant, reference, strict=True)])
    return paired_interval(gain_ST, first.examples_T, seed=seed)


def _answers(task: dict[str, Any], model: str) -> Answers:
    return Answers(
        np.asarray(task["test_tracks"], dtype=np.int64),
        np.asarray(task["test_examples"], dtype=np.float64),
        np.asarray(task["results"][model]["test_right"], dtype=np.float64),
    )
