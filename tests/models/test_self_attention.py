"""One product for queries, keys and values computes what three do."""

import pytest
import torch
from torch import Tensor

from etude.models.blocks import AttentionBiasCache, BatchLayout, StandardMultiheadAttention
from etude.models.positions import build_rotation
from etude.models.self_attention import self_attention
from etude.models.transformer import build_attention

DIM, HEADS = 24, 4


def results(attention: StandardMultiheadAttention, fast: bool, autocast: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    attention.zero_grad()
    hidden = torch.randn(3, 17, DIM, generator=generator, requires_grad=True)
    weights = torch.randn(3, 17, DIM, generator=generator)
    layout = BatchLayout((3, 17), [17, 9, 12])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        if fast:
            output = self_attention(attention, hidden, layout, AttentionBiasCache())
        else:
            output = attention(
                hidden, layout, hidden, layout, values=hidden, bias_cache=AttentionBiasCache()
            )
    (output.float() * weights).sum().backward()
    found = {"output": output.detach(), "hidden": hidden.grad}
    found |= {name: parameter.grad for name, parameter in attention.named_parameters()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize("rotary", [False, True], ids=["plain", "rotary"])
@pytest.mark.parametrize(
    ("autocast", "limit"), [(False, 1e-6), (True, 1e-2)], ids=["float32", "bfloat16"]
)
def test_output_and_all_gradients_are_fairseq2s_with_padding_too(
    rotary: bool, autocast: bool, limit: float
) -> None:
    torch.manual_seed(0)
    rotation = build_rotation(DIM // HEADS) if rotary else None
    attention = build_attention(DIM, heads=HEADS, dropout=0.0, rotation=rotation, impl="plain")
    ours, theirs = (results(attention, fast, autocast) for fast in (True, False))
    assert ours.keys() == theirs.keys() and len(ours) == 10
    for name, wanted in theirs.items():
        # Without rotation attention does not hear the keys' bias: rounding is all there is.
        scale = theirs["q_proj.bias"] if name == "k_proj.bias" else wanted
        assert float((ours[name] - wanted).float().norm() / scale.float().norm()) < limit, name
