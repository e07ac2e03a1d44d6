"""The transformer over frames: positions, norm, layers. An encoder's second half, or a teacher."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from etude.models.blocks import (
    AttentionBiasCache,
    BatchLayout,
    RotaryEncoder,
    StandardLayerNorm,
)
from etude.models.config import EncoderConfig
from etude.models.conformer import ConformerLayer
from etude.models.positions import add_positions, build_positions, build_rotation
from etude.models.transformer import LayerOutput, TransformerLayer, build_attention


class EncoderOutput(NamedTuple):
    """What the transformer makes of the projected features."""

    embedded: Tensor
    """Input of the first layer, (B, F, D)."""

    layers: tuple[LayerOutput, ...]
    """Each layer's output and feed-forward output, (B, F, D)."""

    last: Tensor
    """Output of the last layer, after the final norm where there is one, (B, F, D)."""

    @property
    def hidden_states(self) -> tuple[Tensor, ...]:
        """``layers + 1`` tensors (B, F, D), as transformers' ``hidden_states``."""
        return (self.embedded, *(layer.hidden for layer in self.layers[:-1]), self.last)


class Context(nn.Module):
    """Transformer layers in the geometry of ``config``, without front end and mask embedding."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.positions = None
        rotation = None
        if config.positions == "rotary":
            rotation = build_rotation(config.dim // config.heads)
        else:
            self.positions = build_positions(
                config.dim,
                kernel=config.position_kernel,
                groups=config.position_groups,
                depth=config.position_depth,
                impl=config.impl,
            )
        # Before the layers in a post-norm model, after them in a pre-norm one.
        self.norm = StandardLayerNorm(config.dim, bias=True)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(_build_layer(config, rotation) for _ in range(config.layers))

    def transform(
        self,
        hidden: Tensor,
        *,
        num_frames: Sequence[int] | None = None,
        kept_BV: Tensor | None = None,
        keep_layers: Tensor | None = None,
    ) -> EncoderOutput:
        """Runs positions and layers.

        :param hidden: projected features, masked or not, (B, F, D).
        :param num_frames: true length of each row in a padded batch; ``None`` where none is padded.
        :param kept_BV: frames that the layers see, int64 (B, V): the others only lend their place
            to the positional convolution, and the output has V frames. Not in a padded batch.
        :param keep_layers: layer drop's decision, bool (layers,); a dropped layer passes its input
            on, but still runs, so that every parameter has a gradient on every rank.
        """
        layout = _layout(hidden, num_frames)
        if self.positions is not None:
            exact = self.config.padding == "exact"
            hidden = add_positions(self.positions, hidden, layout, exact=exact)
        if kept_BV is not None:
            if layout.padded or self.positions is None:
                what = "for a padded batch" if layout.padded else "with rotary positions"
                raise ValueError(f"kept_BV cannot be given {what}.")
            hidden = hidden.gather(1, kept_BV[..., None].expand(-1, -1, hidden.shape[2]))
            layout = _layout(hidden, None)
        pre_norm = self.config.norm == "pre"
        hidden = self.dropout(hidden if pre_norm else self.norm(hidden))

        embedded = hidden
        bias_cache = AttentionBiasCache()
        outputs: list[LayerOutput] = []
        for index, layer in enumerate(self.layers):
            output = layer(hidden, layout, bias_cache)
            if keep_layers is not None:
                kept = torch.where(keep_layers[index], output.hidden, hidden)
                output = LayerOutput(kept, output.ffn)
            outputs.append(output)
            hidden = output.hidden
        last = self.norm(hidden) if pre_norm else hidden
        return EncoderOutput(embedded, tuple(outputs), last)


def _build_layer(
    config: EncoderConfig, rotation: RotaryEncoder | None
) -> TransformerLayer | ConformerLayer:
    attention = build_attention(
        config.dim,
        heads=config.heads,
        dropout=config.attention_dropout,
        rotation=rotation,
        impl=config.impl,
    )
    if config.layer == "conformer":
        return ConformerLayer(
            config.dim,
            attention,
            ffn_dim=config.ffn_dim,
            kernel=config.conformer_kernel,
            dropout=config.dropout,
            activation_dropout=config.activation_dropout,
        )
    return TransformerLayer(
        config.dim,
        attention,
        ffn_dim=config.ffn_dim,
        pre_norm=config.norm == "pre",
        dropout=config.dropout,
        activation_dropout=config.activation_dropout,
        impl=config.impl,
    )


def _layout(hidden: Tensor, num_frames: Sequence[int] | None) -> BatchLayout:
    lengths = None if num_frames is None else list(num_frames)
    return BatchLayout((hidden.shape[0], hidden.shape[1]), lengths, device=hidden.device)
