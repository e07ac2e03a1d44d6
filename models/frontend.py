"""Waveform to frame features: wav2vec2's conv stack, a layer norm and a projection.

    waveform (B, T) -> [normalise] -> conv stack -> raw (B, F, C) -> layer norm -> Linear
    -> projected (B, F, D)

Both halves of the result are public: MERT's feature penalty acts on ``raw``, a teacher reads
``projected`` before dropout. Layout: wav2vec 2.0 (Baevski et al. 2020, section 2).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from etude.models.blocks import BatchLayout, StandardLayerNorm, Wav2Vec2FeatureExtractor
from etude.models.conv_stack import conv_features
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
    :param normalize: brings every waveform to mean 0 and variance 1 first.
    :param impl: ``fast`` computes the convolutions as matrix products, ``plain`` as fairseq2 does.
    """

    def __init__(
        self,
        layers: Sequence[tuple[int, int, int]],
        dim: int,
        *,
        layer_norm: bool = False,
        bias: bool = False,
        grad_scale: float = 1.0,
        normalize: bool = False,
        impl: Literal["fast", "plain"] = "fast",
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.impl = impl
        channels = layers[-1][0]
        self.conv = Wav2Vec2FeatureExtractor(
            layers, bias, layer_norm=layer_norm, grad_scale=grad_scale
        )
        self.layer_norm = StandardLayerNorm(channels, bias=True)
        self.projection = nn.Linear(channels, dim)

    def forward(self, waveform: Tensor, num_samples: Tensor | None = None) -> Features:
        """``waveform`` (B, T), float in [-1, 1].

        :param num_samples: true length of each row in a padded batch, int64 (B,). Frames that see
            padding come after the row's true frames, and are the caller's to ignore.
        """
        if self.normalize:
            waveform = normalize_waveform(waveform, num_samples)
        if self.impl == "fast":
            raw = conv_features(self.conv, waveform)
        else:
            # "No padding here": lengths matter to the context network alone.
            layout = BatchLayout(waveform.shape, None, device=waveform.device)
            raw, _ = self.conv(waveform, layout)
        return Features(raw, self.projection(self.layer_norm(raw)))


class LogMelFrontend(nn.Module):
    """Log-mel bands in place of learned convolutions, on the same frame grid.

    :param transform: waveform (B, T) to log-mel (B, F, bins).
    """

    def __init__(self, transform: LogMel, dim: int, *, bins: int, normalize: bool = False) -> None:
        super().__init__()
        self.normalize = normalize
        self.transform = transform
        self.layer_norm = StandardLayerNorm(bins, bias=True)
        self.projection = nn.Linear(bins, dim)

    def forward(self, waveform: Tensor, num_samples: Tensor | None = None) -> Features:
        """``raw`` are the log-mel bands; no gradient reaches them."""
        if self.normalize:
            waveform = normalize_waveform(waveform, num_samples)
        raw = self.transform(waveform)
        return Features(raw, self.projection(self.layer_norm(raw)))


def normalize_waveform(waveform: Tensor, num_samples: Tensor | None = None) -> Tensor:
    """Each row of (B, T) at mean 0 and variance 1 over its true length, and 0 after it.

    As transformers' ``Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm``, which users of an export
    run; fairseq adds 1e-5 to the variance instead of 1e-7, which only near-silence can tell.
    """
    waveform = waveform.float()
    if num_samples is None:
        variance, mean = torch.var_mean(waveform, dim=1, correction=0, keepdim=True)
        return (waveform - mean) / torch.sqrt(variance + 1e-7)
    length_B1 = num_samples.to(waveform.device)[:, None]
    inside = torch.arange(waveform.shape[1], device=waveform.device) < length_B1
    mean = torch.where(inside, waveform, 0.0).sum(dim=1, keepdim=True) / length_B1
    centred = torch.where(inside, waveform - mean, 0.0)
    variance = centred.square().sum(dim=1, keepdim=True) / length_B1
    return centred / torch.sqrt(variance + 1e-7)


def initialise_frontend(frontend: WaveformFrontend | LogMelFrontend) -> None:
    """Kaiming-normal convolutions and torch's default projection, as fairseq's MERT."""
    for module in frontend.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    frontend.projection.reset_parameters()
