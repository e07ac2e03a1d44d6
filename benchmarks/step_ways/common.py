"""What all ways share: the problem, the same crops, masks and labels, and the optimizer's step."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from etude.models.frames import FrameGrid
from etude.pretrain.masking import FrameMask, masked_count, span_mask

CODEBOOKS, CLASSES = 8, 1024
RATES = {"mert": 24_000, "music2vec": 16_000}
GEOMETRY = {
    "95M": {"layers": 12, "dim": 768, "ffn_dim": 3072, "heads": 12},
    "330M": {"layers": 24, "dim": 1024, "ffn_dim": 4096, "heads": 16},
}
FINAL_DIM = {"95M": 64, "330M": 128}
KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
CQT = {"bins": 336, "bins_per_octave": 48, "fmin": 32.7}


@dataclass(frozen=True)
class Problem:
    """What every way has to do."""

    family: str
    size: str
    crops: int
    seconds: float
    precision: str
    device: str
    reference: Path | None = None
    """A source tree of fairseq, for R."""

    @property
    def sample_rate(self) -> int:
        return RATES[self.family]

    @property
    def grid(self) -> FrameGrid:
        return FrameGrid(self.sample_rate, KERNELS, STRIDES)

    def waveform(self) -> Tensor:
        """Noise through a slow envelope, float32 (B, T)."""
        generator = torch.Generator().manual_seed(0)
        samples = round(self.seconds * self.sample_rate)
        noise = 0.1 * torch.randn(self.crops, samples, generator=generator)
        return noise.to(self.device)

    @property
    def frames(self) -> int:
        return self.grid.num_frames(round(self.seconds * self.sample_rate))

    def mask(self) -> FrameMask:
        """MERT's: 58 % of the frames, in spans of 5."""
        return span_mask(
            1,
            torch.arange(self.crops, device=self.device),
            num_frames=self.frames,
            count=masked_count(self.frames, prob=0.8, span=5),
            span=5,
        )

    def codes(self) -> Tensor:
        """Labels, int64 (B, F, K)."""
        generator = torch.Generator().manual_seed(1)
        shape = (self.crops, self.frames, CODEBOOKS)
        return torch.randint(CLASSES, shape, generator=generator).to(self.device)

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")


@dataclass(frozen=True)
class Way:
    """One way to take a step."""

    what: str
    """A line for the table's legend."""

    step: Callable[[], float]
    """Takes a step and returns its loss."""


def stepper(
    parameters: Iterable[nn.Parameter],
    loss_of: Callable[[], Tensor],
    *,
    after: Callable[[], None] | None = None,
) -> Callable[[], float]:
    """Forward, backward and AdamW."""
    optimizer = adamw(parameters)

    def step() -> float:
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if after is not None:
            after()
        return float(loss.detach())

    return step


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """The optimizer of all ways."""
    return torch.optim.AdamW(parameters, lr=1e-5, betas=(0.9, 0.98), eps=1e-6, fused=True)
