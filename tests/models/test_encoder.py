"""The encoder computes what fairseq2's wav2vec 2.0 does, and what the objectives rely on holds."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

# isort: off
import soundfile  # noqa: F401  (must come before fairseq2, see etude.models.blocks)

import pytest
import torch
from fairseq2.models.transformer import TransformerNormOrder
from fairseq2.models.wav2vec2 import Wav2Vec2EncoderConfig, Wav2Vec2EncoderFactory
from fairseq2.nn import BatchLayout
from torch import Tensor, nn
from training_parts import noise, small_encoder
from transformers import Data2VecAudioConfig, Data2VecAudioModel, Wav2Vec2FeatureExtractor

# isort: on

from etude.models.config import EncoderConfig
from etude.models.encoder import Encoder
from etude.models.frontend import normalize_waveform
from etude.models.hf.keys import to_hubert

MERT_95M = {"norm": "post", "conv_norm": "group"}
MERT_330M = {"norm": "pre", "conv_norm": "group"}
MUSIC2VEC = {"norm": "post", "conv_norm": "layer", "position_depth": 5, "position_kernel": 95}
GEOMETRIES: dict[str, dict[str, object]] = {
    "mert-95m": MERT_95M,
    "mert-330m": MERT_330M,
    "music2vec": MUSIC2VEC,
    "pre-layer": {"norm": "pre", "conv_norm": "layer", "conv_bias": True, "position_kernel": 15},
}
EVERY_GEOMETRY = pytest.mark.parametrize("geometry", GEOMETRIES)


def random_encoder(geometry: str = "mert-95m", **settings: object) -> Encoder:
    """Every parameter random, norms and biases too: no swap goes unnoticed."""
    encoder = small_encoder(**{**GEOMETRIES[geometry], **settings})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return encoder.eval()


def frames(rows: int, count: int, *, seed: int = 3) -> Tensor:
    """Projected features (B, F, D) of a small encoder."""
    return torch.randn(rows, count, 32, generator=torch.Generator().manual_seed(seed))


def half_masked(rows: int, count: int) -> Tensor:
    return torch.rand(rows, count, generator=torch.Generator().manual_seed(4)) < 0.5


# -- what is computed -----------------------------------------------------------------------------

FAIRSEQ2_NAMES = (
    ("frontend.conv.", "frontend.feature_extractor."),
    ("frontend.layer_norm.", "frontend.post_extract_layer_norm."),
    ("frontend.projection.", "frontend.model_dim_proj."),
    ("positions.", "frontend.pos_encoder."),
    ("layers.", "encoder.layers."),
)


class Fairseq2Twin(nn.Module):
    """The same model, put together by fairseq2 itself, with the same weights."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        config = encoder.config
        pre_norm = config.norm == "pre"
        shapes = zip(config.conv_dims, config.conv_kernels, config.conv_strides, strict=True)
        factory = Wav2Vec2EncoderFactory(
            Wav2Vec2EncoderConfig(
                model_dim=config.dim,
                feature_dim=config.conv_dims[-1],
                layer_norm_features=not pre_norm,
                feature_extractor_layer_descs=list(shapes),
                feature_extractor_bias=config.conv_bias,
                feature_extractor_layer_norm_convs=config.conv_norm == "layer",
                pos_encoder_depth=config.position_depth,
                pos_conv_kernel_size=config.position_kernel,
                num_pos_conv_groups=config.position_groups,
                num_encoder_layers=config.layers,
                num_encoder_attn_heads=config.heads,
                ffn_inner_dim=config.ffn_dim,
                norm_order=TransformerNormOrder.PRE if pre_norm else TransformerNormOrder.POST,
            )
        )
        self.frontend = factory.create_encoder_frontend()
        self.encoder = factory.create_encoder()
        outer_norm = "encoder.layer_norm." if pre_norm else "frontend.layer_norm."
        state = {}
        for key, tensor in encoder.state_dict().items():
            if key != "mask_embedding":
                for ours, theirs in (*FAIRSEQ2_NAMES, ("norm.", outer_norm)):
                    if key.startswith(ours):
                        key = theirs + key.removeprefix(ours)
                        break
                key = key.replace(".attention.", ".self_attn.")
                key = key.replace(".attention_norm.", ".self_attn_layer_norm.")
                state[key.replace(".ffn_norm.", ".ffn_layer_norm.")] = tensor
        self.load_state_dict(state)
        self.eval()

    def run(self, waveform: Tensor, num_frames: list[int] | None = None) -> dict[str, Any]:
        made: dict[str, Any] = {"hidden": [], "ffn": []}

        def keep(index: int, output: Tensor, layout: BatchLayout, layers: int) -> bool:
            made["hidden"].append(output)
            return True

        for layer in self.encoder.layers:
            layer.ffn.register_forward_hook(lambda *call: made["ffn"].append(call[-1]))
        self.encoder.register_layer_hook(keep)
        full = BatchLayout(tuple(waveform.shape), None)
        normed, _, made["raw"] = self.frontend.extract_features(waveform, full)
        layout = BatchLayout((normed.shape[0], normed.shape[1]), num_frames)
        made["embedded"], _ = self.frontend.process_features(normed, layout)
        made["last"] = self.encoder(made["embedded"], layout)
        return made


