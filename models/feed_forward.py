"""A transformer's feed-forward block that keeps less: what fairseq2's computes, to the last bit.

    inner (B, F, H) = hidden (B, F, D) by the first linear layer -> GELU -> second linear layer

Autograd keeps the inner frames before the activation and after it, which are half of all that a
layer keeps. The second is made again of the first, where it costs little beside the products.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from etude.models.blocks import StandardFeedForwardNetwork
from etude.models.precision import product_dtype


def feed_forward(ffn: StandardFeedForwardNetwork, hidden: Tensor) -> Tensor:
    """``ffn(hidden)`` for a block with GELU and biases; dropout inside is left to ``ffn`` itself.

    :param hidden: (B, F, D).
    """
    if ffn.inner_dropout is not None and ffn.training:
        dropped: Tensor = ffn(hidden)
        return dropped
    inner: Tensor = ffn.inner_proj(hidden)
    weight, bias = ffn.output_proj.weight, ffn.output_proj.bias
    assert bias is not None
    dtype = product_dtype(inner, weight)
    made: Tensor = _GeluLinear.apply(  # type: ignore[no-untyped-call]
        inner, weight.to(dtype), bias.to(dtype)
    )
    return made


class _GeluLinear(torch.autograd.Function):
    """``linear(gelu(inner))``, which keeps ``inner`` alone."""

    @staticmethod
    def forward(ctx: Any, inner: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inner, weight)
        return F.linear(F.gelu(inner), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner, weight = ctx.saved_tensors
        grad_rows, active = grad.flatten(0, -2), F.gelu(inner).flatten(0, -2)
        by_weight = grad_rows.t() @ active
        by_inner = torch.ops.aten.gelu_backward(grad @ weight, inner)
        return by_inner, by_weight, grad_rows.sum(dim=0)
