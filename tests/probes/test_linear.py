import numpy as np
import numpy.typing as npt

from etude.probes.linear import ProbeScore, SplitRows, probe_layers

ROWS = SplitRows(np.arange(0, 150), np.arange(150, 210), np.arange(210, 300))


def clouds(*, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Three layers that separate three classes badly, well and not at all."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=300)
    centres = rng.standard_normal((3, 16))
    noise = rng.standard_normal((3, 300, 16))
    strength = np.array([0.4, 1.0, 0.0])[:, None, None]
    return (strength * centres[labels] + noise).astype(np.float32), labels


def choices(score: ProbeScore) -> list[tuple[float, float]]:
    return [(layer.regularisation, layer.valid_accuracy) for layer in score.layers]


def test_the_layer_that_separates_the_classes_is_chosen() -> None:
    features, labels = clouds(seed=0)
    score = probe_layers(features, labels, ROWS)
    assert score.chosen.layer == 1
    assert score.chosen.test_accuracy > 0.8
    assert score.chosen.test_accuracy == score.chosen.test_correct.mean()


def test_no_choice_depends_on_the_labels_of_the_test() -> None:
    features, labels = clouds(seed=1)
    shuffled = labels.copy()
    shuffled[ROWS.test] = np.random.default_rng(2).permutation(labels[ROWS.test])
    honest, blind = probe_layers(features, labels, ROWS), probe_layers(features, shuffled, ROWS)
    assert honest.chosen.layer == blind.chosen.layer
    assert choices(honest) == choices(blind)
    assert honest.chosen.test_accuracy != blind.chosen.test_accuracy


def test_nothing_is_learnt_from_the_features_of_the_test() -> None:
    features, labels = clouds(seed=3)
    moved = features.copy()
    moved[:, ROWS.test] += 100.0
    assert choices(probe_layers(features, labels, ROWS)) == choices(
        probe_layers(moved, labels, ROWS)
    )


def test_units_and_dead_features_do_not_matter() -> None:
    features, labels = clouds(seed=4)
    scaled = np.concatenate([features * 1024.0, np.full((3, 300, 2), 7.0)], axis=2)
    assert choices(probe_layers(scaled.astype(np.float32), labels, ROWS)) == choices(
        probe_layers(features, labels, ROWS)
    )
