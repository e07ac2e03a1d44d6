import numpy as np
import numpy.typing as npt
import torch

from etude.probes import linear, mlp
from etude.probes.problem import Fit, Problem

CPU = torch.device("cpu")
ROWS = (np.arange(0, 200), np.arange(200, 260), np.arange(260, 400))


def rings(*, seed: int) -> Problem:
    """Two layers of two classes: one that is noise, one where they lie within one another."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=400)
    points = rng.standard_normal((400, 2))
    points *= (1.0 + 2.0 * labels)[:, None] / np.linalg.norm(points, axis=1, keepdims=True)
    features = np.stack([rng.standard_normal((400, 2)), points]).astype(np.float32)
    return classes(features, labels)


def classes(features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Problem:
    def score(outputs: npt.NDArray[np.float32]) -> float:
        return float((outputs.argmax(axis=1) == labels[ROWS[1]]).mean())

    return Problem(features, labels, "categorical", 2, *ROWS, valid_score=score)


def accuracies(problem: Problem, fit: Fit) -> list[float]:
    labels = problem.truth[problem.test]
    return [float((outputs.argmax(axis=1) == labels).mean()) for outputs in fit.outputs_SNC]


def test_it_learns_what_no_line_separates() -> None:
    problem = rings(seed=0)
    _, straight = linear.fit_layers(problem)
    noise, bent = mlp.fit_layers(problem, seeds=2, seed=0, device=CPU)
    assert accuracies(problem, straight)[0] < 0.7
    assert min(accuracies(problem, bent)) > 0.95 > 0.7 > max(accuracies(problem, noise))


def test_the_weighted_sum_turns_to_the_layer_that_knows() -> None:
    problem = rings(seed=1)
    fit = mlp.fit_sum(problem, seeds=1, seed=0, device=CPU)
    assert fit.layer_weights is not None
    assert fit.layer_weights[1] > fit.layer_weights[0]


def test_seeds_are_starts_of_their_own_and_are_repeated() -> None:
    problem = rings(seed=2)
    state = torch.random.get_rng_state()
    first, again, other = (
        mlp.fit_layers(problem, seeds=2, seed=seed, device=CPU)[1] for seed in (0, 0, 1)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    np.testing.assert_array_equal(first.outputs_SNC, again.outputs_SNC)
    assert not np.array_equal(first.outputs_SNC[0], first.outputs_SNC[1])
    assert not np.array_equal(first.outputs_SNC, other.outputs_SNC)


def test_the_tests_labels_take_no_part() -> None:
    problem = rings(seed=3)
    truth = problem.truth.copy()
    truth[problem.test] = 1 - truth[problem.test]
    blind = classes(problem.features_LND, truth)
    for ours, theirs in zip(
        mlp.fit_layers(problem, seeds=1, seed=0, device=CPU),
        mlp.fit_layers(blind, seeds=1, seed=0, device=CPU),
        strict=True,
    ):
        assert ours.tuning == theirs.tuning
        np.testing.assert_array_equal(ours.outputs_SNC, theirs.outputs_SNC)


def test_a_head_keeps_its_best_epoch_and_stops_after_ten_that_are_not_better() -> None:
    best = mlp._BestEpochs(heads=2)
    assert best.improved([0.1, 0.5]) == [0, 1]
    for _ in range(mlp.PATIENCE_EPOCHS):
        assert best.improved([best.scores[0] + 0.01, 0.5]) == [0]
    assert not best.done
    assert best.improved([0.9, 0.9]) == [0], "the second has stopped"
    assert best.scores == [0.9, 0.5]
