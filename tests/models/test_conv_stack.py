"""The conv stack as matrix products is fairseq2's, to the last digits, and keeps less of it."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training_parts import small_encoder

from etude.models import conv_limits, conv_rows
from etude.models.blocks import BatchLayout, Wav2Vec2FeatureExtractor
from etude.models.config import EncoderConfig
from etude.models.conv_stack import conv_features
from etude.models.frontend import normalize_waveform

Run = Callable[[Wav2Vec2FeatureExtractor, Tensor], Tensor]

GEOMETRIES: dict[str, list[tuple[int, int, int]]] = {  # channels, kernel, stride
    "published": [
        (12, kernel, stride)
        for kernel, stride in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), strict=True)
    ],
    "long first kernel": [(8, 40, 20), (12, 4, 4), (16, 4, 4)],
    "every form": [(16, 7, 3), (12, 1, 2), (20, 5, 2), (16, 3, 1), (12, 4, 3), (16, 2, 2)],
    "kernels shorter than strides": [(16, 3, 5), (12, 2, 3), (16, 1, 2)],
    "no strides": [(16, 3, 1), (12, 4, 1), (16, 1, 1)],
    "one convolution": [(16, 10, 5)],
}
EVERY_GEOMETRY = pytest.mark.parametrize("geometry", GEOMETRIES)
BOTH_NORMS = pytest.mark.parametrize("layer_norm", [False, True], ids=["group", "layer"])
EVERY_PART = pytest.mark.parametrize("part_bytes", [1, 1 << 30], ids=["crop by crop", "at once"])
EVERY_WAY = pytest.mark.parametrize("way", ["oneDNN", "products", "windows"], indirect=True)
BOTH_BIASES = pytest.mark.parametrize("bias", [False, True], ids=["unbiased", "biased"])


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the convolutions after the first are computed, on whatever device."""
    chosen: str = request.param
    monkeypatch.setattr(conv_rows, "_by_convolution", lambda rows: chosen == "oneDNN")
    monkeypatch.setattr(conv_rows, "_by_windows", lambda rows: chosen == "windows")
    return chosen