@EVERY_GEOMETRY
@pytest.mark.parametrize("num_frames", [None, [73, 41]], ids=["full", "padded"])
@pytest.mark.parametrize("impl", ["fast", "plain"])
def test_every_intermediate_result_is_fairseq2s(
    geometry: str, num_frames: list[int] | None, impl: str
) -> None:
    encoder = random_encoder(geometry, impl=impl)
    # Products sum in another order than convolutions do; what is plain, fairseq2 runs itself.
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if impl == "fast" else {}
    waveform = noise(2, 23_700)
    with torch.inference_mode():
        features = encoder.frontend(waveform)
        ours = encoder.context(features.projected, num_frames=num_frames)
        theirs = Fairseq2Twin(encoder).run(waveform, num_frames)
    lengths = num_frames or [73, 73]
    assert len(theirs["hidden"]) == len(theirs["ffn"]) == len(ours.layers) == 2
    pairs = [
        (features.raw, theirs["raw"]),
        (ours.embedded, theirs["embedded"]),
        *zip([layer.hidden for layer in ours.layers], theirs["hidden"], strict=True),
        *zip([layer.ffn for layer in ours.layers], theirs["ffn"], strict=True),
        (ours.last, theirs["last"]),
    ]
    for own, other in pairs:
        assert own.shape == other.shape and own.shape[:2] == (2, 73)
        assert own.std() > 0.05  # results that are all alike would agree by accident
        for row, length in enumerate(lengths):
            torch.testing.assert_close(own[row, :length], other[row, :length], **tolerance)


def to_data2vec(encoder: Encoder) -> dict[str, Tensor]:
    """The released music2vec's names: as HubertModel's, but for the stack of positions."""
    state = encoder.state_dict()
    stack = {key: tensor for key, tensor in state.items() if key.startswith("positions.")}
    rest = {key: tensor for key, tensor in state.items() if key not in stack}
    renamed = {key.replace("positions.", "encoder.pos_conv_embed."): stack[key] for key in stack}
    return {**to_hubert(rest, encoder.config), **renamed}


def data2vec(config: EncoderConfig) -> Data2VecAudioModel:
    return Data2VecAudioModel(
        Data2VecAudioConfig(
            hidden_size=config.dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.ffn_dim,
            conv_dim=config.conv_dims,
            conv_kernel=config.conv_kernels,
            conv_stride=config.conv_strides,
            conv_bias=config.conv_bias,
            num_conv_pos_embeddings=config.position_depth,
            conv_pos_kernel_size=config.position_kernel // config.position_depth,
            num_conv_pos_embedding_groups=config.position_groups,
        )
    )


