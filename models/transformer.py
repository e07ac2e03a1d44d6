"""One transformer layer around fairseq2's attention and feed-forward blocks.

Ours rather than fairseq2's layer, because a data2vec teacher averages the feed-forward output
*before* the residual sum, which fairseq2's layer keeps to itself, and because layer drop must be
the same pure function of the update on every rank.
"""

from typing import Literal, NamedTuple

from torch import Tensor, nn

from etude.models.attention import BlockedAttention
from etude.models.blocks import (
    AttentionBiasCache,
    BatchLayout,
    IdentityBias,
    RotaryEncoder,
    StandardFeedForwardNetwork,
    StandardLayerNorm,
    StandardMultiheadAttention,
    TorchSDPA,
)
from etude.models.feed_forward import feed_forward
from etude.models.self_attention import self_attention


class LayerOutput(NamedTuple):
    """What one layer makes."""

    hidden: Tensor
    """Output of the layer, (B, F, D)."""

    ffn: Tensor
    """Output of its feed-forward block before the residual sum, (B, F, D)."""


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward with residuals, post-norm (BERT) or pre-norm.

    :param attention: from :func:`build_attention`.
    :param impl: ``fast`` keeps less of the feed-forward block for backward than ``plain``, and
        makes queries, keys and values in one product.
    """

    def __init__(
        self,
        dim: int,
        attention: StandardMultiheadAttention,
        *,
        ffn_dim: int,
        pre_norm: bool,
        dropout: float,
        activation_dropout: float,
        impl: Literal["fast", "plain"] = "fast",
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.impl = impl
        self.attention = attention
        self.attention_norm = StandardLayerNorm(dim, bias=True)
        self.ffn = StandardFeedForwardNetwork(
            dim, ffn_dim, bias=True, inner_activation=nn.GELU(), inner_dropout_p=activation_dropout
        )
        self.ffn_norm = StandardLayerNorm(dim, bias=True)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, hidden: Tensor, layout: BatchLayout, bias_cache: AttentionBiasCache
    ) -> LayerOutput:
        """``hidden`` (B, F, D) to the layer's output of the same shape."""
        if self.pre_norm:
            hidden = hidden + self._attend(self.attention_norm(hidden), layout, bias_cache)
            ffn = self.dropout(self._feed_forward(self.ffn_norm(hidden)))
            return LayerOutput(hidden + ffn, ffn)
        hidden = self.attention_norm(hidden + self._attend(hidden, layout, bias_cache))
        ffn = self.dropout(self._feed_forward(hidden))
        return LayerOutput(self.ffn_norm(hidden + ffn), ffn)

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        if self.impl == "fast":
            return feed_forward(self.ffn, hidden)
        made: Tensor = self.ffn(hidden)
        return made

    def _attend(
        self, hidden: Tensor, layout: BatchLayout, bias_cache: AttentionBiasCache
    ) -> Tensor:
        if self.impl == "fast":
            attended = self_attention(self.attention, hidden, layout, bias_cache)
        else:
            attended = self.attention(
                hidden, layout, hidden, layout, values=hidden, bias_cache=bias_cache
            )
        dropped: Tensor = self.dropout(attended)
        return dropped


def build_attention(
    dim: int,
    *,
    heads: int,
    dropout: float,
    rotation: RotaryEncoder | None,
    impl: Literal["fast", "plain"],
) -> StandardMultiheadAttention:
    """Self-attention over frames; ``rotation`` turns queries and keys where there is one."""
    fast = impl == "fast"
    sdpa = BlockedAttention(dropout) if fast else TorchSDPA(IdentityBias(), dropout_p=dropout)
    return StandardMultiheadAttention(dim, heads, sdpa, pos_encoder=rotation)


def initialise_layer(layer: nn.Module) -> None:
    """Every Linear N(0, 0.02) with bias 0, as BERT and fairseq's ``init_bert_params``.

    Norms and a conformer's convolutions keep torch's default.
    """
    for name, parameter in layer.named_parameters():
        if "norm" in name or name.startswith("conv."):
            continue
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=0.02)
