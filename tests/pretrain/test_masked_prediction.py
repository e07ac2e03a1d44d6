"""The objective, against a plain recomputation from the encoder's own two halves."""

from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training_parts import GRID, audio_batch, noise, small_encoder, small_quantizer

from etude.data.batch import AudioBatch
from etude.models.encoder import Encoder
from etude.models.frontend import Features
from etude.models.spectral import ConstantQ
from etude.pretrain.augment import mix_in_batch
from etude.pretrain.masked_prediction import MaskedPrediction
from etude.pretrain.masking import masked_count, span_mask
from etude.pretrain.metrics import MetricSums
from etude.pretrain.random import derive
from etude.pretrain.targets.base import FrameContext, Target, TargetLoss
from etude.pretrain.targets.cqt import CqtTarget
from etude.pretrain.targets.kmeans import KmeansTarget

DIM, SEED, PROB, SPAN = 32, 11, 0.6, 4
SAMPLES = 12_000
FRAMES = GRID.num_frames(SAMPLES)
WEIGHTS = {"logmel": 1.0, "cqt": 0.5}


def objective(
    *, targets: dict[str, Target] | None = None, visible_weight: float = 0.0, **settings: object
) -> MaskedPrediction:
    encoder = small_encoder()
    with torch.no_grad():  # layers that matter: fresh ones are next to the identity
        for name, parameter in encoder.layers.named_parameters():
            if "norm" not in name and name.endswith("weight"):
                parameter.mul_(10.0)
    transform = ConstantQ(GRID, bins=24, bins_per_octave=12, fmin=440.0, scale="log")
    targets = targets or {
        "logmel": KmeansTarget(small_quantizer(), DIM, final_dim=8, temperature=0.1),
        "cqt": CqtTarget(transform, DIM, bins=24),
    }
    chosen: dict[str, object] = {"mask_prob": PROB, "mask_span": SPAN, **settings}
    weights = {name: WEIGHTS.get(name, 1.0) for name in targets}
    return MaskedPrediction(
        encoder, targets, weights=weights, seed=SEED, visible_weight=visible_weight, **chosen
    )


def batch(rows: int = 4, *, first: int = 0, update: int = 0, seed: int = 1) -> AudioBatch:
    return audio_batch(noise(rows, SAMPLES, seed=seed), first=first, update=update)


def results(module: MaskedPrediction, *batches: AudioBatch) -> dict[str, float]:
    sums = MetricSums()
    for part in batches:
        sums.add(module(part).metrics)
    return sums.results()


def in_plain_words(
    module: MaskedPrediction,
    given: AudioBatch,
    *,
    heard: Tensor | None = None,
    count: int | None = None,
    visible_weight: float = 0.0,
    feature_penalty: float = 0.0,
    keep_layers: Tensor | None = None,
) -> Tensor:
    """The loss as the method section has it, frame by frame with boolean masks."""
    clean, encoder = given.waveform, module.encoder
    count = count or masked_count(FRAMES, prob=PROB, span=SPAN)
    masked = span_mask(
        derive(SEED, "mask"), given.sample_ids, num_frames=FRAMES, count=count, span=SPAN
    ).bool_BF
    features = encoder.frontend(clean if heard is None else heard)
    last = encoder.context(features.projected, mask=masked, keep_layers=keep_layers).last

    logmel, cqt = module.targets["logmel"], module.targets["cqt"]
    assert isinstance(logmel, KmeansTarget) and isinstance(cqt, CqtTarget)
    labels, spectrum = logmel.quantizer(clean), cqt.transform(clean)

    def losses(frames: Tensor) -> Tensor:
        projected = logmel.head.projection(last[frames])
        cosine = F.cosine_similarity(projected[:, None], logmel.head.embedding[0][None], dim=-1)
        entropy = F.cross_entropy(cosine / 0.1, labels[frames])
        error = (cqt.head(last[frames]) - spectrum[frames]).square().mean()
        return WEIGHTS["logmel"] * entropy + WEIGHTS["cqt"] * error

    loss = losses(masked)
    if visible_weight:
        loss = loss + visible_weight * losses(~masked)
    return loss + feature_penalty * features.raw.square().mean()


# The loss.


