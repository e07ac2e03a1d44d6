"""What a target is: it computes what to predict, and owns the head and loss of predicting it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from etude.pretrain.metrics import Metric

if TYPE_CHECKING:
    # A target's settings are read with its file: before anything that a model is made of.
    from etude.models.encoder import Encoder


class FrameContext(NamedTuple):
    """What targets are computed from."""

    waveform: Tensor
    """The clean audio, before any mixture, float32 (B, T)."""

    num_frames: int
    """Frames that the encoder makes of it."""

    codes: Mapping[str, Tensor] = MappingProxyType({})
    """Stored tokens by the codec's name, int64 (B, >= num_frames, K), aligned to the frames."""

    projected: Tensor | None = None
    """The encoder's projected features before dropout and mask, detached, (B, F, D): of what the
    encoder heard, or for a target that ``hears_clean`` of the clean audio. For a target that
    ``sees_other_view``: of every view, masked as the next view is, (views * B, F, D)."""

    frame_counts: Sequence[int] | None = None
    """True frames of each row in a padded batch."""


class TargetLoss(NamedTuple):
    """Result of comparing predictions with a target."""

    loss: Tensor
    """Loss per masked frame, scalar with a graph."""

    metrics: Mapping[str, Metric]
    """Detached metrics; names are quantities without the target's own name."""


class Target(nn.Module, ABC):
    """One stream of targets. Adding one: ``targets/__init__.py`` says how."""

    moves = False
    """Whether it changes in training, so that its health is worth a look."""

    hears_clean = False
    """Whether ``projected`` must be of the clean audio: a second pass where there is a mixture."""

    sees_other_view = False
    """Whether each masked view is compared with a target computed from another one (BYOL)."""

    everywhere = False
    """Whether :meth:`loss` is given all frames rather than the masked ones."""

    classes: int | None = None
    """Number of classes, per codebook, of a target of labels."""

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

    def predict(self, hidden_BFD: Tensor) -> Tensor | None:
        """The best guess for frames, shaped as :meth:`compute` has them, for people to look at.

        ``None``: there is nothing to look at.
        """
        return None

    def sound(self, target_F: Tensor) -> tuple[Tensor, int] | None:
        """One crop's target, or a guess at it, made audible: waveform (T,) and its sample rate.

        ``None``: it cannot be.
        """
        return None

    def metrics(self, update: int) -> Mapping[str, Metric]:
        """What is known without a batch, such as a decay; named as in :class:`TargetLoss`."""
        return {}

    def after_step(self, update: int, encoder: "Encoder") -> None:  # noqa: B027 - most do not move
        """Called once after each optimizer update (from 0) that was applied."""
