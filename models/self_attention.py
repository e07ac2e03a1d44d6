"""Self-attention with one product for queries, keys and values: fairseq2's block, less to launch.

    hidden (B, F, D) -> (B, F, 3 D) -> queries, keys, values (B, F, H, E) -> attention -> (B, F, D)

Three products of (B F, D) by (D, D) keep a GPU less busy than one by (D, 3 D), and their gradients
by ``hidden`` would have to be added up.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from etude.models.blocks import AttentionBiasCache, BatchLayout, StandardMultiheadAttention


def self_attention(
    attention: StandardMultiheadAttention,
    hidden: Tensor,
    layout: BatchLayout,
    bias_cache: AttentionBiasCache,
) -> Tensor:
    """``attention`` of ``hidden`` (B, F, D) over itself; as many keys as queries, biases, no norms.

    Parameters stay where fairseq2 has them: their matrices are laid end to end at each call.
    """
    projections: list[Any] = [attention.q_proj, attention.k_proj, attention.v_proj]
    weight = torch.cat([projection.weight for projection in projections])
    bias = torch.cat([projection.bias for projection in projections])
    made = F.linear(hidden, weight, bias)
    query, key, value = made.view(*made.shape[:2], 3, -1, attention.head_dim).unbind(dim=2)
    if attention.pos_encoder is not None:
        query = attention.pos_encoder(query, layout)
        key = attention.pos_encoder(key, layout)
    attended, _ = attention.sdpa(query, layout, key, layout, value, bias_cache)
    projected: Tensor = attention.output_proj(attended.flatten(-2))
    return projected
