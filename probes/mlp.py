"""The MLP head: one hidden layer of 512, as MARBLE v1 has it, on every layer at once.

    x -> 512 -> ReLU -> dropout .2 -> outputs, Adam without decay, batches of 64, at most 100 epochs

Learning rate by validation, stopping when validation has not improved for 10 epochs; the weights of
the best epoch answer the test. Differences from MARBLE v1 (a43992899/MARBLE-Benchmark): features
are standardised on train, the learning rate does not fall on a plateau, the grid has 3 of its 5
rates, and an epoch has at most 50 batches, which grow instead.

Heads of all layers are trained side by side in one batched product. They share nothing but the
order of the rows, and each keeps its own best epoch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.probes.convex import loss_sum, training_truth
from etude.probes.metrics import Outputs
from etude.probes.problem import Fit, Problem, standardised

HIDDEN = 512
DROPOUT = 0.2
LEARNING_RATES = (5e-3, 1e-3, 1e-4)
BATCH_ROWS = 64
EPOCH_BATCHES = 50
MAX_EPOCHS = 100
PATIENCE_EPOCHS = 10


@dataclass(frozen=True, eq=False)
class _Trained:
    """Heads of one seed and one learning rate, at their best epochs."""

    valid_H: list[float]
    outputs_HNC: Outputs
    weights_L: tuple[float, ...] | None


def fit_layers(problem: Problem, *, seeds: int, seed: int, device: torch.device) -> list[Fit]:
    """The head on every single layer, from ``seeds`` different starts."""
    grid = _train_grid(problem, seeds=seeds, seed=seed, device=device, mixing=False)
    return [_best(grid, head) for head in range(len(problem.features_LND))]


def fit_sum(problem: Problem, *, seeds: int, seed: int, device: torch.device) -> Fit:
    """The head on the sum of all layers, their weights learned with it."""
    return _best(_train_grid(problem, seeds=seeds, seed=seed, device=device, mixing=True), 0)


_Grid = dict[float, list[_Trained]]


def _train_grid(
    problem: Problem, *, seeds: int, seed: int, device: torch.device, mixing: bool
) -> _Grid:
    scaled = [standardised(layer_ND, problem.train)[0] for layer_ND in problem.features_LND]
    features_LND = torch.from_numpy(np.stack(scaled)).to(device)
    return {
        rate: [
            _train(problem, features_LND, rate, (seed, number), mixing) for number in range(seeds)
        ]
        for rate in LEARNING_RATES
    }


def _best(grid: _Grid, head: int) -> Fit:
    """The learning rate with the best mean over seeds; of equals the highest."""
    rate = max(grid, key=lambda rate: np.mean([run.valid_H[head] for run in grid[rate]]))
    runs = grid[rate]
    known = [run.weights_L for run in runs if run.weights_L is not None]
    weights = tuple(np.mean(known, axis=0).tolist()) if known else None
    return Fit(
        {"learning_rate": rate},
        tuple(run.valid_H[head] for run in runs),
        np.stack([run.outputs_HNC[head] for run in runs]),
        weights,
    )


class _Mlps(nn.Module):
    """One MLP per layer, or one on the weighted sum of all: (L, N, D) -> (heads, N, outputs)."""

    def __init__(self, layers: int, dim: int, outputs: int, *, mixing: bool) -> None:
        super().__init__()
        heads = 1 if mixing else layers
        self.logits_L = nn.Parameter(torch.zeros(layers)) if mixing else None
        self.hidden_HDK = _uniform(heads, dim, HIDDEN, fan_in=dim)
        self.hidden_bias_H1K = _uniform(heads, 1, HIDDEN, fan_in=dim)
        self.output_HKC = _uniform(heads, HIDDEN, outputs, fan_in=HIDDEN)
        self.output_bias_H1C = _uniform(heads, 1, outputs, fan_in=HIDDEN)

    def forward(self, features_LND: Tensor) -> Tensor:
        if self.logits_L is not None:
            layers, rows, dim = features_LND.shape
            mixed = self.logits_L.softmax(dim=0) @ features_LND.reshape(layers, -1)
            features_LND = mixed.reshape(1, rows, dim)
        hidden_HNK = torch.baddbmm(self.hidden_bias_H1K, features_LND, self.hidden_HDK).relu()
        hidden_HNK = F.dropout(hidden_HNK, DROPOUT, self.training)
        return torch.baddbmm(self.output_bias_H1C, hidden_HNK, self.output_HKC)


def _uniform(*shape: int, fan_in: int) -> nn.Parameter:
    """As ``nn.Linear`` starts weights and biases."""
    bound = fan_in**-0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def _train(
    problem: Problem, features_LND: Tensor, rate: float, seed: tuple[int, int], mixing: bool
) -> _Trained:
    device = features_LND.device
    layers, _, dim = features_LND.shape
    truth, centre, scale = training_truth(problem)
    truth = truth.to(device)
    train, valid, test = (
        torch.from_numpy(rows).to(device) for rows in (problem.train, problem.valid, problem.test)
    )
    # Whoever calls keeps their random numbers; the order of rows comes from one generator.
    gpus = [device] if device.type == "cuda" else []
    order = np.random.default_rng((*seed, 0x3A7B))
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(int(order.integers(2**62)))
        model = _Mlps(layers, dim, problem.outputs, mixing=mixing).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        batch = max(BATCH_ROWS, -(-len(train) // EPOCH_BATCHES))
        best = _BestEpochs(heads=1 if mixing else layers)
        for _ in range(MAX_EPOCHS):
            model.train()
            shuffled = torch.from_numpy(order.permutation(len(train))).to(device)
            for places in torch.split(shuffled, batch):
                optimizer.zero_grad()
                heads = model(features_LND[:, train[places]])
                losses = [loss_sum(head, truth[places], problem.loss) for head in heads]
                # Over rows alone: each head's gradient is what it would be without the others.
                mean = torch.stack(losses).sum() / len(places)
                mean.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            answers = _answers(model, features_LND[:, valid])
            better = best.improved([problem.valid_score(each * scale + centre) for each in answers])
            if better:
                answers = _answers(model, features_LND[:, test])
                for head in better:
                    best.outputs[head] = answers[head] * scale + centre
                if model.logits_L is not None:
                    best.weights_L = tuple(model.logits_L.detach().softmax(dim=0).tolist())
            if best.done:
                break
    return _Trained(best.scores, np.stack(best.outputs), best.weights_L)


class _BestEpochs:
    """Each head's best epoch so far; a head that has waited long enough is done.

    However long the others still go on, so that none depends on which it is trained beside.
    """

    def __init__(self, *, heads: int) -> None:
        self.scores = [-np.inf] * heads
        self.outputs: list[Outputs] = [np.empty(0, dtype=np.float32)] * heads
        self.weights_L: tuple[float, ...] | None = None
        self._waited = [-1] * heads  # the first epoch is the best whatever it scores

    @property
    def done(self) -> bool:
        return min(self._waited) >= PATIENCE_EPOCHS

    def improved(self, scores: list[float]) -> list[int]:
        """Takes an epoch's validation scores in; which heads have a new best one."""
        better = []
        for head, score in enumerate(scores):
            if self._waited[head] >= PATIENCE_EPOCHS:
                continue
            if score > self.scores[head] or self._waited[head] < 0:
                self.scores[head], self._waited[head] = score, 0
                better.append(head)
            else:
                self._waited[head] += 1
        return better


@torch.no_grad()
def _answers(model: _Mlps, features_LND: Tensor) -> Outputs:
    model.eval()
    found: Outputs = model(features_LND).cpu().numpy()
    return found
