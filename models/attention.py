"""Self-attention on a CPU in bfloat16, a block of queries at a time: a third to a half of the time.

    for each head, for a block of queries:  scores = queries x keys -> softmax -> x values

torch's own attention spends most of its time on a CPU outside the products. Here a block's scores
stay in the cache between two products and a softmax. Scores are rounded to bfloat16 in between, as
in any attention that is written out under autocast; torch's keeps them in float32, and is asked
wherever this does not apply: other types and devices, padded batches, dropout on the weights.
"""

import math
from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from etude.models.blocks import SDPA, AttentionBiasCache, BatchLayout, IdentityBias, TorchSDPA

_BLOCK_SCORES = 1 << 20
"""Scores at a time: 2 MB. A quarter of it is a fifth slower where a core caches 1 MB."""


class BlockedAttention(SDPA):
    """fairseq2's interface; ``dropout`` is that of the attention weights, in training alone."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.torch = TorchSDPA(IdentityBias(), dropout_p=dropout)

    def forward(
        self,
        q: Tensor,
        q_layout: BatchLayout,
        k: Tensor,
        k_layout: BatchLayout,
        v: Tensor,
        bias_cache: AttentionBiasCache,
        *,
        needs_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """``q``, ``k``, ``v`` (B, F, H, E) to (B, F, H, E), and no weights."""
        dropped = self.training and self.torch.dropout_p > 0.0
        fits = q.device.type == "cpu" and q.dtype == k.dtype == v.dtype == torch.bfloat16
        if not fits or dropped or k_layout.padded or needs_weights or torch.compiler.is_compiling():
            return self.torch(q, q_layout, k, k_layout, v, bias_cache, needs_weights=needs_weights)
        return blocked_attention(q, k, v), None


def blocked_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(E)) value, per head.

    :param query, key, value: (B, F, H, E), of one type.
    """
    scaled = query / math.sqrt(query.shape[-1])
    attended: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        *(each.transpose(1, 2).contiguous() for each in (scaled, key, value))
    )
    return attended.transpose(1, 2)


class _Attention(torch.autograd.Function):
    """(B, H, F, E); keeps its inputs alone, and makes the weights again."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        attended = torch.empty_like(query)
        scores, weights = _buffers(query, 2)
        for head, rows in _blocks(query):
            _weigh(query[head][rows], key[head], scores, out=weights)
            size = rows.stop - rows.start
            torch.mm(weights[:size], value[head], out=attended[head][rows])
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = ctx.saved_tensors
        grad = grad.contiguous()
        by_query = torch.empty_like(query)
        # Blocks of queries are summed up: in float32, as one product of all would be.
        by_key, by_value = (torch.zeros(key.shape, dtype=torch.float32) for _ in range(2))
        scores, weights, changes = _buffers(query, 3)
        for head, rows in _blocks(query):
            size = rows.stop - rows.start
            query_RE, grad_RE = query[head][rows], grad[head][rows]
            _weigh(query_RE, key[head], scores, out=weights)
            weights_RF, by_weights_RF, by_scores_RF = weights[:size], scores[:size], changes[:size]
            by_value[head].add_(weights_RF.t() @ grad_RE)
            torch.mm(grad_RE, value[head].t(), out=by_weights_RF)
            torch.ops.aten._softmax_backward_data.out(
                by_weights_RF, weights_RF, -1, query.dtype, grad_input=by_scores_RF
            )
            torch.mm(by_scores_RF, key[head], out=by_query[head][rows])
            by_key[head].add_(by_scores_RF.t() @ query_RE)
        return by_query, by_key.to(key.dtype), by_value.to(value.dtype)


def _weigh(query_RE: Tensor, key_FE: Tensor, scores: Tensor, *, out: Tensor) -> None:
    """Attention weights of R queries into the first rows of ``out``, by way of ``scores``."""
    size = len(query_RE)
    torch.mm(query_RE, key_FE.t(), out=scores[:size])
    torch._softmax(scores[:size], -1, False, out=out[:size])


def _buffers(query: Tensor, count: int) -> list[Tensor]:
    """Room for a block's scores, used again for every block: memory that is new is slow."""
    frames = query.shape[2]
    return [query.new_empty(_rows(frames), frames) for _ in range(count)]


def _rows(frames: int) -> int:
    """The most queries of a block."""
    return min(frames, max(1, _BLOCK_SCORES // frames))


def _blocks(query: Tensor) -> Iterator[tuple[tuple[int, int], slice]]:
    """Row and head, and the queries of each block."""
    batch, heads, frames = query.shape[:3]
    count = math.ceil(frames / _rows(frames))
    edges = [frames * block // count for block in range(count + 1)]
    for row, head in product(range(batch), range(heads)):
        for start, end in pairwise(edges):
            yield (row, head), slice(start, end)
