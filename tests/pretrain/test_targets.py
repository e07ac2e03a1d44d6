"""Targets: what is to be predicted, and how a prediction is scored."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from training_parts import GRID, feature_settings, noise, small_quantizer

from etude.models.spectral import ConstantQ
from etude.pretrain.metrics import MetricSums
from etude.pretrain.quantizer import FeatureQuantizer, build_features
from etude.pretrain.targets.base import FrameContext, Target
from etude.pretrain.targets.cqt import CqtTarget
from etude.pretrain.targets.kmeans import KmeansTarget

DIM = 16


def kmeans(quantizer: FeatureQuantizer | None = None, *, dim: int = DIM) -> KmeansTarget:
    torch.manual_seed(0)
    return KmeansTarget(quantizer or small_quantizer(), dim, final_dim=8, temperature=0.1)


def cqt(*, bins: int = 24, dim: int = DIM) -> CqtTarget:
    torch.manual_seed(0)
    transform = ConstantQ(GRID, bins=bins, bins_per_octave=12, fmin=440.0, scale="log")
    return CqtTarget(transform, dim, bins=bins)


def context(rows: int = 3, samples: int = 24_000) -> FrameContext:
    waveform = noise(rows, samples, seed=3)
    return FrameContext(waveform, GRID.num_frames(samples))


def random(*shape: int, seed: int = 4) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def results(target: Target, hidden: Tensor, wanted: Tensor, copied: Tensor) -> dict[str, float]:
    sums = MetricSums()
    metrics = target.loss(hidden, wanted, copied).metrics
    assert not any(
        tensor.requires_grad for metric in metrics.values() for tensor in vars(metric).values()
    )
    sums.add({f"t/{name}": metric for name, metric in metrics.items()})
    return sums.results()


# K-means.


@pytest.mark.parametrize(("kind", "bins", "n_fft"), [("logmel", 20, 1024), ("chroma", 12, 4096)])
def test_a_label_is_the_index_of_the_nearest_centroid(kind: str, bins: int, n_fft: int) -> None:
    settings = feature_settings(kind, bins=bins, n_fft=n_fft)
    quantizer = small_quantizer(classes=9, settings=settings)
    given = context()
    labels = kmeans(quantizer).compute(given)
    assert labels.dtype == torch.int64 and labels.shape == (3, given.num_frames)
    features = build_features(settings)(given.waveform)
    for row in range(3):
        for frame in range(given.num_frames):
            point = (features[row, frame] - quantizer.mean) / quantizer.scale
            distance = (point - quantizer.centroids).double().square().sum(dim=1)
            assert int(labels[row, frame]) == int(distance.argmin())
    assert len(labels.unique()) > 5


def test_labels_are_the_same_under_bf16_autocast() -> None:
    target, given = kmeans(small_quantizer(classes=50)), context()
    plain = target.compute(given)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(target.compute(given), plain)
    quantizer = target.quantizer
    standard = (quantizer.features(given.waveform) - quantizer.mean) / quantizer.scale
    coarse = torch.cdist(standard.bfloat16().float(), quantizer.centroids.bfloat16().float())
    assert not torch.equal(coarse.argmin(dim=-1), plain)  # bf16 would have changed some


def test_the_kmeans_loss_is_the_plain_cross_entropy_per_frame() -> None:
    target, hidden = kmeans(), random(3, 10, DIM).requires_grad_()
    labels = torch.arange(30).view(3, 10) % 7
    projected = target.head.projection(hidden.flatten(0, 1))
    cosine = F.normalize(projected, dim=1) @ F.normalize(target.head.embedding[0], dim=1).T
    probability = (10 * cosine).exp() / (10 * cosine).exp().sum(dim=1, keepdim=True)
    expected = -probability[torch.arange(30), labels.flatten()].log().sum() / 30
    loss = target.loss(hidden, labels, labels).loss
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    wanted = [hidden, *target.head.parameters()]
    for ours, plain in zip(
        torch.autograd.grad(loss, wanted), torch.autograd.grad(expected, wanted), strict=True
    ):
        assert torch.allclose(ours, plain, atol=1e-5) and float(plain.abs().max()) > 1e-4


def test_a_hand_made_case_has_the_loss_accuracy_and_label_statistics_one_computes_by_hand() -> None:
    target = KmeansTarget(small_quantizer(classes=3), 2, final_dim=2, temperature=0.5)
    with torch.no_grad():
        target.head.projection.weight.copy_(torch.eye(2))
        target.head.projection.bias.zero_()
        target.head.embedding.copy_(torch.tensor([[[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]]))
    hidden = torch.tensor([[[5.0, 0.0], [0.0, 0.2]], [[-7.0, 0.0], [1.0, 0.0]]])
    labels = torch.tensor([[0, 1], [2, 2]])  # the last is predicted as 0
    copied = torch.tensor([[0, 0], [2, 1]])
    measured = results(target, hidden, labels, copied)

    straight = math.log(math.exp(2) + 1 + math.exp(-2))  # cosines 1, 0, -1 over 0.5
    upright = math.log(math.exp(2) + 2)  # cosines 1, 0, 0
    loss = ((straight - 2) + (upright - 2) + (straight - 2) + (straight + 2)) / 4
    assert measured["t/loss"] == pytest.approx(loss, abs=1e-5)
    assert measured["t/accuracy"] == 0.75
    assert measured["t/copy_accuracy"] == 0.5
    assert measured["t/majority_rate"] == 0.5
    assert measured["t/unigram_entropy"] == pytest.approx(1.5 * math.log(2))


def test_kmeans_metrics_of_uneven_parts_are_those_of_the_whole() -> None:
    target, hidden = kmeans(), random(6, 10, DIM)
    labels, copied = torch.arange(60).view(6, 10) % 7, torch.arange(60).view(6, 10) % 5
    whole = results(target, hidden, labels, copied)
    sums = MetricSums()
    for part in (slice(0, 1), slice(1, 6)):
        compared = target.loss(hidden[part], labels[part], copied[part])
        sums.add({f"t/{name}": metric for name, metric in compared.metrics.items()})
    assert sums.results() == pytest.approx(whole, abs=1e-5)
    assert sums.count("t/loss") == sums.count("t/copy_accuracy") == 60


def test_the_quantizer_is_neither_trained_nor_saved_with_the_target() -> None:
    target = kmeans()
    names = {name for name, _ in target.named_parameters()}
    assert names == {"head.projection.weight", "head.projection.bias", "head.embedding"}
    assert set(target.state_dict()) == names


# Constant-Q.


def test_the_cqt_target_is_the_spectrum_of_the_encoders_frames() -> None:
    target, given = cqt(), context()
    spectrum = target.compute(given)
    assert spectrum.shape == (3, given.num_frames, 24) and spectrum.dtype == torch.float32
    assert torch.equal(spectrum, target.transform(given.waveform))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(target.compute(given), spectrum)


def test_the_cqt_target_of_a_tone_is_highest_at_its_bin() -> None:
    time = torch.arange(24_000) / GRID.sample_rate
    tone = 0.5 * torch.sin(2 * math.pi * 440.0 * 2 ** (7 / 12) * time)[None]
    spectrum = cqt().compute(FrameContext(tone, GRID.num_frames(24_000)))
    assert (spectrum[0, 5:-5].argmax(dim=1) == 7).all()


def test_the_cqt_loss_is_the_plain_mean_squared_error() -> None:
    target, hidden = cqt(), random(2, 5, DIM).requires_grad_()
    wanted = random(2, 5, 24, seed=5)
    predicted = hidden @ target.head.weight.T + target.head.bias
    expected = (predicted - wanted).square().sum() / (2 * 5 * 24)
    loss = target.loss(hidden, wanted, wanted).loss
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    parameters = [hidden, *target.head.parameters()]
    for ours, plain in zip(
        torch.autograd.grad(loss, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        assert torch.allclose(ours, plain, atol=1e-6) and float(plain.abs().max()) > 1e-4


def test_copy_loss_and_variance_are_what_copying_and_the_mean_spectrum_score() -> None:
    target = cqt()
    wanted, copied = random(2, 5, 24, seed=5) * 3, random(2, 5, 24, seed=6)
    measured = results(target, random(2, 5, DIM), wanted, copied)
    assert measured["t/copy_loss"] == pytest.approx(float((copied - wanted).square().mean()))
    mean = wanted.mean(dim=(0, 1))
    assert measured["t/variance"] == pytest.approx(float((wanted - mean).square().mean()))
    with torch.no_grad():  # the best that a head can do without hearing anything
        target.head.weight.zero_()
        target.head.bias.copy_(mean)
    constant = results(target, random(2, 5, DIM), wanted, copied)
    assert constant["t/loss"] == pytest.approx(measured["t/variance"], abs=1e-5)


def test_the_cqt_loss_is_float32_under_bf16_autocast() -> None:
    target, hidden, wanted = cqt(), random(2, 5, DIM), random(2, 5, 24, seed=5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = target.loss(hidden, wanted, wanted).loss
        predicted = target.head(hidden)
    assert predicted.dtype == torch.bfloat16 and loss.dtype == torch.float32
    expected = (predicted.float() - wanted).square().mean().detach()
    assert float(loss.detach()) == pytest.approx(float(expected))


def test_the_transform_is_neither_trained_nor_saved_with_the_target() -> None:
    target = cqt()
    assert set(target.state_dict()) == {"head.weight", "head.bias"}
    assert {name for name, _ in target.named_parameters()} == {"head.weight", "head.bias"}
