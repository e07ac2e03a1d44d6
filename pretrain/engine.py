"""What drives the optimizer, as the trainer sees it."""

from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from etude.data.batch import AudioBatch, scaled
from etude.pretrain.config import OptimConfig
from etude.pretrain.errors import CheckpointError
from etude.pretrain.objective import StepOutput

Write = Callable[[Path], None]
"""Writes something into a folder."""


class UpdateResult(NamedTuple):
    """What an optimizer update did."""

    grad_norm: Tensor
    """Norm of the gradient before clipping, scalar; who reads it waits for the device."""

    skipped: bool
    """Whether a non-finite gradient was thrown away; the same on every rank."""


class Engine(Protocol):
    """Forward, backward and update of one objective on all ranks."""

    def accumulate(self, batch: AudioBatch) -> StepOutput:
        """Forward and backward of one micro-batch; the gradient is averaged over an update."""

    def update(self, lr: float) -> UpdateResult:
        """Applies the accumulated gradient with this learning rate."""

    def evaluate(self, batch: AudioBatch) -> StepOutput:
        """Forward alone, in evaluation mode and without gradients, in training's precision."""

    def snapshot(self) -> Write:
        """Copies what continuing exactly needs into the host's memory; every rank calls it.

        :returns: what writes this rank's part of the copy into an existing folder, in any thread,
            while training goes on.
        """

    def load(self, folder: Path) -> None:
        """Reads what a :meth:`snapshot` wrote."""


def read_tensors(path: Path, device: Any) -> Any:
    """What torch saved, tensors and plain values alone; nothing in the file is executed.

    :raises CheckpointError: if there is anything else in it.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # noqa: BLE001 - a file that is something else can raise anything
        # The first line: what follows is torch's advice to load it unsafely.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path} is not what a run of ours saves ({reason}). Nothing in it was executed. Move "
            "its checkpoint away to continue from the one before."
        ) from error


def build_optimizer(
    module: nn.Module, config: OptimConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over all trained parameters, decay included, as fairseq's ``adam`` does."""
    return torch.optim.AdamW(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def skip_where_not_finite(optimizer: torch.optim.AdamW, norm: Tensor) -> Tensor:
    """Lets the next ``step`` change nothing if ``norm`` is not finite, which the device decides.

    So all of an update is on its way before the host waits to hear of it. As torch's gradient
    scaler does it, which the fused AdamW knows.

    :returns: 1 if the step will be skipped, else 0, scalar.
    """
    skipped = norm.isfinite().logical_not().float()
    optimizer.found_inf = skipped  # type: ignore[attr-defined]
    return skipped


def set_training(module: nn.Module) -> None:
    """``module.train()``, which walks through all modules, where that is not known to be done."""
    if not module.training:
        module.train()


def gradient_norm(module: nn.Module) -> Tensor:
    """Norm of all gradients of ``module``, scalar."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def host_copy(state: Any) -> Any:
    """The same nested containers with copies of all tensors in the host's memory.

    Of an enum's members, their values: Python before 3.11.4 pickles a member as a call of
    ``getattr``, which nothing may load that executes nothing.
    """

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.detach().to("cpu", copy=True)
        return leaf.value if isinstance(leaf, Enum) else leaf

    return _pytree.tree_map(copy, state)


def move(batch: AudioBatch, device: torch.device) -> AudioBatch:
    """The batch on ``device``; ``update`` and ``skipped`` are read by the host and stay there."""
    return batch._replace(
        waveform=scaled(batch.waveform.to(device, non_blocking=True)),
        sample_ids=batch.sample_ids.to(device, non_blocking=True),
        codes={name: codes.to(device, non_blocking=True) for name, codes in batch.codes.items()},
    )


def merge_settings(generated: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """``own`` laid over ``generated``, sections merged."""
    merged = dict(generated)
    for key, value in own.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = merge_settings(old, value)
        else:
            merged[key] = value
    return merged
