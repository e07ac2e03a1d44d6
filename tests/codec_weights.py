"""Stand-in weights of EnCodec 24 kHz for tests, fitted once per session."""

from functools import cache
from pathlib import Path

import torch
from audio_files import tune
from torch import Tensor

from etude.pretrain.codec_standin import StandinReport, fit_standin, save_standin

FRAMES = 2_000


def clips(number: int, *, seconds: float = 4.0, first: int = 0) -> Tensor:
    """Music-like clips at 24 kHz, (number, T)."""
    return torch.stack(
        [torch.from_numpy(tune(seconds, seed=first + clip)) for clip in range(number)]
    )


@cache
def fitted() -> tuple[dict[str, Tensor], StandinReport]:
    """Stand-in weights and how their codebooks are used. Copy a tensor before changing it."""
    return fit_standin(iter(clips(7).split(1)), seed=0, frames=FRAMES, iterations=6)


def standin_weights(folder: Path) -> Path:
    """Writes them to a file in ``folder``, unless they are there, and returns it (93 MB)."""
    path = folder / "standin.th"
    if not path.exists():
        save_standin(fitted()[0], path)
    return path
