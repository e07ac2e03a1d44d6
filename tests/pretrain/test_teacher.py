"""The EMA teacher: its targets against transformers' data2vec, its loss and its moves by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from training_parts import audio_batch, noise, small_encoder
from transformers import Data2VecAudioConfig, Data2VecAudioModel

from etude.models.encoder import Encoder
from etude.pretrain.config import OptimConfig
from etude.pretrain.engine import build_optimizer
from etude.pretrain.masked_prediction import MaskedPrediction, Mixture
from etude.pretrain.metrics import MetricSums
from etude.pretrain.schedules import ramp
from etude.pretrain.targets.base import FrameContext, TargetLoss
from etude.pretrain.targets.teacher import TeacherTarget

DIM, LAYERS, SAMPLES, SEED = 32, 3, 12_000, 11
MUSIC2VEC = {
    **{"conv_norm": "layer", "normalize": True, "norm": "post", "layers": LAYERS},
    **{"position_depth": 5, "position_kernel": 15},
}
MUSIC2VEC_TARGET = {
    **{"top_layers": 2, "feature": "ffn", "norm": "instance", "distance": "mse"},
    **{"decay": ramp(0.999, 0.9999, steps=20), "predictor_dim": 0},
    **dict.fromkeys(("average_positions", "pooled", "hears_clean", "sees_other_view"), False),
}


def perturb(parameters: list[Tensor], *, seed: int, scale: float = 0.2) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def student(**settings: object) -> Encoder:
    """Every parameter random, norms and biases too."""
    encoder = small_encoder(**{**MUSIC2VEC, **settings})
    perturb(list(encoder.parameters()), seed=1)
    return encoder.eval()


class Heard(TeacherTarget):
    """Keeps what it computed."""

    def compute(self, context: FrameContext) -> Tensor:
        self.computed = super().compute(context)
        return self.computed


def teacher(encoder: Encoder, *, moved: bool = True, **settings: object) -> Heard:
    """One that has drifted away from the student, unless told otherwise."""
    target = Heard(encoder, **{**MUSIC2VEC_TARGET, **settings})
    if moved:
        perturb(list(target.teacher.parameters()), seed=2)
    return target


def objective(
    target: TeacherTarget, encoder: Encoder, *, seed: int = SEED, mixture: Mixture | None = None
) -> MaskedPrediction:
    return MaskedPrediction(
        encoder,
        {"teacher": target},
        weights={"teacher": 1.0},
        seed=seed,
        mask_prob=0.65,
        mask_span=4,
        mixture=mixture,
    )


def alone(target: TeacherTarget, encoder: Encoder, waveform: Tensor) -> Tensor:
    """What the target is for this audio."""
    with torch.no_grad():
        projected = encoder.frontend(waveform).projected
        return target.compute(FrameContext(waveform, projected.shape[1], projected=projected))


# What is predicted.

NAMES = (
    ("frontend.conv.layers.", "feature_extractor.conv_layers."),
    ("frontend.layer_norm.", "feature_projection.layer_norm."),
    ("frontend.projection.", "feature_projection.projection."),
    ("positions.", "encoder.pos_conv_embed."),
    ("norm.", "encoder.layer_norm."),
    ("layers.", "encoder.layers."),
    ("mask_embedding", "masked_spec_embed"),
)
INNER_NAMES = (
    (".attention.output_proj.", ".attention.out_proj."),
    (".attention_norm.", ".layer_norm."),
    (".ffn.inner_proj.", ".feed_forward.intermediate_dense."),
    (".ffn.output_proj.", ".feed_forward.output_dense."),
    (".ffn_norm.", ".final_layer_norm."),
)


def theirs(key: str) -> str:
    """The name of a parameter in transformers."""
    start, new = next(row for row in NAMES if key.startswith(row[0]))
    key = new + key.removeprefix(start)
    for inner, renamed in INNER_NAMES:
        key = key.replace(inner, renamed)
    return key


def data2vec(encoder: Encoder, target: TeacherTarget) -> Data2VecAudioModel:
    """transformers' model with the student's front end and the teacher's transformer."""
    config = encoder.config
    sizes = {"hidden_size": DIM, "num_hidden_layers": LAYERS, "intermediate_size": config.ffn_dim}
    heads = {"num_attention_heads": config.heads, "conv_bias": False}
    conv = {"conv_dim": config.conv_dims, "conv_kernel": config.conv_kernels}
    conv["conv_stride"] = config.conv_strides
    positions = {"num_conv_pos_embeddings": 5, "conv_pos_kernel_size": 3}
    positions["num_conv_pos_embedding_groups"] = config.position_groups
    model = Data2VecAudioModel(Data2VecAudioConfig(**sizes, **heads, **conv, **positions))
    state = {**encoder.state_dict(), **target.teacher.state_dict()}
    model.load_state_dict({theirs(key): value for key, value in state.items()})
    return model.eval()


