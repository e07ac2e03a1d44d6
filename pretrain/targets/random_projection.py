"""Labels of a random projection quantizer: nothing is trained to make them, and no file is needed.

    log-mel (B, F, bins), each bin at mean 0 and deviation 1 over the crop
    -> a random matrix -> the nearest of random unit vectors

Chiu et al. 2022, "Self-supervised learning with random-projection quantizer for speech recognition"
(BEST-RQ), section 3.1; its 8,192 codes of width 16 are the defaults. There the mean and deviation
are those of the data set, and frames are stacked to the encoder's rate, which one longer window
stands for here.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.models.config import EncoderConfig
from etude.models.spectral import LogMel
from etude.pretrain.config_types import Count, FurtherTargetConfig
from etude.pretrain.targets.base import FrameContext, Target, TargetLoss
from etude.pretrain.targets.heads import classification_metrics

_MOST_SIMILARITIES = 1 << 26
"""Numbers that are compared at a time: 256 MB."""


class RandomProjectionTarget(Target):
    """Cross-entropy of the nearest random code's index on masked frames."""

    classes: int
    projection: Tensor
    codes: Tensor

    def __init__(
        self, features: LogMel, dim: int, *, bins: int, classes: int, code_dim: int, seed: int
    ) -> None:
        super().__init__()
        self.features = features
        self.classes = classes
        generator = torch.Generator().manual_seed(seed % (1 << 63))
        projection = torch.empty(bins, code_dim)
        nn.init.xavier_uniform_(projection, generator=generator)
        codes = torch.randn(classes, code_dim, generator=generator)
        # In no checkpoint: the seed makes them again.
        self.register_buffer("projection", projection, persistent=False)
        self.register_buffer("codes", F.normalize(codes, dim=1), persistent=False)
        self.head = nn.Linear(dim, classes)

    def compute(self, context: FrameContext) -> Tensor:
        """Label of every frame, int64 (B, F)."""
        bands = self.features(context.waveform)
        deviation, mean = torch.std_mean(bands, dim=1, correction=0, keepdim=True)
        with torch.autocast(bands.device.type, enabled=False):
            projected = (bands - mean) / (deviation + 1e-5) @ self.projection
            # The nearest of unit vectors to a unit vector is the one of the largest product.
            rows = projected.flatten(0, 1)
            parts = rows.split(max(1, _MOST_SIMILARITIES // self.classes))
            nearest = [(part @ self.codes.T).argmax(dim=1) for part in parts]
        return torch.cat(nearest).view(bands.shape[:2])

    def loss(self, hidden_BMD: Tensor, target_BM: Tensor, copied_BM: Tensor) -> TargetLoss:
        """Cross-entropy, accuracy, and what costs nothing: label counts, copying a neighbour."""
        logits_NV = self.head(hidden_BMD).flatten(0, 1).float()
        labels_N = target_BM.flatten()
        loss = F.cross_entropy(logits_NV, labels_N)
        accuracy = (logits_NV.detach().argmax(dim=1) == labels_N).float().mean()
        return TargetLoss(
            loss,
            classification_metrics(loss, accuracy, target_BM, copied_BM, classes=self.classes),
        )

    def predict(self, hidden_BFD: Tensor) -> Tensor:
        """The most likely label, int64 (B, F)."""
        logits_BFV: Tensor = self.head(hidden_BFD)
        return logits_BFV.argmax(dim=-1)


class Settings(FurtherTargetConfig):
    """Labels of a random projection (BEST-RQ)."""

    kind: Literal["random_projection"]

    classes: Count = 8192
    """Random codes."""

    code_dim: Count = 16
    """Their width."""

    bins: Count = 80
    """Mel bands."""

    n_fft: Count = 1024
    """Window of a frame, in samples."""

    def build(self, model: EncoderConfig, *, seed: int) -> RandomProjectionTarget:
        """The target; projection and codes follow from ``seed``."""
        features = LogMel(model.grid, bins=self.bins, n_fft=self.n_fft)
        return RandomProjectionTarget(
            features,
            model.dim,
            bins=self.bins,
            classes=self.classes,
            code_dim=self.code_dim,
            seed=seed,
        )

    def head_outputs(self, dim: int) -> int:
        """A logit per class."""
        return self.classes
