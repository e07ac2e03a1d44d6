"""What a head is fitted on: features by layer, the truth of each row, which rows are for what.

A row is an example, or for beats one span of one. Heads see nothing of tasks, tracks or metrics:
``valid_score`` says how good their answers on the validation rows are, and higher is better.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from etude.probes.beats import beat_targets
from etude.probes.metrics import METRICS, Outputs, evaluate
from etude.probes.splits import SPLITS
from etude.probes.task_types import ProbeTask

Loss = Literal["categorical", "binary", "squared"]
"""Cross-entropy of one class, of each output on its own, or half the squared error."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything that fitting a head takes."""

    features_LND: npt.NDArray[np.float32]
    """All rows, by layer."""

    truth: npt.NDArray[Any]
    """Class numbers (rows,) or values (rows, outputs)."""

    loss: Loss

    outputs: int
    """Classes or values."""

    train: Rows
    valid: Rows
    test: Rows

    valid_score: Callable[[Outputs], float]
    """Of outputs (validation rows, outputs)."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A head on one layer, or on the weighted sum of all."""

    tuning: dict[str, float]
    """What validation chose."""

    valid_S: tuple[float, ...]
    """Validation score, by seed; one where a head has no randomness."""

    outputs_SNC: Outputs
    """On the test: (seeds, rows, outputs)."""

    layer_weights: tuple[float, ...] | None = None
    """Of a weighted sum: the softmaxed weights, mean over seeds."""

    @property
    def valid(self) -> float:
        """Mean validation score."""
        return float(np.mean(self.valid_S))


def make_problem(task: ProbeTask, features_LND: npt.NDArray[np.float32]) -> Problem:
    """The problem that a task is for a head.

    :param features_LND: of ``task.feature_rows``.
    """
    truth: npt.NDArray[Any]
    loss: Loss
    if task.answer == "classes":
        truth, loss = task.labels, "categorical"
    elif task.answer == "beats":
        truth = np.concatenate([beat_targets(example) for example in task.examples])[:, None]
        loss = "binary"
    else:
        truth, loss = task.values, "binary" if task.answer == "multilabel" else "squared"
    metric, valid = METRICS[task.metrics[0]], task.rows("valid")
    rows = {split: _feature_rows(task, task.rows(split)) for split in SPLITS}
    return Problem(
        features_LND,
        truth,
        loss,
        outputs=len(task.outputs),
        **rows,
        valid_score=lambda outputs_NC: evaluate(metric, outputs_NC, task, valid),
    )


def standardised(
    features_ND: npt.NDArray[np.float32], train: Rows
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Features of mean 0 and deviation 1 on ``train``, and which of them move there at all.

    A feature that never moves in training says nothing; dividing by its rounding noise would let
    it shout on the test. It comes back as 0.
    """
    train_ND = features_ND[train]
    mean, spread = train_ND.mean(axis=0), train_ND.std(axis=0)
    alive = spread > 1e-6 * np.maximum(1.0, np.abs(mean))
    scaled_ND = (features_ND - mean) / np.where(alive, spread, np.float32(1.0))
    scaled_ND[:, ~alive] = 0.0
    return scaled_ND, alive


def _feature_rows(task: ProbeTask, examples: Rows) -> Rows:
    counts = np.array([len(example.spans) for example in task.examples])
    firsts = np.concatenate([[0], np.cumsum(counts)])
    return np.concatenate([np.arange(firsts[e], firsts[e + 1]) for e in examples])
