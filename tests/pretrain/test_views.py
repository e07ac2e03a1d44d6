"""Several masked views of a crop, a decoder for what they skip, and a teacher of another view."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training_parts import GRID, audio_batch, noise, small_encoder, small_quantizer

from etude.data.batch import AudioBatch
from etude.models.blocks import AttentionBiasCache, BatchLayout
from etude.models.encoder import Encoder
from etude.models.frontend import Features
from etude.models.spectral import ConstantQ
from etude.pretrain.decoder import ConvDecoder
from etude.pretrain.masked_prediction import MaskedPrediction
from etude.pretrain.masking import masked_count, span_mask
from etude.pretrain.metrics import MetricSums
from etude.pretrain.random import derive
from etude.pretrain.schedules import ramp
from etude.pretrain.targets.base import FrameContext, Target, TargetLoss
from etude.pretrain.targets.cqt import CqtTarget
from etude.pretrain.targets.kmeans import KmeansTarget
from etude.pretrain.targets.teacher import TeacherTarget

DIM, SEED, PROB, SPAN = 32, 11, 0.6, 4
SAMPLES, ROWS = 12_000, 3
FRAMES = GRID.num_frames(SAMPLES)
COUNT = masked_count(FRAMES, prob=PROB, span=SPAN)
WEIGHTS = {"teacher": 1.0, "cqt": 0.5, "logmel": 0.25}


def random_encoder(**settings: object) -> Encoder:
    encoder = small_encoder(conv_norm="layer", normalize=True, **settings)
    perturb(encoder, seed=1)
    return encoder


def perturb(module: nn.Module, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


class Counted(TeacherTarget):
    """Counts how often, and for how many rows, it is computed."""

    rows: tuple[int, ...] = ()

    def compute(self, context: FrameContext) -> Tensor:
        computed = super().compute(context)
        self.rows = (*self.rows, len(computed))
        return computed


def teacher(encoder: Encoder, **settings: object) -> Counted:
    chosen: dict[str, object] = {
        **{"top_layers": 2, "feature": "ffn", "norm": "instance", "distance": "mse"},
        **{"decay": ramp(0.9, 0.9, steps=0), "predictor_dim": 0},
        **dict.fromkeys(("average_positions", "pooled", "hears_clean", "sees_other_view"), False),
    }
    target = Counted(encoder, **{**chosen, **settings})
    perturb(target.teacher, seed=2)
    return target


def fixed_targets() -> dict[str, Target]:
    transform = ConstantQ(GRID, bins=24, bins_per_octave=12, fmin=440.0, scale="log")
    quantizer = small_quantizer()
    return {
        "cqt": CqtTarget(transform, DIM, bins=24),
        "logmel": KmeansTarget(quantizer, DIM, final_dim=8, temperature=0.1),
    }


def objective(
    encoder: Encoder, targets: dict[str, Target], *, views: int = 1, **settings: object
) -> MaskedPrediction:
    return MaskedPrediction(
        encoder,
        targets,
        weights={name: WEIGHTS.get(name, 1.0) for name in targets},
        seed=SEED,
        mask_prob=PROB,
        mask_span=SPAN,
        views=views,
        **settings,
    )


def batch() -> AudioBatch:
    return audio_batch(noise(ROWS, SAMPLES))


def results(module: MaskedPrediction) -> dict[str, float]:
    sums = MetricSums()
    sums.add(module(batch()).metrics)
    return sums.results()


def view_masks(module: MaskedPrediction) -> Tensor:
    """(views, B, F)."""
    return module.mask(batch(), FRAMES).bool_BF.unflatten(0, (module.views, ROWS))


# Views.


def test_the_first_views_masks_are_those_of_a_run_with_one_view() -> None:
    encoder = random_encoder()
    one, three = (objective(encoder, fixed_targets(), views=views) for views in (1, 3))
    masks = view_masks(three)
    assert torch.equal(masks[:1], view_masks(one))
    known = span_mask(
        derive(SEED, "mask"), batch().sample_ids, num_frames=FRAMES, count=COUNT, span=SPAN
    )
    assert torch.equal(masks[0], known.bool_BF)
    assert (masks.sum(dim=2) == COUNT).all()
    assert len({tuple(row.tolist()) for row in masks.flatten(0, 1)}) == 3 * ROWS
    assert torch.equal(view_masks(objective(encoder, fixed_targets(), views=2)), masks[:2])


@pytest.mark.parametrize("visible_weight", [0.0, 0.5])
@pytest.mark.parametrize("views", [1, 3])
def test_the_loss_is_the_mean_over_the_views_of_each_alone(
    views: int, visible_weight: float
) -> None:
    encoder = random_encoder()
    own = teacher(encoder)
    targets: dict[str, Target] = {"teacher": own, **fixed_targets()}
    module = objective(
        encoder, targets, views=views, visible_weight=visible_weight, feature_penalty=2.0
    )
    given = batch()
    features = encoder.frontend(given.waveform)
    context = FrameContext(given.waveform, FRAMES, projected=features.projected.detach())
    with torch.no_grad():
        computed = {name: target.compute(context) for name, target in targets.items()}

    def of_view(mask_BF: Tensor) -> Tensor:
        last = encoder.context(features.projected, mask=mask_BF).last
        loss = torch.zeros(())
        for name, target in targets.items():
            for frames, weight in ((mask_BF, 1.0), (~mask_BF, visible_weight)):
                picked = computed[name][frames][None]
                compared = target.loss(last[frames][None], picked, picked)
                loss = loss + weight * WEIGHTS[name] * compared.loss
        return loss

    expected = torch.stack([of_view(mask) for mask in view_masks(module)]).mean()
    expected = expected + 2.0 * features.raw.square().mean()
    loss = module(given).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    trained = [p for p in module.parameters() if p.requires_grad]
    ours, plain = torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    # Once for the expectation, once for all views together.
    assert own.rows == (ROWS, ROWS)
    metrics = results(module)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_every_masked_frame_of_every_view_counts_in_the_metrics() -> None:
    encoder = random_encoder()
    module = objective(encoder, {"teacher": teacher(encoder)}, views=3)
    sums = MetricSums()
    sums.add(module(batch()).metrics)
    assert sums.count("teacher/loss") == sums.count("teacher/copy_loss") == 3 * ROWS * COUNT


# A teacher of another view.


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("views", [2, 3])
def test_each_view_is_compared_with_what_the_teacher_makes_of_the_next(
    views: int, pooled: bool
) -> None:
    encoder = random_encoder()
    byol = {"sees_other_view": True, "distance": "cosine", "predictor_dim": 16}
    last = {"feature": "hidden", "norm": "none", "top_layers": 1}
    own = teacher(encoder, pooled=pooled, **byol, **last)
    module, given = objective(encoder, {"teacher": own}, views=views), batch()
    projected = encoder.frontend(given.waveform).projected
    masks = view_masks(module)

    def hidden(mask_BF: Tensor) -> Tensor:
        return torch.where(mask_BF[..., None], encoder.mask_embedding, projected)

    losses = []
    for view in range(views):
        predicted = own.head(encoder.transform(hidden(masks[view])).last)
        with torch.no_grad():
            other = own.teacher.transform(hidden(masks[(view + 1) % views])).last
        if pooled:
            pair = predicted.mean(dim=1), other.mean(dim=1)
        else:
            pair = predicted[masks[view]], other[masks[view]]
        units = [F.normalize(value, dim=-1) for value in pair]
        losses.append((units[0] - units[1]).square().sum(dim=-1).mean())
    expected = torch.stack(losses).mean()
    assert len({round(loss.item(), 6) for loss in losses}) == views
    loss = module(given).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert own.rows == (views * ROWS,)
    trained = [p for p in module.parameters() if p.requires_grad]
    ours, plain = torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained)
    for one, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, theirs, rtol=1e-3, atol=1e-5)


# The decoder.


class Shown(Target):
    """Keeps what all frames are predicted from."""

    everywhere = True

    def compute(self, context: FrameContext) -> Tensor:
        return context.waveform[:, : context.num_frames, None]

    def loss(self, hidden_BMD: Tensor, target_BM: Tensor, copied_BM: Tensor) -> TargetLoss:
        self.hidden = hidden_BMD
        return TargetLoss(hidden_BMD.square().mean(), {})


def conv_decoder() -> ConvDecoder:
    torch.manual_seed(5)
    return ConvDecoder(DIM, inner=24, layers=2, kernel=5, groups=4)


def skipping(encoder: Encoder, masked_FD: Tensor, visible_V: Tensor) -> Tensor:
    """What the layers alone make of the visible frames of one crop, (1, V, D)."""
    everything = masked_FD[None]
    layout = BatchLayout((1, FRAMES), None)
    hidden = encoder.norm(encoder.positions(everything, layout))[:, visible_V]
    for layer in encoder.layers:
        layout = BatchLayout((1, len(visible_V)), None)
        hidden = layer(hidden, layout, AttentionBiasCache()).hidden
    return hidden


@pytest.mark.parametrize("views", [1, 2])
def test_visible_frames_are_the_encoders_own_and_masked_ones_the_decoders(views: int) -> None:
    encoder, decoder, shown = random_encoder(), conv_decoder(), Shown()
    module = objective(encoder, {"shown": shown}, views=views, decoder=decoder)
    ran: list[tuple[int, ...]] = []
    for layer in encoder.layers:
        layer.ffn_norm.register_forward_hook(lambda *call: ran.append(tuple(call[-1].shape)))
    with torch.no_grad():
        module(batch())
        assert ran == [(views * ROWS, FRAMES - COUNT, DIM)] * 2
        projected = encoder.frontend(batch().waveform).projected
        masks = view_masks(module).flatten(0, 1)
        assert shown.hidden.shape == (views * ROWS, FRAMES, DIM)
        for row, mask in enumerate(masks):
            masked = torch.where(mask[:, None], encoder.mask_embedding, projected[row % ROWS])
            visible = (~mask).nonzero().flatten()
            seen = skipping(encoder, masked, visible)
            filled = decoder(seen, visible[None], FRAMES)[0]
            expected = filled.index_copy(0, visible, seen[0])
            torch.testing.assert_close(shown.hidden[row], expected, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(filled[visible], seen[0], atol=0.1)


def test_the_decoder_is_residual_grouped_convolutions_over_fillers() -> None:
    decoder, visible = conv_decoder(), torch.tensor([[1, 4, 5], [0, 2, 6]])
    perturb(decoder, seed=3)
    given = noise(6, DIM).view(2, 3, DIM)
    everything = decoder.filler.repeat(2, 7, 1)
    for row in range(2):
        everything[row, visible[row]] = given[row]
    hidden = everything @ decoder.expand.weight.T + decoder.expand.bias
    for conv in decoder.convs:
        padded = F.pad(hidden.transpose(1, 2), (2, 2)).unfold(2, 5, 1)  # (B, C, F, kernel)
        grouped = padded.unflatten(1, (4, 6))
        weight = conv.weight.unflatten(0, (4, 6))
        made = torch.einsum("bgcfk,gock->bfgo", grouped, weight).flatten(2) + conv.bias
        centred = made - made.mean(dim=-1, keepdim=True)
        normed = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        hidden = hidden + normed * 0.5 * (1 + torch.erf(normed / math.sqrt(2)))
    expected = hidden @ decoder.project.weight.T + decoder.project.bias
    assert len(decoder.convs) == 2
    torch.testing.assert_close(decoder(given, visible, 7), expected)


def test_what_a_masked_frame_held_does_not_reach_a_run_with_a_decoder() -> None:
    encoder, shown = random_encoder(), Shown()
    module = objective(encoder, {"shown": shown}, decoder=conv_decoder())
    masked = view_masks(module)[0]

    def predicted(changed: Tensor) -> Tensor:
        def replace(frontend: nn.Module, inputs: object, features: Features) -> Features:
            other = torch.full_like(features.projected, 1e3)
            projected = torch.where(changed[..., None], other, features.projected)
            return features._replace(projected=projected)

        handle = encoder.frontend.register_forward_hook(replace)
        with torch.no_grad():
            module(batch())
        handle.remove()
        return shown.hidden

    untouched = predicted(torch.zeros_like(masked))
    assert torch.equal(predicted(masked), untouched)
    one_visible = torch.zeros_like(masked)
    one_visible[1, (~masked[1]).nonzero()[0]] = True
    changed = (predicted(one_visible) != untouched).flatten(1).any(dim=1)
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize("names", [["teacher"], ["teacher", "cqt"], ["logmel"], ["cqt", "logmel"]])
def test_with_a_decoder_any_target_trains_the_decoder_and_the_encoder(names: list[str]) -> None:
    encoder = random_encoder()
    every: dict[str, Target] = {"teacher": teacher(encoder), **fixed_targets()}
    targets = {name: every[name] for name in names}
    module = objective(encoder, targets, decoder=conv_decoder(), visible_weight=0.5)
    given, shown = batch(), Shown()
    with torch.no_grad():
        objective(encoder, {"shown": shown}, decoder=module.decoder)(given)
        projected = encoder.frontend(given.waveform).projected
        mask, expected = view_masks(module)[0], 0.0
        for name, target in targets.items():
            whole = target.compute(FrameContext(given.waveform, FRAMES, projected=projected))
            for frames, weight in ((mask, 1.0), (~mask, 0.5)):
                picked = whole[frames][None]
                compared = target.loss(shown.hidden[frames][None], picked, picked)
                expected += weight * WEIGHTS[name] * compared.loss.item()
    loss = module(given).loss
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    module.visible_weight = 0.0  # masked frames alone: all that is learnt goes through the decoder
    module(given).loss.backward()
    for name, parameter in module.named_parameters():
        if ".teacher.teacher." not in name and not name.endswith("k_proj.bias"):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0.0, name


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_views_and_decoder_give_about_the_same_loss_under_bf16_autocast(norm: str) -> None:
    encoder = random_encoder(norm=norm)
    targets: dict[str, Target] = {"teacher": teacher(encoder), "cqt": fixed_targets()["cqt"]}
    module = objective(encoder, targets, views=2, decoder=conv_decoder(), visible_weight=1.0)
    expected = module(batch()).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(batch()).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=0.03)
