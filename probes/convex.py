"""A linear head by L-BFGS in torch: on one layer, or on a learned weighted sum of layers.

    sum over rows of loss(W x + b)  +  |W|^2 / 2C,     x = sum over layers of softmax(a)_l x_l

With one layer it is scikit-learn's objective of the same C, which ``tests/probes`` holds it
against. The weights of layers, ``a``, start equal and are not penalised; each layer is standardised
on train first, so that a loud layer does not count for more (as in SUPERB, Yang et al. 2021, which
leaves levels as they are).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from etude.probes.problem import Fit, Loss, Problem, standardised

GRADIENT_TOLERANCE = 1e-4


def fit_convex(
    problem: Problem,
    features_LND: npt.NDArray[np.float32],
    regularisation: Sequence[float],
    max_iterations: int,
) -> Fit:
    """Fits for each penalty, strongest first, from the last one's weights; validation chooses.

    :param features_LND: the layers to sum, all rows.
    :param regularisation: values of C, ascending.
    """
    scaled_LND = torch.from_numpy(
        np.stack([standardised(layer_ND, problem.train)[0] for layer_ND in features_LND])
    )
    train_LND, valid_LND, test_LND = (
        scaled_LND[:, torch.from_numpy(rows)]
        for rows in (problem.train, problem.valid, problem.test)
    )
    del scaled_LND
    truth, centre, scale = training_truth(problem)
    head = _Head(len(features_LND), features_LND.shape[-1], problem.outputs)
    best: Fit | None = None
    for value in regularisation:
        head.fit(train_LND, truth, problem.loss, 1.0 / value, max_iterations)
        valid = problem.valid_score(head.outputs(valid_LND) * scale + centre)
        if best is None or valid > best.valid:
            outputs_NC = head.outputs(test_LND) * scale + centre
            weights = tuple(head.weights.tolist()) if len(features_LND) > 1 else None
            best = Fit({"regularisation": value}, (valid,), outputs_NC[None], weights)
    assert best is not None
    return best


def training_truth(
    problem: Problem,
) -> tuple[Tensor, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Truth of the training rows; values to regress are standardised by the centre and scale."""
    truth = problem.truth[problem.train]
    centre = np.zeros(problem.outputs, dtype=np.float32)
    scale = np.ones(problem.outputs, dtype=np.float32)
    if problem.loss == "squared":
        centre, scale = truth.mean(axis=0), truth.std(axis=0)
        scale = np.where(scale > 0, scale, np.float32(1.0))
        truth = (truth - centre) / scale
    return torch.from_numpy(truth), centre, scale


def loss_sum(outputs_NC: Tensor, truth: Tensor, loss: Loss) -> Tensor:
    """Loss of all rows together."""
    if loss == "categorical":
        return F.cross_entropy(outputs_NC, truth, reduction="sum")
    if loss == "binary":
        return F.binary_cross_entropy_with_logits(outputs_NC, truth, reduction="sum")
    return F.mse_loss(outputs_NC, truth, reduction="sum") / 2


class _Head:
    def __init__(self, layers: int, dim: int, outputs: int) -> None:
        self._weight_CD = torch.zeros(outputs, dim, requires_grad=True)
        self._bias_C = torch.zeros(outputs, requires_grad=True)
        self._logits_L = torch.zeros(layers, requires_grad=True)

    @property
    def weights(self) -> Tensor:
        """Of the layers, summing to 1."""
        return self._logits_L.detach().softmax(dim=0)

    def fit(
        self, features_LND: Tensor, truth: Tensor, loss: Loss, penalty: float, iterations: int
    ) -> None:
        parameters = [self._weight_CD, self._bias_C]
        if len(features_LND) > 1:
            parameters.append(self._logits_L)
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=iterations,
            history_size=10,
            tolerance_grad=GRADIENT_TOLERANCE,
            line_search_fn="strong_wolfe",
        )
        rows = features_LND.shape[1]

        def objective() -> Tensor:
            optimizer.zero_grad()
            total = loss_sum(self._forward(features_LND), truth, loss)
            # Over rows, so that the tolerance means the same for few and for many.
            value = (total + penalty / 2 * self._weight_CD.square().sum()) / rows
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(objective)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def outputs(self, features_LND: Tensor) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = self._forward(features_LND).numpy()
        return found

    def _forward(self, features_LND: Tensor) -> Tensor:
        layers, rows, dim = features_LND.shape
        mixed = features_LND[0]
        if layers > 1:
            # A matrix times a vector, without a copy of all layers for the backward pass.
            weights = self._logits_L.softmax(dim=0)
            mixed = (weights @ features_LND.reshape(layers, -1)).reshape(rows, dim)
        return F.linear(mixed, self._weight_CD, self._bias_C)