@pytest.mark.parametrize("feature", ["ffn", "hidden"])
@pytest.mark.parametrize("norm", ["instance", "layer", "none"])
@pytest.mark.parametrize("top_layers", [1, 2, 3])
def test_the_target_is_what_data2vec_in_transformers_makes_of_the_teacher(
    feature: str, norm: str, top_layers: int
) -> None:
    encoder = student()
    target = teacher(encoder, feature=feature, norm=norm, top_layers=top_layers)
    waveform = 3.0 * noise(2, SAMPLES) + 0.5  # a level and an offset, for the norm to take away
    model = data2vec(encoder, target)
    made: list[Tensor] = []
    for layer in model.encoder.layers:
        if feature == "ffn":
            layer.feed_forward.register_forward_hook(lambda *call: made.append(call[-1]))
        else:
            layer.register_forward_hook(lambda *call: made.append(call[-1][0]))
    mean, variance = waveform.mean(dim=1), waveform.var(dim=1, correction=0)
    with torch.no_grad():
        model((waveform - mean[:, None]) / torch.sqrt(variance + 1e-7)[:, None])

    expected = torch.zeros(2, encoder.grid.num_frames(SAMPLES), DIM, dtype=torch.float64)
    for value in made[-top_layers:]:
        value = value.double()
        if norm != "none":
            over = 1 if norm == "instance" else 2
            centred = value - value.mean(dim=over, keepdim=True)
            value = centred / (centred.square().mean(dim=over, keepdim=True) + 1e-5).sqrt()
        expected += value / top_layers
    assert len(made) == LAYERS and expected.std() > 0.1
    found = alone(target, encoder, waveform)
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=1e-4)


def test_the_target_depends_neither_on_the_mask_nor_on_dropout() -> None:
    rates = ("dropout", "attention_dropout", "activation_dropout", "projection_dropout")
    encoder = student(**dict.fromkeys(rates, 0.5))
    target, batch = teacher(encoder), audio_batch(noise(2, SAMPLES))
    expected = alone(target, encoder, batch.waveform)
    losses = set()
    for seed in (1, 2):
        module = objective(target, encoder, seed=seed)
        for training in (False, True):
            losses.add(module.train(training)(batch).loss.item())
            assert torch.equal(target.computed, expected)
    assert len(losses) == 4  # the student does feel both


@pytest.mark.parametrize("hears_clean", [False, True])
def test_the_teacher_hears_the_mixture_or_the_clean_crop(hears_clean: bool) -> None:
    encoder = student()
    target = teacher(encoder, hears_clean=hears_clean)
    batch = audio_batch(noise(2, SAMPLES))
    mixed = batch.waveform + noise(2, SAMPLES, seed=9)
    module = objective(target, encoder, mixture=lambda waveform, ids: mixed)
    clean = alone(target, encoder, batch.waveform)
    heard = clean if hears_clean else alone(target, encoder, mixed)
    assert not torch.allclose(clean, alone(target, encoder, mixed), atol=0.1)
    module.train()(batch)
    torch.testing.assert_close(target.computed, heard)
    module.eval()(batch)
    torch.testing.assert_close(target.computed, clean)