def random_stack(
    geometry: str = "published",
    *,
    layer_norm: bool = False,
    bias: bool = False,
    grad_scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Wav2Vec2FeatureExtractor:
    """Every parameter random, norms and biases too: no swap goes unnoticed."""
    torch.manual_seed(0)
    stack = Wav2Vec2FeatureExtractor(
        GEOMETRIES[geometry], bias, layer_norm=layer_norm, grad_scale=grad_scale
    )
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return stack.to(dtype)


def noise(rows: int, samples: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (0.1 * torch.randn(rows, samples, generator=generator, dtype=torch.float64)).to(dtype)


def plain(stack: Wav2Vec2FeatureExtractor, waveform: Tensor) -> Tensor:
    """fairseq2's own forward; its norms are float32 at most."""
    return stack(waveform, BatchLayout(tuple(waveform.shape), None, device=waveform.device))[0]


def by_definition(stack: Wav2Vec2FeatureExtractor, waveform: Tensor) -> Tensor:
    """The same written out, in the type of the parameters throughout."""
    hidden_BCF = waveform[:, None]
    for layer in stack.layers:
        conv, group, channel = layer.conv, layer.group_norm, layer.layer_norm
        hidden_BCF = F.conv1d(hidden_BCF, conv.weight, conv.bias, conv.stride)
        if group is not None:
            hidden_BCF = F.group_norm(
                hidden_BCF, group.num_groups, group.weight, group.bias, group.eps
            )
        if channel is not None:
            hidden_BFC = hidden_BCF.transpose(1, 2)
            hidden_BFC = F.layer_norm(
                hidden_BFC, channel.weight.shape, channel.weight, channel.bias, channel.eps
            )
            hidden_BCF = hidden_BFC.transpose(1, 2)
        hidden_BCF = F.gelu(hidden_BCF)
    return hidden_BCF.transpose(1, 2)


def results(
    run: Run, stack: Wav2Vec2FeatureExtractor, waveform: Tensor, *, by_waveform: bool = False
) -> dict[str, Tensor]:
    """The features, and the gradients of a random sum of them."""
    stack.zero_grad()
    waveform = waveform.clone().requires_grad_(by_waveform)
    features = run(stack, waveform)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(features.shape, generator=generator, dtype=torch.float64)
    (features * weights.to(waveform)).sum().backward()
    made = {"features": features.detach()}
    for name, parameter in stack.named_parameters():
        assert parameter.grad is not None, name  # DDP and ZeRO wait for every one
        assert parameter.grad.dtype == parameter.dtype
        made[name] = parameter.grad.clone()
    if by_waveform:
        assert waveform.grad is not None
        made["waveform"] = waveform.grad
    return made


def errors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """Relative L2 of each."""
    assert found.keys() == wanted.keys()
    assert found["features"].shape == wanted["features"].shape
    made = {}
    for name, truth in wanted.items():
        size = truth.double().norm()
        if name == "layers.0.conv.bias" and "layers.0.group_norm.bias" in wanted:
            # The norm does not hear it: its gradient is 0 but for the rounding of others.
            size = 10.0 * wanted["layers.0.conv.weight"].double().norm()
        made[name] = ((found[name].double() - truth.double()).norm() / size).item()
    return made


def assert_alike(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    for name, error in errors(found, wanted).items():
        assert error <= tolerance, (name, error)


# -- equality -------------------------------------------------------------------------------------


@EVERY_GEOMETRY
@BOTH_NORMS
@BOTH_BIASES
@EVERY_PART
def test_features_and_all_gradients_are_those_of_the_definition(
    geometry: str,
    layer_norm: bool,
    bias: bool,
    part_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(conv_limits.PART_BYTES, "cpu", part_bytes)
    stack = random_stack(geometry, layer_norm=layer_norm, bias=bias, dtype=torch.float64)
    for rows, samples in ((3, 1300), (1, 1300), (2, 1301), (2, 1303), (2, 1599), (2, 1921)):
        waveform = noise(rows, samples, torch.float64)
        ours, theirs = (
            results(run, stack, waveform, by_waveform=True)
            for run in (conv_features, by_definition)
        )
        assert theirs["features"].std() > 0.05
        assert_alike(ours, theirs, 1e-10)


@EVERY_GEOMETRY
@BOTH_NORMS
@BOTH_BIASES
@EVERY_WAY
def test_features_and_all_gradients_are_fairseq2s(
    geometry: str, layer_norm: bool, bias: bool, way: str
) -> None:
    stack = random_stack(geometry, layer_norm=layer_norm, bias=bias)
    for rows, samples in ((1, 1300), (3, 1777)):
        waveform = noise(rows, samples)
        assert_alike(results(conv_features, stack, waveform), results(plain, stack, waveform), 1e-5)


def test_a_single_channel_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing in its layout tells channels first from channels last.
    monkeypatch.setitem(GEOMETRIES, "narrow", [(1, 10, 5), (8, 3, 2), (1, 3, 2), (8, 2, 2)])
    stack, waveform = random_stack("narrow"), noise(2, 1303)
    assert_alike(results(conv_features, stack, waveform), results(plain, stack, waveform), 1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@BOTH_NORMS
def test_features_and_all_gradients_are_the_definitions_on_a_gpu(layer_norm: bool) -> None:
    stack, waveform = random_stack(layer_norm=layer_norm, bias=True), noise(3, 4001)
    ours = results(conv_features, stack.cuda(), waveform.cuda())
    exact = results(by_definition, stack.cpu().double(), waveform.double())
    assert_alike({name: tensor.cpu() for name, tensor in ours.items()}, exact, 2e-5)


@EVERY_GEOMETRY
@BOTH_NORMS
@EVERY_PART
@EVERY_WAY
def test_no_result_depends_on_what_memory_held(
    geometry: str, layer_norm: bool, part_bytes: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(conv_limits.PART_BYTES, "cpu", part_bytes)
    stack = random_stack(geometry, layer_norm=layer_norm, bias=True, dtype=torch.float64)
    waveform = noise(2, 1303, torch.float64)
    wanted = results(conv_features, stack, waveform, by_waveform=True)
    torch.use_deterministic_algorithms(True)  # fills it with NaN
    try:
        assert torch.empty(3).isnan().all()
        found = results(conv_features, stack, waveform, by_waveform=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_alike(found, wanted, 1e-12)


@EVERY_GEOMETRY
@BOTH_NORMS
@EVERY_PART
def test_a_row_does_not_hear_the_others(
    geometry: str, layer_norm: bool, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(conv_limits.PART_BYTES, "cpu", part_bytes)
    stack = random_stack(geometry, layer_norm=layer_norm, dtype=torch.float64)
    waveform = noise(3, 1700, torch.float64)
    with torch.no_grad():
        alone = conv_features(stack, waveform[1:2])
        waveform[0], waveform[2] = torch.nan, torch.nan
        among = conv_features(stack, waveform)[1:2]
    torch.testing.assert_close(among, alone, rtol=1e-12, atol=1e-12)


@EVERY_GEOMETRY
@BOTH_NORMS
def test_the_shortest_waveform_gives_a_frame_and_a_shorter_one_is_refused(
    geometry: str, layer_norm: bool
) -> None:
    shapes = GEOMETRIES[geometry]
    kernels, strides = tuple(shape[1] for shape in shapes), tuple(shape[2] for shape in shapes)
    config = EncoderConfig(conv_dims=(1,) * len(shapes), conv_kernels=kernels, conv_strides=strides)
    shortest = config.grid.receptive_samples
    stack = random_stack(geometry, layer_norm=layer_norm, dtype=torch.float64)
    waveform = noise(2, shortest + 1, torch.float64)
    for samples in (shortest, shortest + 1):
        ours, theirs = (
            results(run, stack, waveform[:, :samples], by_waveform=True)
            for run in (conv_features, by_definition)
        )
        assert ours["features"].shape[1] == config.grid.num_frames(samples)
        if theirs["waveform"].norm() > 1e-9:  # a norm over one frame alone forgets all
            assert_alike(ours, theirs, 1e-9)
        else:
            assert_alike({"features": ours["features"]}, {"features": theirs["features"]}, 1e-9)
    with pytest.raises(ValueError, match=f"at least the {shortest} samples .* has {shortest - 1}"):
        conv_features(stack, waveform[:, : shortest - 1])


# -- levels and sounds ----------------------------------------------------------------------------


def rejecting_stack() -> Wav2Vec2FeatureExtractor:
    """Half of its first filters are second differences, which leave next to nothing of a tone."""
    stack = random_stack()
    weight = stack.layers[0].conv.weight
    with torch.no_grad():
        taps = torch.diff(torch.randn(6, 1, 12), n=2, dim=2)
        weight[:6] = taps / taps.norm(dim=2, keepdim=True)
    return stack


def sound(name: str) -> Tensor:
    time_T = torch.arange(12_000, dtype=torch.float64) / 24_000
    white = noise(2, 12_000, torch.float64)
    sounds = {
        "silence": torch.zeros(2, 12_000, dtype=torch.float64),
        "a constant": torch.full((2, 12_000), 0.5, dtype=torch.float64),
        "noise on a constant": 0.8 + 0.1 * white,
        "noise next to silence": 1e-5 * white,
        "noise at the level of eps": 0.03 * white,
        "a low note": 0.5 * torch.sin(2 * math.pi * 55 * time_T).expand(2, -1),
        "a note on a constant": 0.3 + 0.5 * torch.sin(2 * math.pi * 440 * time_T).expand(2, -1),
        "a note": 0.5 * torch.sin(2 * math.pi * 1000 * time_T).expand(2, -1),
        "a click": F.pad(torch.ones(2, 1, dtype=torch.float64), (6_000, 5_999)),
    }
    return sounds[name]


SOUNDS = ["silence", "a constant", "noise on a constant", "noise next to silence"]
SOUNDS += ["noise at the level of eps", "a low note", "a note on a constant", "a note", "a click"]


@pytest.mark.parametrize("name", SOUNDS)
def test_the_first_norm_is_right_whatever_sounds(name: str) -> None:
    stack, waveform = rejecting_stack(), sound(name)
    ours, theirs = (results(run, stack, waveform.float()) for run in (conv_features, plain))
    exact = results(by_definition, stack.double(), waveform.float().double())
    assert all(tensor.isfinite().all() for tensor in ours.values())
    found, published = errors(ours, exact), errors(theirs, exact)
    assert found["features"] <= 1e-5
    for key, error in found.items():
        if exact[key].norm() > 1e-6:  # of silence, the first filters' gradient is 0
            # Some of a loud tone's gradients are small differences of large ones.
            assert error <= max(3e-5, 2.0 * published[key]), (key, error, published[key])


def test_under_autocast_a_constant_costs_no_digits() -> None:
    stack, waveform = random_stack(), 0.8 + 0.1 * noise(2, 12_000)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (run(stack, waveform) for run in (conv_features, plain))
    exact = by_definition(stack.double(), waveform.double())
    assert (ours - exact).norm() < 0.02 * exact.norm()
    assert (theirs - exact).norm() > 0.1 * exact.norm()


# -- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", ["published", "long first kernel", "every form"])
@BOTH_NORMS
@BOTH_BIASES
def test_under_autocast_it_is_as_exact_as_fairseq2s(
    geometry: str, layer_norm: bool, bias: bool
) -> None:
    stack, waveform = random_stack(geometry, layer_norm=layer_norm, bias=bias), noise(3, 8_001)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (results(run, stack, waveform) for run in (conv_features, plain))
    exact = results(by_definition, stack.double(), waveform.double())
    assert ours["features"].dtype == theirs["features"].dtype == torch.bfloat16
    found, published = errors(ours, exact), errors(theirs, exact)
    assert found["features"] < 0.02
    ratios = [math.log(found[name] / published[name]) for name in found if published[name] > 1e-4]
    assert sum(ratios) / len(ratios) < math.log(1.5), (found, published)
    assert max(ratios) < math.log(5.0), (found, published)


@BOTH_NORMS
def test_a_stack_of_bfloat16_parameters_runs(layer_norm: bool) -> None:
    stack = random_stack(layer_norm=layer_norm, dtype=torch.bfloat16)
    waveform = noise(2, 4_000, torch.bfloat16)
    ours, theirs = (results(run, stack, waveform) for run in (conv_features, plain))
    assert ours["features"].dtype == torch.bfloat16
    assert (ours["features"] - theirs["features"]).norm() < 0.03 * theirs["features"].norm()


# -- what is kept, and compiled -------------------------------------------------------------------


def kept_bytes(run: Run, stack: Wav2Vec2FeatureExtractor, rows: int) -> int:
    """Bytes of what autograd keeps for backward."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(stack, noise(rows, 24_000))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@BOTH_NORMS
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_a_crop_keeps_less_than_a_quarter_for_backward(layer_norm: bool, autocast: bool) -> None:
    torch.manual_seed(0)
    shapes = [(64, kernel, stride) for _, kernel, stride in GEOMETRIES["published"]]
    stack = Wav2Vec2FeatureExtractor(shapes, False, layer_norm=layer_norm)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, theirs = (
            kept_bytes(run, stack, 3) - kept_bytes(run, stack, 2) for run in (conv_features, plain)
        )
    assert 0 < 4 * ours < theirs


@BOTH_NORMS
@EVERY_WAY
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_a_compiler_takes_it_whole(layer_norm: bool, way: str, autocast: bool) -> None:
    stack, waveform = random_stack("every form", layer_norm=layer_norm, bias=True), noise(2, 1300)
    torch._dynamo.reset()
    compiled = torch.compile(conv_features, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, wanted = (results(run, stack, waveform) for run in (compiled, conv_features))
    assert_alike(ours, wanted, 1e-6)


# -- the setting ----------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, object]] = {
    "mert": {},
    "music2vec": {
        "conv_norm": "layer",
        "normalize": True,
        "position_depth": 5,
        "position_kernel": 95,
    },
}
BOTH_MODELS = pytest.mark.parametrize("model", SETTINGS)


@BOTH_MODELS
def test_both_implementations_have_the_same_parameters_and_fast_is_the_default(model: str) -> None:
    fast, slow = (small_encoder(impl=impl, **SETTINGS[model]) for impl in ("fast", "plain"))
    assert EncoderConfig().impl == "fast" and "impl" in EncoderConfig.free_fields
    assert (fast.frontend.impl, slow.frontend.impl) == ("fast", "plain")
    ours, theirs = fast.state_dict(), slow.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    waveform = noise(2, 4_000)
    heard = normalize_waveform(waveform) if fast.config.normalize else waveform
    with torch.inference_mode():
        by_fast, by_plain = (encoder.frontend(waveform).raw for encoder in (fast, slow))
        assert torch.equal(by_fast, conv_features(fast.frontend.conv, heard))
        assert torch.equal(by_plain, plain(slow.frontend.conv, heard))
    assert not torch.equal(by_fast, by_plain)  # they are two, which differ in their rounding
    torch.testing.assert_close(by_fast, by_plain, rtol=1e-4, atol=1e-5)


@BOTH_MODELS
def test_padded_clips_give_the_same_features_by_both(model: str) -> None:
    encoders = [small_encoder(impl=impl, **SETTINGS[model]).eval() for impl in ("fast", "plain")]
    waveform, lengths = noise(3, 12_345), [12_345, 7_000, 1_001]
    for row, length in enumerate(lengths):
        waveform[row, length:] = 0.0
    with torch.inference_mode():
        ours, theirs = (encoder(waveform, lengths).last for encoder in encoders)
    for row, length in enumerate(lengths):
        count = encoders[0].grid.num_frames(length)
        torch.testing.assert_close(ours[row, :count], theirs[row, :count], rtol=1e-4, atol=1e-5)


@BOTH_NORMS
def test_the_gradient_scale_acts_in_training_alone_and_changes_no_output(layer_norm: bool) -> None:
    waveform = noise(2, 4_000)
    whole, scaled = (random_stack(layer_norm=layer_norm, grad_scale=scale) for scale in (1.0, 0.25))
    full, part = results(conv_features, whole, waveform), results(conv_features, scaled, waveform)
    still = results(conv_features, scaled.eval(), waveform)
    for name, wanted in full.items():
        factor = 1.0 if name == "features" else 0.25  # a power of two: no rounding
        assert torch.equal(part[name], factor * wanted), name
        assert torch.equal(still[name], wanted), name


def test_a_copy_computes_the_same_with_parameters_of_its_own() -> None:
    frontend = small_encoder().frontend.eval()
    twin = copy.deepcopy(frontend)
    waveform = noise(2, 4_000)
    with torch.inference_mode():
        wanted = frontend(waveform).raw
        assert twin.impl == "fast"
        assert torch.equal(twin(waveform).raw, wanted)
        twin.conv.layers[0].conv.weight.add_(torch.randn(10))
        assert not torch.allclose(twin(waveform).raw, wanted)
        assert torch.equal(frontend(waveform).raw, wanted)


@BOTH_NORMS
def test_frozen_convolutions_are_given_no_gradient(layer_norm: bool) -> None:
    stack = random_stack(layer_norm=layer_norm).requires_grad_(False)
    waveform = noise(2, 2_000)
    assert not conv_features(stack, waveform).requires_grad
    last = stack.layers[6].conv.weight.requires_grad_()
    conv_features(stack, waveform).sum().backward()
    given = [name for name, parameter in stack.named_parameters() if parameter.grad is not None]
    assert given == ["layers.6.conv.weight"] and last.grad is not None