@pytest.mark.parametrize(
    ("visible_weight", "feature_penalty"), [(0.0, 0.0), (0.0, 10.0), (0.7, 0.0), (1.0, 3.0)]
)
def test_the_loss_and_its_gradients_are_those_of_the_method_section(
    visible_weight: float, feature_penalty: float
) -> None:
    module = objective(visible_weight=visible_weight, feature_penalty=feature_penalty)
    given = batch()
    loss = module(given).loss
    expected = in_plain_words(
        module, given, visible_weight=visible_weight, feature_penalty=feature_penalty
    )
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    names, parameters = zip(*module.named_parameters(), strict=True)
    ours = torch.autograd.grad(loss, parameters)
    plain = torch.autograd.grad(expected, parameters)
    for name, one, other in zip(names, ours, plain, strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-3), name


def test_the_metrics_are_the_parts_of_the_loss_and_hold_no_graph() -> None:
    module = objective(visible_weight=0.5, feature_penalty=3.0)
    given = batch()
    output = module(given)
    for metric in output.metrics.values():
        assert not any(tensor.requires_grad for tensor in vars(metric).values())
    measured = results(module, given)
    masked = measured["logmel/loss"] + 0.5 * measured["cqt/loss"]
    visible = measured["logmel/visible_loss"] + 0.5 * measured["cqt/visible_loss"]
    penalty = measured["feature_penalty"]
    assert measured["loss"] == pytest.approx(masked + 0.5 * visible + 3.0 * penalty, abs=1e-5)
    assert measured["loss"] == pytest.approx(float(output.loss.detach()), abs=1e-6)
    raw = module.encoder.frontend(given.waveform).raw.detach()
    assert penalty == pytest.approx(float(raw.square().mean()), rel=1e-5)
    quantities = {"loss", "visible_loss", "accuracy", "copy_accuracy", "majority_rate"}
    quantities |= {"unigram_entropy"}
    assert {name.partition("/")[2] for name in measured if name.startswith("logmel/")} == quantities


def test_what_has_no_weight_is_not_measured() -> None:
    measured = results(objective(), batch())
    assert "feature_penalty" not in measured
    assert not any("visible" in name for name in measured)


def test_copying_is_scored_with_the_target_at_the_nearest_visible_frame() -> None:
    module, given = objective(), batch()
    logmel = module.targets["logmel"]
    assert isinstance(logmel, KmeansTarget)
    labels = logmel.quantizer(given.waveform)
    masked = module.mask(given, FRAMES).bool_BF
    equal = []
    for row in range(4):
        visible = (~masked[row]).nonzero().flatten().tolist()
        for frame in masked[row].nonzero().flatten().tolist():
            nearest = min(visible, key=lambda other: (abs(other - frame), other))
            equal.append(bool(labels[row, frame] == labels[row, nearest]))
    assert results(module, given)["logmel/copy_accuracy"] == pytest.approx(sum(equal) / len(equal))
    assert 0 < sum(equal) < len(equal)


@pytest.mark.parametrize("sizes", [[1] * 8, [4, 4], [1, 5, 2]])
def test_a_split_into_micro_batches_averages_to_the_whole(sizes: list[int]) -> None:
    module = objective(visible_weight=0.5, feature_penalty=3.0)
    whole = batch(8)
    parts = []
    for waveform, ids in zip(
        whole.waveform.split(sizes), whole.sample_ids.split(sizes), strict=True
    ):
        parts.append(whole._replace(waveform=waveform, sample_ids=ids))
    with torch.no_grad():
        mean = sum(float(module(part).loss) * len(part.waveform) for part in parts) / 8
        assert mean == pytest.approx(float(module(whole).loss), abs=1e-5)
        split, together = results(module, *parts), results(module, whole)
    assert split == pytest.approx(together, abs=1e-5)


def test_the_loss_is_finite_float32_and_about_the_same_under_bf16_autocast() -> None:
    module, given = objective(visible_weight=1.0, feature_penalty=3.0), batch()
    plain = results(module, given)
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(given).loss
        coarse = results(module, given)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(plain["loss"], rel=0.05)
    for exact in ("majority_rate", "unigram_entropy", "copy_accuracy"):
        assert coarse[f"logmel/{exact}"] == plain[f"logmel/{exact}"]
    assert coarse["cqt/copy_loss"] == plain["cqt/copy_loss"]