def test_target_and_loss_are_float32_and_about_the_same_under_bf16_autocast() -> None:
    encoder = student()
    target, batch = teacher(encoder), audio_batch(noise(2, SAMPLES))
    module = objective(target, encoder)
    expected, exact = module(batch).loss.item(), target.computed
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(batch).loss
    assert loss.dtype == target.computed.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=0.03)
    assert 0.0 < (target.computed - exact).abs().mean() < 0.1


# How predictions are compared.


def results(compared: TargetLoss) -> dict[str, float]:
    sums = MetricSums()
    sums.add(compared.metrics)
    return sums.results()


def frames(seed: int, *, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.2, 2.0, DIM) * scale
    return torch.randn(3, 10, DIM, generator=generator) * spread + 0.3


def distance(predicted: np.ndarray, target: np.ndarray, kind: str) -> float:
    """Mean over vectors (N, D)."""
    if kind == "mse":
        return float(((predicted - target) ** 2).sum(axis=1).mean() / math.sqrt(DIM))
    lengths = np.linalg.norm(predicted, axis=1) * np.linalg.norm(target, axis=1)
    return float((2 - 2 * (predicted * target).sum(axis=1) / lengths).mean())


@pytest.mark.parametrize("kind", ["mse", "cosine"])
@pytest.mark.parametrize("predictor_dim", [0, 24])
@pytest.mark.parametrize("pooled", [False, True])
def test_the_loss_and_what_stands_beside_it_are_those_of_plain_numpy(
    kind: str, predictor_dim: int, pooled: bool
) -> None:
    settings = {"distance": kind, "predictor_dim": predictor_dim, "pooled": pooled}
    head = teacher(student(), **settings)
    hidden, target, copied = frames(1), frames(2), frames(3)
    weights = [p.detach().double().numpy() for p in head.parameters() if p.requires_grad]
    predicted = hidden.double().numpy() @ weights[0].T + weights[1]
    if predictor_dim:
        assert weights[0].shape == (24, DIM)
        centred = predicted - predicted.mean(axis=-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
        active = np.maximum(normed * weights[2] + weights[3], 0.0)
        predicted = active @ weights[4].T + weights[5]
    wanted = target.double().numpy()
    if pooled:
        predicted, wanted = predicted.mean(axis=1), wanted.mean(axis=1)
    else:
        predicted, wanted = predicted.reshape(-1, DIM), wanted.reshape(-1, DIM)
    expected = {
        "loss": distance(predicted, wanted, kind),
        "target_std": float(wanted.std(axis=0).mean()),
        "prediction_std": float(predicted.std(axis=0).mean()),
    }
    if not pooled:
        expected["copy_loss"] = distance(copied.double().numpy().reshape(-1, DIM), wanted, kind)
    if kind == "mse":
        expected["constant_loss"] = distance(
            np.broadcast_to(wanted.mean(0), wanted.shape), wanted, kind
        )
    compared = head.loss(hidden, target, copied)
    assert results(compared) == pytest.approx(expected, rel=1e-5)
    assert compared.loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    assert compared.metrics["loss"].count == (3 if pooled else 30)


def test_the_objectives_gradient_is_that_of_regressing_a_constant() -> None:
    encoder = student()
    target, batch = teacher(encoder), audio_batch(noise(2, SAMPLES))
    module = objective(target, encoder).train()
    constant = alone(target, encoder, batch.waveform)
    masked = module.mask(batch, constant.shape[1]).bool_BF
    last = encoder.context(encoder.frontend(batch.waveform).projected, mask=masked).last
    predicted = target.head(last[masked])
    plain = F.mse_loss(predicted, constant[masked]) * math.sqrt(DIM)
    loss = module(batch).loss
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert not any("teacher.teacher" in name for name in trained)
    ours = torch.autograd.grad(loss, list(trained.values()))
    other = torch.autograd.grad(plain, list(trained.values()))
    for name, one, two in zip(trained, ours, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6, msg=name)
    module(batch).loss.backward()
    assert all(parameter.grad is None for parameter in target.teacher.parameters())


# How the teacher moves.


@pytest.mark.parametrize("average_positions", [False, True])
@pytest.mark.parametrize(("start", "end"), [(0.999, 0.9999), (0.9, 0.99)])
@pytest.mark.parametrize("geometry", [{}, {"position_depth": 1, "norm": "pre"}], ids=["5", "1"])
def test_the_teacher_is_the_annealed_average_of_the_students(
    average_positions: bool, start: float, end: float, geometry: dict[str, object]
) -> None:
    encoder, anneal = student(**geometry), 20
    decay = ramp(start, end, steps=anneal)
    target = teacher(encoder, decay=decay, average_positions=average_positions)
    average = {name: p.double().numpy().copy() for name, p in target.teacher.named_parameters()}
    for update in range(30):
        perturb(list(encoder.parameters()), seed=100 + update)
        sums = MetricSums()
        sums.add(target.metrics(update))
        target.after_step(update, encoder)
        kept = start + (end - start) * min(update + 1, anneal) / anneal
        assert sums.results()["decay"] == pytest.approx(kept, rel=1e-6)
        weights = dict(encoder.named_parameters())
        for name, value in average.items():
            now = weights[name].detach().double().numpy()
            average[name] = kept * value + (1 - kept) * now
            if name.startswith("positions.") and not average_positions:
                average[name] = now
    positions = 0
    for name, parameter in target.teacher.named_parameters():
        found = parameter.double().numpy()
        error = np.linalg.norm(found - average[name]) / np.linalg.norm(average[name])
        assert error <= 1e-6, name
        if name.startswith("positions."):
            positions += 1
            assert np.array_equal(found, average[name]) is not average_positions
    assert positions >= 3 and len(average) > 40


def test_a_decay_of_one_freezes_the_teacher_and_one_of_zero_copies_the_student() -> None:
    encoder = student()
    for decay in (0.0, 1.0):
        fixed = ramp(decay, decay, steps=0)
        target = teacher(encoder, decay=fixed, average_positions=True)
        before = {name: value.clone() for name, value in target.teacher.state_dict().items()}
        expected = encoder.state_dict() if decay == 0.0 else before
        for update in range(3):
            target.after_step(update, encoder)
        for name, value in target.teacher.state_dict().items():
            assert torch.equal(value, expected[name]), name
            assert not torch.equal(before[name], encoder.state_dict()[name]), name


def test_a_fresh_teacher_is_a_copy_of_the_student_that_is_never_trained() -> None:
    encoder = student(dropout=0.5)
    target = teacher(encoder, moved=False)
    module = objective(target, encoder)
    own = {name for name, _ in target.teacher.named_parameters()}
    assert own == {
        name
        for name, _ in encoder.named_parameters()
        if not name.startswith("frontend.") and name != "mask_embedding"
    }
    for name, parameter in target.teacher.named_parameters():
        source = encoder.get_parameter(name)
        assert torch.equal(parameter, source) and parameter.data_ptr() != source.data_ptr()
        assert not parameter.requires_grad
    for mode in (target.train, module.train, module.eval, target.teacher.eval):
        mode()
        assert not any(part.training for part in target.teacher.modules())
    assert module.train().encoder.dropout.training and target.head.training

    optimizer = build_optimizer(module, OptimConfig(lr=1.0, warmup_steps=0), torch.device("cpu"))
    (group,) = optimizer.param_groups
    trained = {id(parameter) for parameter in group["params"]}
    wanted = [*encoder.parameters(), *target.head.parameters()]
    assert trained == {id(parameter) for parameter in wanted}
    assert not trained & {id(parameter) for parameter in target.teacher.parameters()}
