"""Settings of labels from a random projection; what they do is in random_projection_target.py."""

from typing import TYPE_CHECKING, Literal

from etude.models.config import EncoderConfig
from etude.pretrain.config_types import Count, FurtherTargetConfig

if TYPE_CHECKING:
    from etude.pretrain.targets.random_projection_target import RandomProjectionTarget


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

    def build(self, model: EncoderConfig, *, seed: int) -> "RandomProjectionTarget":
        """The target; projection and codes follow from ``seed``."""
        from etude.models.spectral import LogMel
        from etude.pretrain.targets.random_projection_target import RandomProjectionTarget

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
