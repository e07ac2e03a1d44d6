"""What a target is: it computes what to predict, and owns the head and loss of predicting it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from etude.pretrain.metrics import Metric


class FrameContext(NamedTuple):
    """What targets are computed from."""

    waveform: Tensor
    """The clean audio, before any mixture, float32 (B, T)."""

    num_frames: int
    """Frames that the encoder makes of it."""

    codes: Mapping[str, Tensor] = MappingProxyType({})
    """Stored tokens by the codec's name, int64 (B, >= num_frames, K), aligned to the frames."""


class TargetLoss(NamedTuple):
    """Result of comparing predictions with a target."""

    loss: Tensor
    """Loss per masked frame, scalar with a graph."""

    metrics: Mapping[str, Metric]
    """Detached metrics; names are quantities without the target's own name."""


class Target(nn.Module, ABC):
    """One stream of targets. Adding one: this class, a test, a line in ``targets/__init__``."""

    @abstractmethod
    def compute(self, context: FrameContext) -> Tensor:
        """Targets of every frame from the clean audio, (B, F, …); called without gradients."""

    @abstractmethod
    def loss(self, hidden_BMD: Tensor, target_BM: Tensor, copied_BM: Tensor) -> TargetLoss:
        """Compares predictions on masked frames with the target.

        :param hidden_BMD: the encoder's last output at the masked frames.
        :param target_BM: the target there, (B, M, …).
        :param copied_BM: the target at the nearest visible frame of each: the baseline of copying.
        """

    def after_step(self, update: int) -> None:  # noqa: B027 - most targets do not move
        """Called once after each optimizer update."""
