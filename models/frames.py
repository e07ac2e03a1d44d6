"""Samples and frames: the one place that knows how many frames a waveform gives and where they lie.

Everything that is per frame (conv features, codec tokens, CQT, k-means labels, masks) is trimmed
against :meth:`FrameGrid.num_frames`. At 24 kHz, 5 s give 374 frames from the conv stack, while the
codec gives 375 and a centred CQT 376: nobody else in the project may count frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FrameGrid:
    """The time grid of a stack of unpadded convolutions.

    :param sample_rate: samples per second of the waveform.
    :param kernels: kernel size of each convolution, in steps of its own input.
    :param strides: stride of each convolution.
    """

    sample_rate: int
    kernels: Sequence[int]
    strides: Sequence[int]

    def __post_init__(self) -> None:
        if len(self.kernels) != len(self.strides) or not self.kernels:
            raise ValueError(
                f"every convolution needs a kernel and a stride, but there are "
                f"{len(self.kernels)} kernels and {len(self.strides)} strides."
            )

    @property
    def hop_samples(self) -> int:
        """Samples between the starts of two frames: the product of the strides."""
        hop = 1
        for stride in self.strides:
            hop *= stride
        return hop

    @property
    def receptive_samples(self) -> int:
        """Samples that one frame sees."""
        field, hop = 1, 1
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            field += (kernel - 1) * hop
            hop *= stride
        return field

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_samples

    @property
    def centre_samples(self) -> int:
        """Offset of a frame's centre from its first sample."""
        return self.receptive_samples // 2

    def num_frames(self, num_samples: int) -> int:
        """Frames that ``num_samples`` samples give; 0 where they are fewer than one frame sees."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            if num_samples < kernel:
                return 0
            num_samples = (num_samples - kernel) // stride + 1
        return num_samples

    def frame_times(self, num_frames: int) -> list[float]:
        """Centre of each frame in seconds from the first sample."""
        return [
            (frame * self.hop_samples + self.centre_samples) / self.sample_rate
            for frame in range(num_frames)
        ]
