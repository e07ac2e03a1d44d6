"""A conformer layer in place of a transformer's: an ablation that no released model has.

    hidden -> half of feed-forward -> attention -> convolution -> half of feed-forward -> norm

Each but the norm adds to what it is given. Gulati et al. 2020 (arXiv 2005.08100), section 2, from
fairseq2's parts, with a layer norm inside the convolution module instead of the paper's batch norm:
statistics of a batch would differ between ranks and let padding in.
"""

from torch import Tensor, nn

from etude.models.blocks import (
    AttentionBiasCache,
    BatchLayout,
    ConformerConvolution,
    StandardFeedForwardNetwork,
    StandardLayerNorm,
    StandardMultiheadAttention,
)
from etude.models.transformer import LayerOutput


class ConformerLayer(nn.Module):
    """Feed-forward, self-attention, convolution, feed-forward, each with its norm before it.

    :param attention: the self-attention block.
    :param kernel: frames that the depthwise convolution sees.
    """

    def __init__(
        self,
        dim: int,
        attention: StandardMultiheadAttention,
        *,
        ffn_dim: int,
        kernel: int,
        dropout: float,
        activation_dropout: float,
    ) -> None:
        super().__init__()
        self.first_norm = StandardLayerNorm(dim, bias=True)
        self.first_ffn = _feed_forward(dim, ffn_dim, activation_dropout)
        self.attention_norm = StandardLayerNorm(dim, bias=True)
        self.attention = attention
        self.conv_norm = StandardLayerNorm(dim, bias=True)
        self.conv = ConformerConvolution(dim, kernel, norm_type="layer_norm")
        self.ffn_norm = StandardLayerNorm(dim, bias=True)
        self.ffn = _feed_forward(dim, ffn_dim, activation_dropout)
        self.norm = StandardLayerNorm(dim, bias=True)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, hidden: Tensor, layout: BatchLayout, bias_cache: AttentionBiasCache
    ) -> LayerOutput:
        """``hidden`` (B, F, D) to the layer's output of the same shape."""
        hidden = hidden + self.dropout(0.5 * self.first_ffn(self.first_norm(hidden)))
        heard = self.attention_norm(hidden)
        attended: Tensor = self.attention(
            heard, layout, keys=heard, keys_layout=layout, values=heard, bias_cache=bias_cache
        )
        hidden = hidden + self.dropout(attended)
        hidden = hidden + self.dropout(self.conv(self.conv_norm(hidden), layout))
        ffn = self.dropout(0.5 * self.ffn(self.ffn_norm(hidden)))
        return LayerOutput(self.norm(hidden + ffn), ffn)


def _feed_forward(dim: int, ffn_dim: int, dropout: float) -> StandardFeedForwardNetwork:
    return StandardFeedForwardNetwork(
        dim, ffn_dim, bias=True, inner_activation=nn.SiLU(), inner_dropout_p=dropout
    )
