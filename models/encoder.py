"""The encoder that is trained and shipped: a front end and a transformer over its frames.

    frontend: waveform (B, T) -> Features(raw, projected)
    context:  projected (B, F, D), mask -> embedded -> layers -> last

The two halves are public because the objectives need what lies between them: MERT's feature
penalty, the mask in feature space, a teacher on the student's unmasked features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from etude.models.config import EncoderConfig
from etude.models.context import Context, EncoderOutput
from etude.models.frontend import (
    Features,
    LogMelFrontend,
    WaveformFrontend,
    initialise_frontend,
)
from etude.models.spectral import LogMel
from etude.models.transformer import initialise_layer


class Encoder(Context):
    """wav2vec 2.0-style encoder in the geometry of any released MERT or music2vec model.

    A fresh encoder is initialised (see :func:`initialise`); loading weights overwrites it.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.grid = config.grid
        self.frontend = _build_frontend(config)
        self.projection_dropout = nn.Dropout(config.projection_dropout)
        self.mask_embedding = nn.Parameter(torch.empty(config.dim))
        initialise(self)

    def context(
        self,
        projected: Tensor,
        *,
        mask: Tensor | None = None,
        num_frames: Sequence[int] | None = None,
        kept_BV: Tensor | None = None,
        keep_layers: Tensor | None = None,
    ) -> EncoderOutput:
        """Runs the transformer; see :meth:`Context.transform` for what is not told here.

        :param projected: the front end's projected features, (B, F, D).
        :param mask: frames to replace by the learned mask embedding, bool (B, F).
        """
        hidden = self.projection_dropout(projected)
        if mask is not None:
            hidden = self.masked(hidden, mask)
        return self.transform(
            hidden, num_frames=num_frames, kept_BV=kept_BV, keep_layers=keep_layers
        )

    def masked(self, projected: Tensor, mask: Tensor) -> Tensor:
        """``projected`` (B, F, D) with the mask embedding where ``mask`` (B, F) is true."""
        return torch.where(mask[..., None], self.mask_embedding.to(projected.dtype), projected)

    def forward(self, waveform: Tensor, num_samples: Sequence[int] | None = None) -> EncoderOutput:
        """Features of unmasked audio (B, T): what a user of the trained model sees.

        :param num_samples: true length of each row in a padded batch; frames past
            ``grid.num_frames(length)`` of a row mean nothing.
        """
        if num_samples is None:
            features: Features = self.frontend(waveform)
            return self.context(features.projected)
        features = self.frontend(waveform, torch.tensor(list(num_samples)))
        num_frames = [self.grid.num_frames(length) for length in num_samples]
        return self.context(features.projected, num_frames=num_frames)


def _build_frontend(config: EncoderConfig) -> WaveformFrontend | LogMelFrontend:
    if config.frontend == "logmel":
        bins = config.logmel_bins
        transform = LogMel(config.grid, bins=bins, n_fft=config.logmel_window)
        return LogMelFrontend(transform, config.dim, bins=bins, normalize=config.normalize)
    return WaveformFrontend(
        list(zip(config.conv_dims, config.conv_kernels, config.conv_strides, strict=True)),
        config.dim,
        layer_norm=config.conv_norm == "layer",
        bias=config.conv_bias,
        grad_scale=config.feature_grad_scale,
        normalize=config.normalize,
        impl=config.impl,
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
        initialise_layer(layer)
    nn.init.uniform_(encoder.mask_embedding)
