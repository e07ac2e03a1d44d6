"""The probe itself: multinomial logistic regression on standardised features, one per layer.

Fitted on train, regularisation and layer chosen on validation accuracy, the test counted once at
the end. The test's labels take no part in any choice: with them shuffled the same layer is chosen.
"""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

REGULARISATION = (0.01, 0.1, 1.0, 10.0)
"""Values of scikit-learn's C tried, strongest penalty first: a tie goes to the simpler probe."""

MAX_ITERATIONS = 100
"""Of lbfgs. Accuracies no longer move after this many, long before the weights have converged."""


class SplitRows(NamedTuple):
    """Which examples are for what."""

    train: npt.NDArray[np.int64]
    valid: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LayerScore:
    """One layer's probe."""

    layer: int
    regularisation: float
    """The C that validation chose."""
    valid_accuracy: float
    test_accuracy: float
    test_correct: npt.NDArray[np.bool_]
    """Whether each test example was answered right, in the order of ``SplitRows.test``."""


@dataclass(frozen=True, eq=False)
class ProbeScore:
    """All layers' probes and which of them speaks for the model."""

    layers: tuple[LayerScore, ...]

    @property
    def chosen(self) -> LayerScore:
        """The layer with the best validation accuracy; of equals the lowest."""
        return max(self.layers, key=lambda score: score.valid_accuracy)


def probe_layers(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], rows: SplitRows
) -> ProbeScore:
    """Probes every layer.

    :param features: pooled features, (layers, examples, D).
    :param labels: class of each example, (examples,).
    """
    # One BLAS thread: the products are so small that handing them to a second one costs ten times
    # what it saves (13 layers x 512: 2 s instead of 15 on a busy machine of two cores).
    with threadpool_limits(1):
        return ProbeScore(
            tuple(_probe(layer, layer_ND, labels, rows) for layer, layer_ND in enumerate(features))
        )


def _probe(
    layer: int,
    features_ND: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    rows: SplitRows,
) -> LayerScore:
    train_ND = features_ND[rows.train]
    mean, spread = train_ND.mean(axis=0), train_ND.std(axis=0)
    # A feature that never moves in training says nothing; dividing by its rounding noise would
    # let it shout on the test.
    alive = spread > 1e-6 * np.maximum(1.0, np.abs(mean))
    scaled_ND = (features_ND[:, alive] - mean[alive]) / spread[alive]

    best: tuple[float, float, npt.NDArray[np.bool_]] | None = None
    # Each fit starts from the one with the stronger penalty, which is near: half the iterations.
    model = LogisticRegression(max_iter=MAX_ITERATIONS, tol=1e-3, warm_start=True)
    for regularisation in REGULARISATION:
        model.set_params(C=regularisation)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            # Few notes of many pitches, with few tracks: still a classification.
            warnings.filterwarnings("ignore", message="The number of unique classes")
            model.fit(scaled_ND[rows.train], labels[rows.train])
        valid_accuracy = float(np.mean(model.predict(scaled_ND[rows.valid]) == labels[rows.valid]))
        if best is None or valid_accuracy > best[0]:
            correct = model.predict(scaled_ND[rows.test]) == labels[rows.test]
            best = (valid_accuracy, regularisation, correct)
    assert best is not None
    valid_accuracy, regularisation, correct = best
    return LayerScore(layer, regularisation, valid_accuracy, float(correct.mean()), correct)
