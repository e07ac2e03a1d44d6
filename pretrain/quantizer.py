"""Spectral features and their k-means quantiser, as one module and one file.

A quantiser file is safetensors: ``centroids`` (K, D), ``mean`` and ``scale`` (D,) in float32, and
as metadata the settings of the features in JSON. ``launch/cluster.py`` writes it, the k-means
target reads it.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from etude.models.frames import FrameGrid
from etude.models.spectral import Chroma, LogMel
from etude.pretrain.errors import ConfigError


class FeatureSettings(BaseModel):
    """How frames are described before they are clustered."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["logmel", "chroma"]
    """Log-mel bands (timbre and level) or chroma (harmony)."""

    bins: Annotated[int, Field(ge=2)]
    """Mel bands or chroma bins per octave: MERT-v0 has 229 and 264."""

    n_fft: Annotated[int, Field(ge=64)]
    """Window in samples."""

    sample_rate: Annotated[int, Field(ge=1)]
    """Rate of the audio the features are made of."""

    conv_kernels: tuple[int, ...]
    """The encoder's convolutions, which set where frames lie."""

    conv_strides: tuple[int, ...]
    """Their strides."""

    @property
    def grid(self) -> FrameGrid:
        """The frame grid the labels are made for."""
        return FrameGrid(self.sample_rate, self.conv_kernels, self.conv_strides)


def build_features(settings: FeatureSettings) -> LogMel | Chroma:
    """Returns the module that computes the features, (B, T) -> (B, F, bins)."""
    kind = LogMel if settings.kind == "logmel" else Chroma
    return kind(settings.grid, bins=settings.bins, n_fft=settings.n_fft)


class FeatureQuantizer(nn.Module):
    """Nearest-centroid labels of standardised features, (B, T) -> int64 (B, F)."""

    centroids: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(
        self, settings: FeatureSettings, *, centroids: Tensor, mean: Tensor, scale: Tensor
    ) -> None:
        super().__init__()
        self.settings = settings
        self.features = build_features(settings)
        # Not in checkpoints: the quantiser's file is an input of the run, named in its config.
        self.register_buffer("centroids", centroids, persistent=False)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    @property
    def num_classes(self) -> int:
        """Number of clusters."""
        return self.centroids.shape[0]

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Label of every frame; float32 throughout, so that bf16 training has the same labels."""
        with torch.autocast(waveform.device.type, enabled=False):
            return self.assign(self.features(waveform))

    def assign(self, features: Tensor) -> Tensor:
        """``features`` (…, D), not yet standardised, to labels (…)."""
        standard = (features - self.mean) / self.scale
        return nearest_centroid(standard.flatten(0, -2), self.centroids).view(features.shape[:-1])


def nearest_centroid(points: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest of ``centroids`` (K, D) for each of ``points`` (N, D)."""
    # |x - c|^2 without |x|^2, which is the same for every centroid.
    return (centroids.square().sum(dim=1) - 2.0 * points @ centroids.T).argmin(dim=1)


def save_quantizer(quantizer: FeatureQuantizer, path: Path, *, report: dict[str, float]) -> None:
    """Writes the quantiser; ``report`` is kept in the metadata."""
    tensors = {
        "centroids": quantizer.centroids.contiguous(),
        "mean": quantizer.mean.contiguous(),
        "scale": quantizer.scale.contiguous(),
    }
    metadata = {
        "features": quantizer.settings.model_dump_json(),
        "report": json.dumps(report),
        "format": "etude-kmeans-1",
    }
    save_file(tensors, path, metadata)


def load_quantizer(path: Path) -> FeatureQuantizer:
    """Reads a quantiser file.

    :raises ConfigError: if there is no such file or it is not one.
    """
    if not path.is_file():
        raise ConfigError(
            f"there is no k-means file {path}. Fit one with `python launch/cluster.py CORPUS "
            f"--features logmel --clusters 100 --out {path}`."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            settings = FeatureSettings.model_validate_json(metadata.get("features", ""))
            tensors = {name: file.get_tensor(name) for name in ("centroids", "mean", "scale")}
    except (SafetensorError, ValidationError) as error:
        raise ConfigError(
            f"{path} is not a k-means file of launch/cluster.py ({error}). Fit it anew."
        ) from error
    return FeatureQuantizer(
        settings,
        centroids=tensors["centroids"],
        mean=tensors["mean"],
        scale=tensors["scale"],
    )
