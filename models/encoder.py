"""The encoder that is trained and shipped: a front end and a transformer over its frames.

    frontend: waveform (B, T) -> Features(raw, projected)
    context:  projected (B, F, D), mask -> embedded -> layers -> last

The two halves are public because the objectives need what lies between them: MERT's feature
penalty, the mask in feature space, a teacher on the student's unmasked features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from etude.models.blocks import AttentionBiasCache, BatchLayout, StandardLayerNorm
from etude.models.config import EncoderConfig
from etude.models.frontend import (
    Features,
    LogMelFrontend,
    WaveformFrontend,
    initialise_frontend,
)
from etude.models.positions import build_positions
from etude.models.spectral import LogMel
from etude.models.transformer import LayerOutput, TransformerLayer, initialise_layer


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


class Encoder(nn.Module):
    """wav2vec 2.0-style encoder in the geometry of any released MERT or music2vec model.

    A fresh encoder is initialised (see :func:`initialise`); loading weights overwrites it.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = config.grid
        self.frontend = _build_frontend(config)
        self.projection_dropout = nn.Dropout(config.projection_dropout)
        self.mask_embedding = nn.Parameter(torch.empty(config.dim))
        self.positions = build_positions(
            config.dim,
            kernel=config.position_kernel,
            groups=config.position_groups,
            depth=config.position_depth,
        )
        # Before the layers in a post-norm model, after them in a pre-norm one.
        self.norm = StandardLayerNorm(config.dim, bias=True)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(
                config.dim,
                heads=config.heads,
                ffn_dim=config.ffn_dim,
                pre_norm=config.norm == "pre",
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                activation_dropout=config.activation_dropout,
            )
            for _ in range(config.layers)
        )
        initialise(self)

    def context(
        self,
        projected: Tensor,
        *,
        mask: Tensor | None = None,
        num_frames: Sequence[int] | None = None,
        keep_layers: Tensor | None = None,
    ) -> EncoderOutput:
        """Runs the transformer.

        :param projected: the front end's projected features, (B, F, D).
        :param mask: frames to replace by the learned mask embedding, bool (B, F).
        :param num_frames: true length of each row in a padded batch; ``None`` where none is padded.
        :param keep_layers: layer drop's decision, bool (layers,); a dropped layer passes its input
            on, but still runs, so that every parameter has a gradient on every rank.
        """
        hidden = self.projection_dropout(projected)
        if mask is not None:
            hidden = torch.where(mask[..., None], self.mask_embedding.to(hidden.dtype), hidden)
        layout = BatchLayout(
            (hidden.shape[0], hidden.shape[1]),
            None if num_frames is None else list(num_frames),
            device=hidden.device,
        )
        hidden = self.positions(hidden, layout)
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

    def forward(self, waveform: Tensor) -> EncoderOutput:
        """Features of unmasked audio (B, T): what a user of the trained model sees."""
        features: Features = self.frontend(waveform)
        return self.context(features.projected)


def _build_frontend(config: EncoderConfig) -> WaveformFrontend | LogMelFrontend:
    if config.frontend == "logmel":
        bins = config.logmel_bins
        transform = LogMel(config.grid, bins=bins, n_fft=config.logmel_window)
        return LogMelFrontend(transform, config.dim, bins=bins)
    return WaveformFrontend(
        list(zip(config.conv_dims, config.conv_kernels, config.conv_strides, strict=True)),
        config.dim,
        layer_norm=config.conv_norm == "layer",
        bias=config.conv_bias,
        grad_scale=config.feature_grad_scale,
    )


def initialise(encoder: Encoder) -> None:
    """Initialises every parameter as fairseq's MERT does.

    ============================  =======================================
    convolutions                  Kaiming normal
    projection                    torch default
    positional convolution        N(0, sqrt(4 / (kernel * dim))), bias 0
    attention, feed-forward       N(0, 0.02), bias 0
    norms                         weight 1, bias 0
    mask embedding                U[0, 1)
    ============================  =======================================

    Source: yizhilll/MERT ``mert_model.py`` (``init_bert_params``, ``mask_emb.uniform_``) and
    fairseq's ``make_conv_pos``.
    """
    initialise_frontend(encoder.frontend)
    for layer in encoder.layers:
        assert isinstance(layer, TransformerLayer)
        initialise_layer(layer)
    nn.init.uniform_(encoder.mask_embedding)
