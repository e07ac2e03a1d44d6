"""Small real parts of training that several packages' tests share."""

from pathlib import Path

import torch
from torch import Tensor

from etude.data.batch import AudioBatch
from etude.models.config import EncoderConfig
from etude.models.encoder import Encoder
from etude.models.frames import FrameGrid
from etude.pretrain.quantizer import FeatureQuantizer, FeatureSettings, build_features

ROOT = Path(__file__).parents[1]
GRID = FrameGrid(24_000, (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))

SMALL = {
    "conv_dims": (16,) * 7,
    "dim": 32,
    "ffn_dim": 48,
    "heads": 4,
    "layers": 2,
    "position_kernel": 16,
    "position_groups": 4,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "projection_dropout": 0.0,
    "layer_drop": 0.0,
}


def small_encoder(*, seed: int = 0, **settings: object) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(EncoderConfig.model_validate({**SMALL, **settings}))


def random_encoder(**settings: object) -> Encoder:
    """Every parameter random, norms and biases too: no swap goes unnoticed."""
    encoder = small_encoder(**settings).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return encoder


def noise(rows: int, samples: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(rows, samples, generator=generator)


def audio_batch(waveform: Tensor, *, first: int = 0, update: int = 0) -> AudioBatch:
    ids = torch.arange(first, first + len(waveform))
    return AudioBatch(waveform, ids, torch.tensor(update), torch.tensor(0))


def feature_settings(kind: str = "logmel", *, bins: int = 20, n_fft: int = 1024) -> FeatureSettings:
    return FeatureSettings(
        kind=kind,
        bins=bins,
        n_fft=n_fft,
        sample_rate=GRID.sample_rate,
        conv_kernels=tuple(GRID.kernels),
        conv_strides=tuple(GRID.strides),
    )


def small_quantizer(*, classes: int = 7, settings: FeatureSettings | None = None):
    """Centroids that are frames of noise, so that every class occurs."""
    settings = settings or feature_settings()
    frames = build_features(settings)(noise(4, 24_000, seed=5)).flatten(0, 1)
    mean, scale = frames.mean(dim=0), frames.std(dim=0)
    generator = torch.Generator().manual_seed(6)
    chosen = frames[torch.randperm(len(frames), generator=generator)[:classes]]
    return FeatureQuantizer(
        settings, centroids=(chosen - mean) / scale, mean=mean.clone(), scale=scale.clone()
    )