# Clean targets, mixed input.


def test_the_encoder_hears_the_mixture_and_the_targets_come_from_the_clean_audio() -> None:
    other = noise(4, SAMPLES, seed=9)
    module = objective(feature_penalty=2.0, mixture=lambda waveform, ids: waveform + 3.0 * other)
    given = batch()
    expected = in_plain_words(
        module, given, heard=given.waveform + 3.0 * other, feature_penalty=2.0
    )
    unmixed = in_plain_words(module, given, feature_penalty=2.0)
    loss = float(module.train()(given).loss.detach())
    assert loss == pytest.approx(float(expected.detach()), abs=1e-5)
    assert abs(loss - float(unmixed.detach())) > 1e-3


def test_with_an_input_of_silence_the_targets_are_still_those_of_the_music() -> None:
    silent = objective(mixture=lambda waveform, ids: torch.zeros_like(waveform)).train()
    plain, given = objective(), batch()
    ours, theirs = results(silent, given), results(plain, given)
    for name in ("logmel/unigram_entropy", "logmel/copy_accuracy", "cqt/copy_loss", "cqt/variance"):
        assert ours[name] == theirs[name] > 0
    assert ours["cqt/loss"] != theirs["cqt/loss"]


def test_the_mixture_of_the_batch_is_reached_by_sample_ids() -> None:
    mixture = partial(
        mix_in_batch,
        key=derive(SEED, "mixture"),
        group=4,
        prob=1.0,
        min_samples=2_000,
        max_samples=4_000,
        max_excerpts=3,
        gain=1.0,
    )
    module = objective(mixture=mixture).train()
    for first in (0, 400):
        given = batch(first=first)
        heard = mixture(given.waveform, given.sample_ids)
        expected = in_plain_words(module, given, heard=heard).detach()
        assert float(module(given).loss.detach()) == pytest.approx(float(expected), abs=1e-5)


def test_the_share_of_mixed_crops_is_told() -> None:
    def mix_the_first(waveform: Tensor, ids: Tensor) -> Tensor:
        return torch.cat([waveform[:1] * 2, waveform[1:]])

    given = batch(4)
    assert results(objective(mixture=mix_the_first).train(), given)["mixture/mixed"] == 0.25
    assert results(objective(mixture=lambda w, ids: w).train(), given)["mixture/mixed"] == 0.0
    assert "mixture/mixed" not in results(objective().train(), given)


def test_in_evaluation_there_is_neither_mixture_nor_layer_drop() -> None:
    module = objective(layer_drop=0.9, mixture=lambda waveform, ids: waveform.flip(0))
    for update in range(4):
        given = batch(update=update)
        expected = float(in_plain_words(module, given).detach())
        assert float(module.eval()(given).loss.detach()) == pytest.approx(expected, abs=1e-5)
        assert abs(float(module.train()(given).loss.detach()) - expected) > 1e-3


# The mask.


def test_features_of_masked_frames_do_not_reach_the_output() -> None:
    module, given = objective(visible_weight=1.0), batch()
    masked = module.mask(given, FRAMES).bool_BF

    def loss_with(changed: Tensor) -> float:
        def replace(frontend: nn.Module, inputs: object, features: Features) -> Features:
            random = noise(4 * FRAMES, DIM, seed=7).view(4, FRAMES, DIM) * 1e3
            projected = torch.where(changed[..., None], random, features.projected)
            return features._replace(projected=projected)

        handle = module.encoder.frontend.register_forward_hook(replace)
        loss = float(module(given).loss.detach())
        handle.remove()
        return loss

    untouched = loss_with(torch.zeros_like(masked))
    assert untouched == float(module(given).loss.detach())
    assert loss_with(masked) == untouched
    one_visible = torch.zeros_like(masked)
    one_visible[2, int((~masked[2]).nonzero()[5])] = True
    assert loss_with(one_visible) != untouched


def test_the_number_of_masked_frames_is_what_the_span_starts_give_on_average() -> None:
    module, given = objective(), batch()
    count = masked_count(FRAMES, prob=PROB, span=SPAN)
    mask = module.mask(given, FRAMES)
    assert (mask.bool_BF.sum(dim=1) == count).all() and 0 < count < FRAMES
    sums = MetricSums()
    sums.add(module(given).metrics)
    assert sums.count("logmel/loss") == sums.count("cqt/loss") == 4 * count


