import numpy as np
import pytest
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score

from etude.probes.curves import average_precision, roc_auc
from etude.probes.metrics import METRICS, JointMetric


@pytest.mark.parametrize(
    ("area", "reference"), [(roc_auc, roc_auc_score), (average_precision, average_precision_score)]
)
@pytest.mark.parametrize("ties", [False, True])
def test_areas_of_draws_are_those_of_scikit_learn_with_weights(area, reference, ties) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    truth = (rng.random((80, 5)) < 0.3).astype(np.float32)
    outputs = (truth + rng.standard_normal(truth.shape)).astype(np.float32)
    if ties:
        outputs = outputs.round()
    times = rng.multinomial(80, np.full(80, 1 / 80), size=7).astype(np.float64)
    found = area(truth, outputs, times)
    expected = [reference(truth, outputs, sample_weight=drawn) for drawn in times]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    repeated = [np.repeat(np.arange(80), drawn.astype(int)) for drawn in times]
    np.testing.assert_allclose(
        found, [reference(truth[r], outputs[r]) for r in repeated], rtol=1e-9
    )


@pytest.mark.parametrize("area", [roc_auc, average_precision])
def test_a_label_without_both_truths_takes_no_part(area) -> None:  # type: ignore[no-untyped-def]
    truth = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, 1]], dtype=np.float32)
    outputs = np.array([[4, 1, 1], [3, 2, 2], [2, 3, 3], [1, 4, 4]], dtype=np.float32)
    times = np.array([[1, 1, 1, 1], [1, 0, 2, 0], [0, 1, 1, 0]], dtype=np.float64)
    found = area(truth, outputs, times)
    assert found[0] == area(truth[:, :1], outputs[:, :1], times)[0]
    assert np.isnan(found[1])  # no negative was drawn
    assert found[2] == (0.0 if area is roc_auc else 0.5)


def test_explained_variance_of_draws_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = (1000 + rng.standard_normal((60, 2))).astype(np.float32)
    outputs = (truth + rng.standard_normal((60, 2))).astype(np.float32)
    times = rng.multinomial(60, np.full(60, 1 / 60), size=7).astype(np.float64)
    for name, columns in (("r2", [0, 1]), ("r2_arousal", [0]), ("r2_valence", [1])):
        metric = METRICS[name]
        assert isinstance(metric, JointMetric)
        found = metric.value(truth, outputs, times)
        expected = [
            r2_score(truth[:, columns], outputs[:, columns], sample_weight=drawn) for drawn in times
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    one = np.zeros((1, 60))
    one[0, 3] = 1.0
    assert np.isnan(METRICS["r2"].value(truth, outputs, one)).all()  # type: ignore[union-attr]