def test_the_stack_of_positions_is_that_of_data2vec_in_transformers() -> None:
    encoder = random_encoder("music2vec")
    model = data2vec(encoder.config)
    model.load_state_dict(to_data2vec(encoder))
    waveform = noise(2, 23_700)
    mask = half_masked(2, 73)
    with torch.inference_mode():
        ours = encoder.context(encoder.frontend(waveform).projected, mask=mask).hidden_states
        theirs = model.eval()(waveform, mask_time_indices=mask, output_hidden_states=True)
    for own, other in zip(ours, theirs.hidden_states, strict=True):
        assert own.std() > 0.1
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


def test_music2vec_v1_has_the_tensors_of_the_released_file() -> None:
    config = EncoderConfig.model_validate({"sample_rate": 16_000, **MUSIC2VEC})
    with torch.device("meta"):
        ours = to_data2vec(Encoder(config))
        theirs = data2vec(config).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {
        key: tensor.shape for key, tensor in theirs.items()
    }
    assert sum(tensor.numel() for tensor in ours.values()) == 93_164_288


def test_a_whole_forward_is_the_two_halves() -> None:
    encoder = random_encoder()
    waveform = noise(2, 8_000)
    with torch.inference_mode():
        whole = encoder(waveform)
        halves = encoder.context(encoder.frontend(waveform).projected)
    assert torch.equal(whole.last, halves.last)


@EVERY_GEOMETRY
def test_hidden_states_are_the_input_of_every_layer_and_the_last_output(geometry: str) -> None:
    encoder = random_encoder(geometry, layers=3)
    with torch.inference_mode():
        output = encoder.context(frames(2, 20))
        normed = encoder.norm(output.layers[-1].hidden)
    states = output.hidden_states
    assert len(states) == encoder.config.layers + 1 == 4
    assert states[0] is output.embedded and states[-1] is output.last
    for state, layer in zip(states[1:-1], output.layers[:-1], strict=True):
        assert state is layer.hidden
    if encoder.config.norm == "pre":  # the layer's own output is kept beside the normed one
        assert torch.equal(output.last, normed)
        assert not torch.allclose(output.last, output.layers[-1].hidden)
    else:
        assert output.last is output.layers[-1].hidden


@EVERY_GEOMETRY
def test_the_ffn_output_is_what_the_residual_sum_adds(geometry: str) -> None:
    encoder = random_encoder(geometry)
    layer = encoder.layers[0]
    with torch.inference_mode():
        output = encoder.context(frames(2, 20))
        hidden, ffn = output.layers[0]
        if encoder.config.norm == "pre":
            attended = hidden - ffn
            expected = layer.ffn(layer.ffn_norm(attended))
        else:
            attended = layer.attention_norm(
                output.embedded + attention_by_hand(encoder, output.embedded)
            )
            expected = layer.ffn(attended)
            torch.testing.assert_close(hidden, layer.ffn_norm(attended + ffn))
    torch.testing.assert_close(ffn, expected, rtol=1e-4, atol=1e-4)


