"""Layers and positions that no released model has: as their papers say, and told where they end."""

from pathlib import Path

import pytest
import torch
from fairseq2.models.conformer.block import ConformerBlock
from pydantic import ValidationError
from torch import Tensor

from etude.models.blocks import AttentionBiasCache, BatchLayout
from etude.models.config import EncoderConfig
from etude.models.conformer import ConformerLayer
from etude.models.context import Context
from etude.models.encoder import Encoder
from etude.models.hf.config import check_expressible
from etude.models.weights import load_encoder, save_encoder

SMALL = {
    "sample_rate": 16_000,
    "conv_dims": (16,) * 7,
    "layers": 2,
    "dim": 32,
    "ffn_dim": 48,
    "heads": 4,
    "position_kernel": 8,
    "position_groups": 4,
    "layer_drop": 0.0,
}
CONFORMER = {"layer": "conformer", "norm": "pre", "conformer_kernel": 5}


def encoder(**settings: object) -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(**{**SMALL, **settings})).eval()


def attentive() -> Encoder:
    """Rotary, and not as even as fresh weights attend."""
    made = encoder(positions="rotary")
    with torch.no_grad():
        for layer in made.layers:
            layer.attention.q_proj.weight.mul_(20.0)
            layer.attention.k_proj.weight.mul_(20.0)
    return made


def frames(rows: int = 2, count: int = 23) -> Tensor:
    return torch.randn(rows, count, 32, generator=torch.Generator().manual_seed(1))


def test_a_conformer_layer_computes_what_fairseq2s_block_does() -> None:
    made = encoder(**CONFORMER)
    layer = made.layers[0]
    assert isinstance(layer, ConformerLayer)
    block = ConformerBlock(
        layer.first_norm,
        layer.first_ffn,
        layer.attention_norm,
        layer.attention,
        layer.conv_norm,
        layer.conv,
        layer.ffn_norm,
        layer.ffn,
        layer.norm,
    ).eval()
    hidden = frames()
    for lengths in (None, [23, 14]):
        layout = BatchLayout((2, 23), lengths)
        output = layer(hidden, layout, AttentionBiasCache())
        wanted = block(hidden, layout, AttentionBiasCache())
        assert torch.equal(output.hidden[1, :14], wanted[1, :14])
        assert torch.equal(output.hidden[0], wanted[0])
    ffn = 0.5 * layer.ffn(layer.ffn_norm(hidden))
    assert output.ffn.shape == ffn.shape


def test_a_padded_clip_has_the_same_conformer_features_as_alone() -> None:
    made = encoder(**CONFORMER, conv_norm="layer", padding="exact")
    waveform = torch.randn(2, 16_000, generator=torch.Generator().manual_seed(2))
    waveform[1, 9_000:] = 0.0
    count = made.grid.num_frames(9_000)
    padded = made(waveform, [16_000, 9_000]).last[1, :count]
    alone = made(waveform[1:, :9_000]).last[0]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)


def test_rotary_attention_turns_queries_and_keys_by_their_frame() -> None:
    made = attentive()
    attention, hidden = made.layers[0].attention, frames(1, 11)
    layout = BatchLayout((1, 11), None)
    found = attention(
        hidden,
        layout,
        keys=hidden,
        keys_layout=layout,
        values=hidden,
        bias_cache=AttentionBiasCache(),
    )[0].double()

    def heads(projection: torch.nn.Module) -> Tensor:  # (H, F, E)
        return projection(hidden)[0].double().view(11, 4, 8).transpose(0, 1)

    angles = torch.arange(11.0).double()[:, None] / 10_000 ** (torch.arange(0, 8, 2) / 8).double()

    def turned(values_HFE: Tensor) -> Tensor:
        pairs = torch.view_as_complex(values_HFE.unflatten(-1, (4, 2)).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)

    query, key = turned(heads(attention.q_proj)), turned(heads(attention.k_proj))
    weights = (query @ key.transpose(1, 2) / 8**0.5).softmax(dim=-1)
    mixed = (weights @ heads(attention.v_proj)).transpose(0, 1).reshape(11, 32)
    wanted = mixed @ attention.output_proj.weight.T.double() + attention.output_proj.bias.double()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_rotary_layers_hear_the_order_of_frames_and_nothing_of_where_the_first_is() -> None:
    made = attentive()
    assert made.positions is None
    assert not [name for name, _ in made.named_parameters() if name.startswith("positions")]
    hidden = frames(1, 12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    straight, shuffled = (Context.transform(made, each).last for each in (hidden, hidden[:, order]))
    assert not torch.allclose(straight[:, order], shuffled, atol=1e-3)
    # A batch that is padded in front of nothing: the same frames at the same places.
    longer = torch.cat([hidden, frames(1, 5)], dim=1)
    padded = Context.transform(made, longer, num_frames=[12]).last[:, :12]
    torch.testing.assert_close(padded, straight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [CONFORMER, {"positions": "rotary"}], ids=str)
def test_such_an_encoder_is_saved_and_read_but_not_exported(
    settings: dict[str, object], tmp_path: Path
) -> None:
    made = encoder(**settings)
    save_encoder(made, tmp_path)
    again = load_encoder(tmp_path).eval()
    waveform = torch.randn(1, 8_000)
    assert torch.equal(again(waveform).last, made(waveform).last)
    key = "layer" if "layer" in settings else "positions"
    with pytest.raises(ValueError, match=rf"model\.{key}: {settings[key]}; only encoders"):
        check_expressible(made.config, "hubert")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({**CONFORMER, "norm": "post"}, "layer: conformer needs norm: pre"),
        ({**CONFORMER, "conformer_kernel": 4}, "conformer_kernel"),
        ({"positions": "rotary", "dim": 36}, "odd number for each head"),
    ],
)
def test_impossible_geometries_are_told(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        EncoderConfig(**{**SMALL, **settings})
