"""What the trainer needs of an objective, and nothing more."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from etude.data.batch import AudioBatch
from etude.models.encoder import Encoder
from etude.pretrain.metrics import Metric


class StepOutput(NamedTuple):
    """What one forward pass returns."""

    loss: Tensor
    """The weighted loss per masked frame, scalar with a graph."""

    metrics: Mapping[str, Metric]
    """Detached sums on the device; names are ``TARGET/quantity``."""


class Objective(Protocol):
    """A module that turns a batch into a loss. It knows no trainer, rank, logger or config."""

    encoder: Encoder

    def __call__(self, batch: AudioBatch) -> StepOutput:
        """The loss of a micro-batch."""

    def inspect(self, batch: AudioBatch) -> Mapping[str, Tensor]:
        """Frame features (B, F, D) by name, of unmasked crops: what its health is judged by."""

    def after_step(self, update: int) -> None:
        """Called once after each optimizer update, for what moves without gradients."""
