"""The heads by name, and what they found on every layer and on the weighted sum of all.

linear   multinomial logistic regression, convex: the same from any start (probes.linear)
mlp      one hidden layer of 512, from several random starts (probes.mlp)
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from etude.probes import linear, mlp
from etude.probes.metrics import METRICS, evaluate
from etude.probes.problem import Fit, Problem
from etude.probes.task_types import ProbeTask

HeadName = Literal["linear", "mlp"]

HEAD_NAMES: tuple[HeadName, ...] = get_args(HeadName)


@dataclass(frozen=True)
class HeadOptions:
    """How heads are fitted."""

    names: tuple[HeadName, ...] = ("linear",)
    """The first one's results are those that are compared and drawn."""

    seeds: int = 3
    """Random starts of a head that has any."""

    weighted_sum: bool = True
    """Whether the weighted sum of all layers is fitted beside single ones."""


@dataclass(frozen=True, eq=False)
class LayerScore:
    """A head on one layer, or on the sum of all."""

    layer: int | None
    """``None``: the weighted sum."""

    fit: Fit

    test: float
    """The task's first metric on the test, mean over seeds."""


@dataclass(frozen=True, eq=False)
class HeadScore:
    """A head on all layers, and which of them speaks for the model."""

    layers: tuple[LayerScore, ...]

    weighted_sum: LayerScore | None

    @property
    def chosen(self) -> LayerScore:
        """The single layer that validation likes best; of equals the lowest."""
        return max(self.layers, key=lambda score: score.fit.valid)


def fit_head(
    name: HeadName,
    problem: Problem,
    task: ProbeTask,
    options: HeadOptions,
    *,
    seed: int,
    device: torch.device,
) -> HeadScore:
    """Fits a head on every layer, and on their sum where there is more than one layer."""
    summing = options.weighted_sum and len(problem.features_LND) > 1
    if name == "linear":
        fits = linear.fit_layers(problem)
        summed = linear.fit_sum(problem) if summing else None
    else:
        fits = mlp.fit_layers(problem, seeds=options.seeds, seed=seed, device=device)
        summed = None
        if summing:
            summed = mlp.fit_sum(problem, seeds=options.seeds, seed=seed, device=device)
    return HeadScore(
        tuple(_score(layer, fit, task) for layer, fit in enumerate(fits)),
        None if summed is None else _score(None, summed, task),
    )


def _score(layer: int | None, fit: Fit, task: ProbeTask) -> LayerScore:
    metric, rows = METRICS[task.metrics[0]], task.rows("test")
    values = [evaluate(metric, outputs_NC, task, rows) for outputs_NC in fit.outputs_SNC]
    return LayerScore(layer, fit, float(np.mean(values)))
