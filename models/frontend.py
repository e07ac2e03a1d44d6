"""Waveform to frame features: fairseq2's wav2vec2 conv stack, a layer norm and a projection.

    waveform (B, T) -> conv stack -> raw (B, F, C) -> layer norm -> Linear -> projected (B, F, D)

Both halves of the result are public: MERT's feature penalty acts on ``raw``, a teacher reads
``projected`` before dropout. Layout: wav2vec 2.0 (Baevski et al. 2020, section 2).
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from etude.models.blocks import BatchLayout, StandardLayerNorm, Wav2Vec2FeatureExtractor
from etude.models.spectral import LogMel


class Features(NamedTuple):
    """What the front end makes of a waveform."""

    raw: Tensor
    """Conv features before any normalisation, (B, F, C)."""

    projected: Tensor
    """Normalised and projected to the transformer's width, (B, F, D); dropout not yet applied."""


class WaveformFrontend(nn.Module):
    """The wav2vec 2.0 feature extractor with its projection.

    :param layers: (channels, kernel, stride) of each convolution.
    :param dim: width of the projected features.
    :param layer_norm: layer norm after every convolution instead of one group norm after the first.
    :param bias: whether the convolutions learn a bias.
    :param grad_scale: factor on the gradient that reaches the convolutions, in training alone.
    """

    def __init__(
        self,
        layers: Sequence[tuple[int, int, int]],
        dim: int,
        *,
        layer_norm: bool = False,
        bias: bool = False,
        grad_scale: float = 1.0,
    ) -> None:
        super().__init__()
        channels = layers[-1][0]
        self.conv = Wav2Vec2FeatureExtractor(
            layers, bias, layer_norm=layer_norm, grad_scale=grad_scale
        )
        self.layer_norm = StandardLayerNorm(channels, bias=True)
        self.projection = nn.Linear(channels, dim)

    def forward(self, waveform: Tensor) -> Features:
        """``waveform`` (B, T), float in [-1, 1]; all rows are taken as full."""
        # A full-length layout says "no padding here"; lengths matter to the context network alone.
        layout = BatchLayout(waveform.shape, None, device=waveform.device)
        raw, _ = self.conv(waveform, layout)
        return Features(raw, self.projection(self.layer_norm(raw)))


class LogMelFrontend(nn.Module):
    """Log-mel bands in place of learned convolutions, on the same frame grid.

    :param transform: waveform (B, T) to log-mel (B, F, bins).
    """

    def __init__(self, transform: LogMel, dim: int, *, bins: int) -> None:
        super().__init__()
        self.transform = transform
        self.layer_norm = StandardLayerNorm(bins, bias=True)
        self.projection = nn.Linear(bins, dim)

    def forward(self, waveform: Tensor) -> Features:
        """``raw`` are the log-mel bands; no gradient reaches them."""
        raw = self.transform(waveform)
        return Features(raw, self.projection(self.layer_norm(raw)))


def initialise_frontend(frontend: WaveformFrontend | LogMelFrontend) -> None:
    """Kaiming-normal convolutions and torch's default projection, as fairseq's MERT."""
    for module in frontend.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    frontend.projection.reset_parameters()
