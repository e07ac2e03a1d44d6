import numpy as np
import numpy.typing as npt

from etude.probes import linear
from etude.probes.problem import Fit, Problem

ROWS = (np.arange(0, 150), np.arange(150, 210), np.arange(210, 300))
TEST = ROWS[2]


def clouds(*, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Three layers that separate three classes badly, well and not at all."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=300)
    centres = rng.standard_normal((3, 16))
    noise = rng.standard_normal((3, 300, 16))
    strength = np.array([0.4, 1.0, 0.0])[:, None, None]
    return (strength * centres[labels] + noise).astype(np.float32), labels


def classes(features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Problem:
    def score(outputs: npt.NDArray[np.float32]) -> float:
        return float((outputs.argmax(axis=1) == labels[ROWS[1]]).mean())

    return Problem(features, labels, "categorical", 3, *ROWS, valid_score=score)


def fit(features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> list[Fit]:
    problem = classes(features, labels)
    return [*linear.fit_layers(problem), linear.fit_sum(problem)]


def choices(fits: list[Fit]) -> list[tuple[float, float]]:
    return [(each.tuning["regularisation"], each.valid) for each in fits]


def accuracy(fit: Fit, labels: npt.NDArray[np.int64]) -> float:
    return float((fit.outputs_SNC[0].argmax(axis=1) == labels[TEST]).mean())


def test_the_layer_that_separates_the_classes_is_best_on_validation() -> None:
    features, labels = clouds(seed=0)
    *layers, _ = fit(features, labels)
    assert np.argmax([layer.valid for layer in layers]) == 1
    assert accuracy(layers[1], labels) > 0.8


def test_the_weighted_sum_finds_the_layer_that_knows() -> None:
    features, labels = clouds(seed=0)
    *layers, summed = fit(features, labels)
    assert summed.layer_weights is not None
    assert np.argmax(summed.layer_weights) == 1 and summed.layer_weights[1] > 0.5
    assert abs(sum(summed.layer_weights) - 1.0) < 1e-5
    assert accuracy(summed, labels) > accuracy(layers[0], labels)


def test_no_choice_depends_on_the_labels_of_the_test() -> None:
    features, labels = clouds(seed=1)
    shuffled = labels.copy()
    shuffled[TEST] = np.random.default_rng(2).permutation(labels[TEST])
    honest, blind = fit(features, labels), fit(features, shuffled)
    assert choices(honest) == choices(blind)
    assert accuracy(honest[1], labels) != accuracy(blind[1], shuffled)


def test_nothing_is_learnt_from_the_features_of_the_test() -> None:
    features, labels = clouds(seed=3)
    moved = features.copy()
    moved[:, TEST] += 100.0
    assert choices(fit(features, labels)) == choices(fit(moved, labels))


def test_units_and_dead_features_do_not_matter() -> None:
    features, labels = clouds(seed=4)
    scaled = np.concatenate([features * 1024.0, np.full((3, 300, 2), 7.0)], axis=2)
    assert choices(fit(scaled.astype(np.float32), labels))[:3] == choices(fit(features, labels))[:3]


def test_a_class_that_training_lacks_is_never_answered() -> None:
    features, labels = clouds(seed=5)
    labels[ROWS[0]] %= 2
    for each in fit(features, labels)[:3]:
        assert each.outputs_SNC.shape == (1, len(TEST), 3)
        assert set(each.outputs_SNC[0].argmax(axis=1)) == {0, 1}


def test_values_and_several_labels_are_fitted_too() -> None:
    rng = np.random.default_rng(6)
    features = rng.standard_normal((1, 300, 8)).astype(np.float32)
    weights = rng.standard_normal((8, 2))
    values = (features[0] @ weights * 10.0 + 50.0).astype(np.float32)

    tags = (values > 50.0).astype(np.float32)

    def values_score(outputs: npt.NDArray[np.float32]) -> float:
        return -float(np.abs(outputs - values[ROWS[1]]).mean())

    def tags_score(outputs: npt.NDArray[np.float32]) -> float:
        return float(((outputs > 0) == (tags[ROWS[1]] > 0)).mean())

    problem = Problem(features, values, "squared", 2, *ROWS, valid_score=values_score)
    (found,) = linear.fit_layers(problem)
    np.testing.assert_allclose(found.outputs_SNC[0], values[TEST], atol=0.5)
    problem = Problem(features, tags, "binary", 2, *ROWS, valid_score=tags_score)
    (found,) = linear.fit_layers(problem)
    assert ((found.outputs_SNC[0] > 0) == (tags[TEST] > 0)).mean() > 0.9
