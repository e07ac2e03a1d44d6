"""What travels through the data pipeline and on to the objective."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from etude.data.tokens import Codes


class Crop(NamedTuple):
    """One decoded crop."""

    position: int
    waveform: npt.NDArray[np.int16]
    codes: dict[str, Codes]
    skipped: int
    """Damaged clips in whose place this one is."""
    rows: npt.NDArray[np.int16] | None = None
    """(B, T): all crops of its batch, if they are read side by side; ``waveform`` is in it."""


class AudioBatch(NamedTuple):
    """One micro-batch of crops. Tensors alone pass through any engine."""

    waveform: Tensor
    """Mono audio (B, T): int16 as it is stored, half of what has to be copied to a device, where
    ``scaled`` makes float32 in [-1, 1) of it; or that float32."""

    sample_ids: Tensor
    """Position of each crop in the run's order, int64 (B,): the counter of everything random."""

    update: Tensor
    """The optimizer update this batch was planned for, int64 ()."""

    skipped: Tensor
    """Damaged clips that were replaced while this batch was made, int64 (). Over an epoch these and
    the clips that were heard as planned add up to all clips of the index."""

    codes: Mapping[str, Tensor] = MappingProxyType({})
    """Stored tokens by name, int64 (B, frames, codebooks), the first frame at the crop's start.
    There may be a frame or two more than the encoder makes."""

    num_samples: Tensor | None = None
    """True length of each row where shorter clips were padded with zeros, int64 (B,), kept on the
    host; ``None`` where every crop is full."""


def scaled(waveform: Tensor) -> Tensor:
    """Audio in [-1, 1), float32. Exact for 16 bit; float32 is returned as it is."""
    if waveform.dtype == torch.int16:
        return waveform.to(torch.float32).mul_(1 / 32768)
    return waveform
