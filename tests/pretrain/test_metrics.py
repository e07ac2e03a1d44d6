"""Metrics over uneven splits are those of all frames together."""

import math

import pytest
import torch

from etude.pretrain.metrics import Deviation, LabelCounts, Mean, MetricSums, Spread

SPLITS = [[1000], [1, 999], [300, 17, 683]]


@pytest.mark.parametrize("sizes", SPLITS)
def test_a_mean_over_uneven_parts_is_the_mean_of_all(sizes: list[int]) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sums = MetricSums()
    for part in values.split(sizes):
        sums.add({"x": Mean.of(part.mean(), len(part)), "y": Mean(part.sum(), torch.tensor(1.0))})
    assert sums.results()["x"] == pytest.approx(float(values.mean()), abs=1e-6)
    assert sums.results()["y"] == pytest.approx(float(values.sum()) / len(sizes), abs=1e-6)
    assert sums.count("x") == 1000
    assert sums.total("x") == pytest.approx(float(values.sum()), abs=1e-4)


@pytest.mark.parametrize("sizes", SPLITS)
def test_label_statistics_are_those_of_all_labels(sizes: list[int]) -> None:
    labels = torch.arange(1000) ** 2 % 7
    sums = MetricSums()
    for part in labels.split(sizes):
        sums.add({"t/labels": LabelCounts(torch.bincount(part, minlength=9).float())})
    shares = [count / 1000 for count in torch.bincount(labels).tolist() if count]
    results = sums.results()
    assert results["t/majority_rate"] == pytest.approx(max(shares))
    entropy = -sum(share * math.log(share) for share in shares)
    assert results["t/unigram_entropy"] == pytest.approx(entropy)


def test_sums_of_ranks_add_up_by_name_in_whatever_order_they_were_added() -> None:
    one, other = MetricSums(), MetricSums()
    one.add({"a": Mean.of(torch.tensor(1.0), 1)})
    one.add({"b/labels": LabelCounts(torch.tensor([1.0, 0.0]))})
    other.add(
        {"b/labels": LabelCounts(torch.tensor([2.0, 1.0])), "a": Mean.of(torch.tensor(4.0), 2)}
    )
    one.replace([x + y for x, y in zip(one.tensors(), other.tensors(), strict=True)])
    assert one.results()["a"] == 3.0
    assert one.results()["b/majority_rate"] == 0.75


def test_a_metric_holds_no_graph() -> None:
    value = torch.tensor(2.0, requires_grad=True)
    assert not Mean.of(value * 3).total.requires_grad


@pytest.mark.parametrize("sizes", SPLITS)
def test_a_spread_is_the_error_of_predicting_the_mean_of_all(sizes: list[int]) -> None:
    vectors = 50 + torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    sums = MetricSums()
    for part in vectors.split(sizes):
        sums.add({"t/variance": Spread.of(part)})
    error = (vectors.double() - vectors.double().mean(dim=0)).square().mean()
    assert sums.results()["t/variance"] == pytest.approx(float(error), rel=1e-9)


@pytest.mark.parametrize("sizes", SPLITS)
def test_a_deviation_is_that_of_each_dimension_over_all_vectors_then_averaged(
    sizes: list[int],
) -> None:
    noise = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    vectors = noise * torch.tensor([0.01, 1.0, 5.0]) + 50
    sums = MetricSums()
    for part in vectors.split(sizes):
        sums.add({"t/std": Deviation.of(part), "t/variance": Spread.of(part)})
    expected = vectors.double().numpy().std(axis=0)
    results = sums.results()
    assert results["t/std"] == pytest.approx(float(expected.mean()), rel=1e-9)
    # Beside a spread of the same vectors, which is the variance.
    assert results["t/variance"] == pytest.approx(float((expected**2).mean()), rel=1e-9)


def test_vectors_that_are_all_equal_have_no_deviation() -> None:
    sums = MetricSums()
    vector = torch.randn(5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    metric = Deviation.of(1e3 * vector.expand(100, 5))
    assert not metric.moments.requires_grad
    sums.add({"t/std": metric})
    assert sums.results()["t/std"] == pytest.approx(0.0, abs=1e-4)
