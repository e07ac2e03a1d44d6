"""The linear head: multinomial logistic regression on standardised features.

Fitted on train, the penalty chosen on validation, the test answered once at the end. Of single
layers scikit-learn's estimator; of the weighted sum of all layers, and of answers that are no
classes, the same objective in torch (``probes.convex``). Neither has any randomness.
"""

import warnings

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from etude.probes.convex import fit_convex
from etude.probes.metrics import Outputs
from etude.probes.problem import Fit, Problem, standardised

REGULARISATION = (0.01, 0.1, 1.0, 10.0)
"""Values of scikit-learn's C tried, strongest penalty first: a tie goes to the simpler probe."""

MAX_ITERATIONS = 100
"""Of lbfgs. Accuracies no longer move after this many, long before the weights have converged."""

TOLERANCE = 1e-4
"""Of its gradient: scikit-learn's own. At 1e-3 accuracies were up to 1.6 points from those of a
plain pipeline on tests of 190 to 320 examples: luck of the optimizer decided between penalties."""


def fit_layers(problem: Problem) -> list[Fit]:
    """The head on every single layer."""
    # One BLAS thread: the products are so small that handing them to a second one costs ten times
    # what it saves (13 layers x 512: 2 s instead of 15 on a busy machine of two cores).
    with threadpool_limits(1):
        return [
            _fit_logistic(problem, layer_ND)
            if problem.loss == "categorical"
            else fit_convex(problem, layer_ND[None], REGULARISATION, MAX_ITERATIONS)
            for layer_ND in problem.features_LND
        ]


def fit_sum(problem: Problem) -> Fit:
    """The head on the sum of all layers, their weights learned with it."""
    return fit_convex(problem, problem.features_LND, REGULARISATION, MAX_ITERATIONS)


def _fit_logistic(problem: Problem, features_ND: npt.NDArray[np.float32]) -> Fit:
    scaled_ND, alive = standardised(features_ND, problem.train)
    scaled_ND = scaled_ND[:, alive]
    train_ND, labels = scaled_ND[problem.train], problem.truth[problem.train]
    best: Fit | None = None
    # Each fit starts from the one with the stronger penalty, which is near: half the iterations.
    model = LogisticRegression(max_iter=MAX_ITERATIONS, tol=TOLERANCE, warm_start=True)
    for regularisation in REGULARISATION:
        model.set_params(C=regularisation)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            # Few notes of many pitches, with few tracks: still a classification.
            warnings.filterwarnings("ignore", message="The number of unique classes")
            model.fit(train_ND, labels)
        valid = problem.valid_score(_outputs(model, scaled_ND[problem.valid], problem.outputs))
        if best is None or valid > best.valid:
            outputs_NC = _outputs(model, scaled_ND[problem.test], problem.outputs)
            best = Fit({"regularisation": regularisation}, (valid,), outputs_NC[None])
    assert best is not None
    return best


def _outputs(
    model: LogisticRegression, features_ND: npt.NDArray[np.float32], outputs: int
) -> Outputs:
    """Log-odds of all classes; a class that training lacked is never answered."""
    decision = model.decision_function(features_ND)
    if decision.ndim == 1:
        decision = np.stack([-decision, decision], axis=1)
    outputs_NC = np.full((len(features_ND), outputs), -np.inf, dtype=np.float32)
    outputs_NC[:, model.classes_] = decision
    return outputs_NC
