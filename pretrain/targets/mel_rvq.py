"""Residual labels of log-mel frames: acoustic tokens that cost a product instead of a codec.

    log-mel frame, standardised -> S stages of nearest centroids of what the stages before left over

MuQ (Zhu et al. 2025, arXiv 2501.01108) trains its residual quantiser of mel spectra by gradient,
between two linear layers. Here each stage is k-means of the residual, fitted by ``launch/cluster.py
CORPUS --features logmel --stages 8``, without layers around: the targets are of the same kind, not
the same. Any other features that it fits will do. Head and loss are those of codec tokens: one
projection, a cross-entropy per stage, summed.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from etude.models.config import EncoderConfig
from etude.pretrain.config_types import Count, FurtherTargetConfig, Positive
from etude.pretrain.errors import ConfigError

if TYPE_CHECKING:
    from etude.pretrain.quantizer import FeatureQuantizer
    from etude.pretrain.targets.base import Target


class Settings(FurtherTargetConfig):
    """Labels of a residual quantiser of log-mel frames (as MuQ's Mel-RVQ)."""

    kind: Literal["mel_rvq"]

    centroids: Path
    """File that ``launch/cluster.py --stages`` wrote."""

    stages: Count = 8
    """Stages predicted, from the coarsest on; the file may have more."""

    classes: Count = 1024
    """Classes of each stage, as in the file."""

    final_dim: Count = 64
    """Width in which logits are compared (MERT-v1 64)."""

    temperature: Positive = 0.1
    """Divides the cosine (fairseq's ``logit_temp``)."""

    def check(self, model: EncoderConfig) -> None:
        """:class:`ConfigError` where the file is missing or of another model's frames."""
        self._quantizer(model)

    def build(self, model: EncoderConfig, *, seed: int) -> "Target":
        """The target; nothing of it is random but the head's first weights."""
        from etude.pretrain.targets.codec import CodecTarget

        return CodecTarget(
            model.dim,
            codebooks=self.stages,
            codebook_size=self.classes,
            final_dim=self.final_dim,
            temperature=self.temperature,
            tokenizer=self._quantizer(model),
            silence="residual labels of spectra have no phase",
        )

    def head_outputs(self, dim: int) -> int:
        """A projection per stage, and its products with the classes' embeddings."""
        return self.stages * self.final_dim * (dim + self.classes) // dim

    def head_parameters(self, dim: int) -> int:
        """A linear layer, and an embedding of each class of each stage."""
        return self.stages * self.final_dim * (dim + 1 + self.classes)

    def _quantizer(self, model: EncoderConfig) -> "FeatureQuantizer":
        from etude.pretrain.quantizer import load_quantizer

        fit = (
            "`python launch/cluster.py CORPUS --config RUN.yaml --features logmel --stages "
            f"{self.stages} --clusters {self.classes} --out {self.centroids}`"
        )
        if not self.centroids.is_file():
            raise ConfigError(f"there is no file {self.centroids}. Fit it by {fit}.")
        quantizer = load_quantizer(self.centroids)
        stages, classes = quantizer.stages or 0, quantizer.num_classes
        if stages < self.stages or classes != self.classes:
            has = f"{stages} stages" if stages else "no stages"
            raise ConfigError(
                f"a mel_rvq target of {self.stages} stages with {self.classes} classes needs a "
                f"file with as many, but {self.centroids} has {has} of {classes} classes. Set "
                f"`stages` and `classes` to what it has, or fit another by {fit}."
            )
        if quantizer.settings.grid != model.grid:
            there, here = quantizer.settings.grid, model.grid
            raise ConfigError(
                f"{self.centroids} was fitted for other frames ({there.frame_rate:g} Hz, kernels "
                f"{list(there.kernels)}, of {there.sample_rate} Hz audio) than the model's "
                f"({here.frame_rate:g} Hz, kernels {list(here.kernels)}, of {here.sample_rate} Hz "
                f"audio). Fit it anew by {fit}."
            )
        return quantizer