def attention_by_hand(encoder: Encoder, hidden_BFD: Tensor) -> Tensor:
    """Self-attention of the first layer, written out."""
    attention = encoder.layers[0].attention
    rows, count, dim = hidden_BFD.shape
    heads = encoder.config.heads
    query, key, value = (
        projection(hidden_BFD).view(rows, count, heads, dim // heads).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    weights = (query @ key.transpose(2, 3) / math.sqrt(dim // heads)).softmax(dim=-1)
    return attention.output_proj((weights @ value).transpose(1, 2).reshape(rows, count, dim))


@pytest.mark.parametrize("geometry", ["mert-95m", "mert-330m", "pre-layer"])
def test_a_padded_row_is_the_row_alone(geometry: str) -> None:
    encoder = random_encoder(geometry)
    projected = frames(2, 30)
    with torch.inference_mode():
        alone = encoder.context(projected[1:, :17]).hidden_states
        padded = encoder.context(projected, num_frames=[30, 17]).hidden_states
        ignored = encoder.context(projected).hidden_states
    for own, other, wrong in zip(alone, padded, ignored, strict=True):
        torch.testing.assert_close(own[0], other[1, :17], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(own[0], wrong[1, :17], rtol=1e-2, atol=1e-2)


# -- level and length -----------------------------------------------------------------------------

LENGTHS = [23_700, 14_000, 17_321]


def listened(lengths: list[int], *, attention_mask: bool) -> dict[str, Tensor]:
    """Clips of various levels as transformers' feature extractor hands them to a model."""
    extract = Wav2Vec2FeatureExtractor(
        sampling_rate=24_000, do_normalize=True, return_attention_mask=attention_mask
    )
    rows = [clip.numpy() for clip in clips(lengths)]
    return dict(extract(rows, sampling_rate=24_000, padding=True, return_tensors="pt"))


def clips(lengths: list[int]) -> list[Tensor]:
    return [
        (1.0 + 5.0 * row) * noise(1, length, seed=row)[0] + 0.3 * row
        for row, length in enumerate(lengths)
    ]


def padded(lengths: list[int]) -> Tensor:
    return nn.utils.rnn.pad_sequence(clips(lengths), batch_first=True)


@pytest.mark.parametrize("lengths", [LENGTHS, [14_000, 14_000]], ids=["padded", "full"])
def test_a_waveform_is_normalised_as_transformers_feature_extractor_does(
    lengths: list[int],
) -> None:
    full = len(set(lengths)) == 1
    expected = listened(lengths, attention_mask=True)["input_values"]
    for given in [torch.tensor(lengths), *([None] if full else [])]:
        found = normalize_waveform(padded(lengths), given)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for row, length in enumerate(lengths):
        assert not found[row, length:].any()
        torch.testing.assert_close(found[row, :length].std(correction=0), torch.tensor(1.0))


def test_silence_stays_silence_when_it_is_normalised() -> None:
    silent = torch.full((2, 800), 0.25)
    for given in (None, torch.tensor([800, 300])):
        found = normalize_waveform(silent, given)
        assert found.abs().max() < 1e-3


@pytest.mark.parametrize("padding", ["published", "exact"])
def test_padded_audio_gives_what_data2vec_in_transformers_gives_unless_it_is_exact(
    padding: str,
) -> None:
    encoder = random_encoder("music2vec", normalize=True, padding=padding)
    model = data2vec(encoder.config)
    model.load_state_dict(to_data2vec(encoder))
    with torch.inference_mode():
        ours = encoder(padded(LENGTHS), LENGTHS).hidden_states
        given = listened(LENGTHS, attention_mask=True)
        theirs = model.eval()(**given, output_hidden_states=True).hidden_states
        alone = [encoder(clip[None]).hidden_states for clip in clips(LENGTHS)]
    for state, other in enumerate(theirs):
        for row, length in enumerate(LENGTHS):
            count = encoder.grid.num_frames(length)
            own, published = ours[state][row, :count], other[row, :count]
            if padding == "exact":
                torch.testing.assert_close(own, alone[row][state][0], rtol=1e-3, atol=1e-4)
            if padding == "published" or length == max(LENGTHS):
                torch.testing.assert_close(own, published, rtol=1e-3, atol=1e-4)
            else:
                assert not torch.allclose(own, published, rtol=1e-2, atol=1e-2)


# -- masks ----------------------------------------------------------------------------------------


@EVERY_GEOMETRY
def test_what_a_masked_frame_held_does_not_influence_anything(geometry: str) -> None:
    encoder = random_encoder(geometry)
    projected, mask = frames(2, 40), half_masked(2, 40)
    with torch.inference_mode():
        wanted = encoder.context(projected, mask=mask)
        for other in (frames(2, 40, seed=9), torch.full((2, 40, 32), torch.nan)):
            changed = torch.where(mask[..., None], other, projected)
            for own, got in zip(
                wanted.hidden_states, encoder.context(changed, mask=mask).hidden_states, strict=True
            ):
                assert torch.equal(own, got)
        visible = torch.where(mask[..., None], projected, frames(2, 40, seed=9))
        assert not torch.allclose(encoder.context(visible, mask=mask).last, wanted.last)


def test_the_gradient_reaches_exactly_the_visible_frames() -> None:
    encoder = random_encoder()
    projected, mask = frames(2, 40).requires_grad_(), half_masked(2, 40)
    encoder.context(projected, mask=mask).last.square().sum().backward()
    assert projected.grad is not None
    assert torch.equal(projected.grad.abs().amax(dim=-1) == 0.0, mask)


def test_a_masked_frame_holds_the_mask_embedding() -> None:
    encoder = random_encoder()
    projected, mask = frames(2, 40), half_masked(2, 40)
    written = projected.clone()
    written[mask] = encoder.mask_embedding.detach()
    with torch.inference_mode():
        assert torch.equal(
            encoder.context(projected, mask=mask).last, encoder.context(written).last
        )


def test_audio_that_masked_frames_alone_hear_is_not_heard() -> None:
    # Layer norm: a group norm lets every frame hear the statistics of the whole crop.
    encoder = random_encoder("music2vec")
    grid = encoder.grid
    waveform = noise(1, 16_000)
    first, last = 10, 25
    mask = torch.zeros(1, grid.num_frames(16_000), dtype=torch.bool)
    mask[0, first:last] = True
    start = (first - 1) * grid.hop_samples + grid.receptive_samples
    stop = last * grid.hop_samples

    def encode(audio: Tensor) -> Tensor:
        with torch.inference_mode():
            return encoder.context(encoder.frontend(audio).projected, mask=mask).last

    wanted = encode(waveform)
    for begin, end, heard in (
        (start, stop, False),
        (start - 1, stop, True),
        (start, stop + 1, True),
    ):
        changed = waveform.clone()
        changed[:, begin:end] = 10.0 * noise(1, end - begin, seed=8)
        assert torch.equal(encode(changed), wanted) is not heard


def test_dropout_of_the_projection_spares_the_mask_embedding() -> None:
    encoder = random_encoder(projection_dropout=0.9).train()
    projected = frames(2, 40)
    everything = torch.ones(2, 40, dtype=torch.bool)
    masked = [encoder.context(projected, mask=everything).last for _ in range(2)]
    assert torch.equal(*masked)
    visible = [encoder.context(projected, mask=~everything).last for _ in range(2)]
    assert not torch.allclose(*visible)


# -- gradients ------------------------------------------------------------------------------------


def gradients(encoder: Encoder, keep_layers: Tensor | None = None) -> dict[str, Tensor | None]:
    """Of every parameter after one training step with masks; ``None`` where there is none."""
    torch.manual_seed(0)
    features = encoder.frontend(noise(2, 8_000))
    mask = half_masked(2, encoder.grid.num_frames(8_000))
    output = encoder.context(features.projected, mask=mask, keep_layers=keep_layers)
    weights = frames(2, mask.shape[1], seed=7)
    (output.last * weights).sum().backward()
    return {name: parameter.grad for name, parameter in encoder.named_parameters()}


@EVERY_GEOMETRY
@pytest.mark.parametrize("kept", [None, [1, 1, 1], [1, 0, 1], [0, 0, 0]], ids=str)
def test_every_parameter_gets_a_gradient_whichever_layers_are_dropped(
    geometry: str, kept: list[int] | None
) -> None:
    settings = {"layers": 3, "dropout": 0.1, "attention_dropout": 0.1, "projection_dropout": 0.1}
    encoder = random_encoder(geometry, **settings).train()
    keep_layers = None if kept is None else torch.tensor(kept, dtype=torch.bool)
    for name, gradient in gradients(encoder, keep_layers).items():
        assert gradient is not None, name  # DDP and ZeRO wait for every one
        assert gradient.isfinite().all(), name
        if name.endswith("k_proj.bias"):
            continue  # a softmax does not feel what is added to all of its inputs
        dropped = kept is not None and any(
            name.startswith(f"layers.{index}.") for index, keep in enumerate(kept) if not keep
        )
        assert (gradient.abs().max() == 0.0) == dropped, name


@EVERY_GEOMETRY
def test_a_dropped_layer_passes_its_input_on(geometry: str) -> None:
    encoder = random_encoder(geometry, layers=3)
    projected = frames(2, 20)
    with torch.inference_mode():
        output = encoder.context(projected, keep_layers=torch.tensor([True, False, True]))
        assert torch.equal(output.layers[1].hidden, output.layers[0].hidden)
        none = encoder.context(projected, keep_layers=torch.tensor([False] * 3))
        everything = encoder.context(projected, keep_layers=torch.tensor([True] * 3))
        full = encoder.context(projected)
        del encoder.layers[1]
        shorter = encoder.context(projected)
    assert torch.equal(output.last, shorter.last)
    assert torch.equal(everything.last, full.last)
    assert not torch.allclose(output.last, full.last)
    assert all(torch.equal(layer.hidden, none.embedded) for layer in none.layers)


@pytest.mark.parametrize("geometry", ["mert-95m", "music2vec"])
def test_the_gradient_scale_acts_on_the_convolutions_alone(geometry: str) -> None:
    full = gradients(random_encoder(geometry, feature_grad_scale=1.0).train())
    scaled = gradients(random_encoder(geometry, feature_grad_scale=0.25).train())
    assert sum(name.startswith("frontend.conv.") for name in full) >= 9
    for name, gradient in full.items():
        other = scaled[name]
        assert gradient is not None and other is not None
        factor = 0.25 if name.startswith("frontend.conv.") else 1.0  # a power of two: no rounding
        assert torch.equal(other, factor * gradient), name


def test_the_gradient_scale_changes_no_output() -> None:
    encoders = [random_encoder(feature_grad_scale=scale).train() for scale in (1.0, 0.1)]
    outputs = [encoder(noise(2, 8_000)).last for encoder in encoders]
    assert torch.equal(*outputs)


# -- initialisation -------------------------------------------------------------------------------


def kind_of(name: str) -> str:
    """Row of the table in the docstring of ``initialise``, with ``weight`` or ``bias``."""
    end = name.rsplit(".", 1)[-1]
    if "norm" in name:
        return f"norm {end}"
    for kind, start in (
        ("convolution", "frontend.conv."),
        ("projection", "frontend.projection."),
        ("position", "positions."),
        ("transformer", "layers."),
    ):
        if name.startswith(start):
            return f"{kind} {end}"
    return name


def is_normal(tensor: Tensor, std: float) -> bool:
    """Mean, deviation and tails as N(0, std) within five standard errors."""
    count = tensor.numel()
    beyond = (tensor.abs() > 2.0 * std).double().mean().item()
    return (
        abs(tensor.mean().item()) < 5.0 * std / math.sqrt(count)
        and abs(tensor.std().item() / std - 1.0) < 5.0 / math.sqrt(2.0 * count)
        and abs(beyond - 0.0455) < 5.0 * math.sqrt(0.0455 * 0.9545 / count)
    )


def is_uniform(tensor: Tensor, low: float, high: float) -> bool:
    count = tensor.numel()
    inside = low <= tensor.min().item() and tensor.max().item() <= high
    position = (tensor.double() - low) / (high - low)
    return (
        inside
        and abs(position.mean().item() - 0.5) < 5.0 / math.sqrt(12.0 * count)
        and abs(position.std().item() / math.sqrt(1.0 / 12.0) - 1.0) < 5.0 / math.sqrt(count)
    )


def is_as_the_table_says(name: str, tensor: Tensor, config: EncoderConfig) -> bool:
    channels = config.conv_dims[-1]
    match kind_of(name):
        case "norm weight":
            return bool((tensor == 1.0).all())
        case "norm bias" | "transformer bias" | "position bias" | "convolution bias":
            return bool((tensor == 0.0).all())
        case "convolution weight":
            return is_normal(tensor, math.sqrt(2.0 / (tensor.shape[1] * tensor.shape[2])))
        case "projection weight" | "projection bias":
            return is_uniform(tensor, -1.0 / math.sqrt(channels), 1.0 / math.sqrt(channels))
        case "position weight_v":
            return is_normal(tensor, math.sqrt(4.0 / (config.position_kernel * config.dim)))
        case "transformer weight":
            return is_normal(tensor, 0.02)
        case "mask_embedding":
            return is_uniform(tensor, 0.0, 1.0)
    raise AssertionError(f"{name} is in no row of the table")


@pytest.mark.parametrize("geometry", ["mert-95m", "mert-330m", "pre-layer"])
def test_every_parameter_starts_as_the_table_says(geometry: str) -> None:
    wide = {"dim": 128, "ffn_dim": 160, "conv_dims": (64,) * 7}
    encoder = small_encoder(**{**GEOMETRIES[geometry], **wide})
    kinds: Counter[str] = Counter()
    for name, parameter in encoder.named_parameters():
        kinds[kind_of(name)] += 1
        if name == "positions.conv.weight_g":
            # Weight norm's magnitude: the convolution starts as drawn.
            drawn = encoder.positions.conv.weight_v
            norm = drawn.detach().norm(dim=(0, 1), keepdim=True)
            torch.testing.assert_close(parameter.detach(), norm)
        else:
            assert is_as_the_table_says(name, parameter.detach(), encoder.config), name
    assert kinds["transformer weight"] == kinds["transformer bias"] == 6 * encoder.config.layers
    assert kinds["convolution weight"] == 7


def test_the_stack_of_positions_starts_as_torch_has_it() -> None:
    encoder = small_encoder(**MUSIC2VEC, dim=128)
    convolutions = [layer.conv for layer in encoder.positions.layers]
    assert len(convolutions) == 5
    for convolution in convolutions:
        assert convolution.kernel_size == (19,)
        bound = 1.0 / math.sqrt(128 // 4 * 19)
        assert is_uniform(convolution.weight.detach(), -bound, bound)


@pytest.fixture
def empty_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@EVERY_GEOMETRY
def test_no_parameter_is_left_as_memory_was(geometry: str, empty_memory_is_nan: None) -> None:
    for name, parameter in small_encoder(**GEOMETRIES[geometry]).named_parameters():
        assert parameter.isfinite().all(), name


@EVERY_GEOMETRY
def test_a_seed_gives_its_weights_and_another_seed_others(geometry: str) -> None:
    settings = GEOMETRIES[geometry]
    first, again, other = (small_encoder(seed=seed, **settings) for seed in (5, 5, 6))
    drawn = 0
    for (name, weight), same, different in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(weight, same), name
        if weight.detach().std() > 0.0:  # not the zeros and ones of biases and norms
            assert not torch.equal(weight, different), name
            drawn += 1
    assert drawn > 20


# -- the log-mel front end ------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [400, 719, 720, 8_000, 24_000, 24_321])
def test_the_log_mel_front_end_gives_as_many_frames_as_the_convolutions(samples: int) -> None:
    waveform = noise(2, samples)
    conv, logmel = (
        small_encoder(frontend=frontend, logmel_bins=20) for frontend in ("waveform", "logmel")
    )
    with torch.inference_mode():
        ours, theirs = logmel.frontend(waveform), conv.frontend(waveform)
    assert ours.raw.shape == (2, logmel.grid.num_frames(samples), 20)
    assert ours.projected.shape == theirs.projected.shape


def test_the_log_mel_front_end_trains_its_projection_and_keeps_no_filters() -> None:
    encoder = small_encoder(frontend="logmel", logmel_bins=20).train()
    for name, gradient in gradients(encoder).items():
        assert gradient is not None and gradient.isfinite().all(), name
    front = {name for name in encoder.state_dict() if name.startswith("frontend.")}
    norm, projection = "frontend.layer_norm", "frontend.projection"
    assert front == {f"{part}.{end}" for part in (norm, projection) for end in ("weight", "bias")}