@pytest.mark.parametrize(
    ("fraction", "count"), [(0.3, round(0.3 * FRAMES)), (0.999, FRAMES - 1), (0.001, 1)]
)
def test_a_mask_fraction_replaces_the_count_of_the_span_starts(fraction: float, count: int) -> None:
    module, given = objective(mask_fraction=fraction), batch()
    assert (module.mask(given, FRAMES).bool_BF.sum(dim=1) == count).all()
    expected = in_plain_words(module, given, count=count)
    loss = module(given).loss
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)


def test_a_sample_has_the_same_mask_in_whatever_batch_and_update_it_comes() -> None:
    module = objective()
    ids = torch.tensor([3, 900, 17, 5])
    given = batch(4)._replace(sample_ids=ids)
    whole = module.mask(given, FRAMES)
    for row, sample in enumerate(ids):
        alone = module.mask(given._replace(sample_ids=sample[None]), FRAMES)
        assert torch.equal(alone.bool_BF[0], whole.bool_BF[row])
    waveform = batch(1).waveform
    losses = []
    for sample, update in ((3, 0), (3, 77), (900, 0)):
        given = audio_batch(waveform, first=sample, update=update)
        losses.append(float(module(given).loss.detach()))
    assert losses[0] == losses[1] != losses[2]


# Gradients and layers.


def test_every_parameter_of_encoder_and_heads_gets_a_gradient() -> None:
    module = objective(feature_penalty=1.0).train()
    module(batch()).loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if not name.endswith("k_proj.bias"):  # softmax does not see what all keys share
            assert float(parameter.grad.abs().max()) > 1e-7, name
    heads = [name for name, _ in module.named_parameters() if name.startswith("targets.")]
    assert len(heads) == 5


def test_layers_are_dropped_by_update_alone_and_every_subset_occurs() -> None:
    module = objective(layer_drop=0.5).train()
    subsets = [torch.tensor(kept) for kept in product([True, False], repeat=2)]

    def dropped(given: AudioBatch) -> int:
        loss = float(module(given).loss.detach())
        plain = [
            float(in_plain_words(module, given, keep_layers=kept).detach()) for kept in subsets
        ]
        matches = [index for index, value in enumerate(plain) if abs(value - loss) < 1e-5]
        assert len(matches) == 1
        return matches[0]

    with torch.no_grad():
        one = [dropped(batch(2, update=update)) for update in range(24)]
        other = [dropped(batch(1, first=50, update=update, seed=8)) for update in range(24)]
    assert one == other
    assert set(one) == {0, 1, 2, 3}


def test_a_dropped_layer_has_a_gradient_of_zero_rather_than_none() -> None:
    module = objective(layer_drop=0.999).train()
    module(batch()).loss.backward()
    for parameter in module.encoder.layers.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


# What a target may rely on.


class Drifting(Target):
    """Predicts a multiple of the waveform's frames; the multiple moves with the updates."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(DIM, 1)
        self.moved: list[int] = []

    def compute(self, context: FrameContext) -> Tensor:
        return self.factor * context.waveform[:, : context.num_frames, None]

    def loss(self, hidden_BMD: Tensor, target_BM: Tensor, copied_BM: Tensor) -> TargetLoss:
        return TargetLoss(F.mse_loss(self.head(hidden_BMD), target_BM), {})

    def after_step(self, update: int, encoder: Encoder) -> None:
        self.moved.append(update)


def test_a_target_is_computed_without_gradients() -> None:
    target = Drifting()
    module = objective(targets={"drifting": target})
    module(batch()).loss.backward()
    assert target.factor.grad is None
    assert target.head.weight.grad is not None and target.head.weight.grad.any()


def test_every_target_is_told_of_every_step() -> None:
    targets: dict[str, Target] = {"one": Drifting(), "two": Drifting()}
    module = objective(targets=targets)
    for update in (0, 1, 7):
        module.after_step(update)
    for target in targets.values():
        assert isinstance(target, Drifting) and target.moved == [0, 1, 7]
