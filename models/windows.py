"""A file of any length in windows, each frame of the file in exactly one of them.

    blocks of samples -> windows that overlap -> of each, the frames in its centre

A file of no more frames than a window is one window, whole. A longer one is cut every
``stride_frames``: windows begin on the file's own frames, so that frame f of the file is frame f of
a forward over the whole file, and nothing is padded. The last window ends with the file, and begins
earlier than its turn would be. Of an overlap the first half of the frames belongs to the window
before it and the second half to the window after, which gives every frame at least that much
context on both sides; the file's own ends stay as they are. No torch here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from etude.models.frames import FrameGrid

Samples = npt.NDArray[np.float32]


@final
@dataclass(frozen=True)
class Window:
    """A stretch of a file, and which of its frames are kept."""

    samples: Samples
    """(T,), float32."""

    first_frame: int
    """The window's first frame, counted in the file."""

    kept_from: int
    """The first frame that is kept, counted in the file."""

    kept_until: int
    """The end of those that are kept, counted in the file."""

    last: bool
    """Whether the file ends here: ``kept_until`` is then its number of frames."""

    @property
    def kept(self) -> slice:
        """The frames that are kept, counted in the window."""
        return slice(self.kept_from - self.first_frame, self.kept_until - self.first_frame)


@final
@dataclass(frozen=True)
class Windowing:
    """How files are cut.

    :param grid: the frames of the model.
    :param samples: samples of a window.
    :param overlap_frames: frames that a window has in common with the next.
    """

    grid: FrameGrid
    samples: int
    overlap_frames: int

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(
                f"a window must hold one frame, {self.grid.receptive_samples} samples, but has "
                f"{self.samples}."
            )
        if not 0 <= self.overlap_frames < self.frames:
            raise ValueError(
                f"windows of {self.frames} frames may overlap by 0 to {self.frames - 1} of them, "
                f"but overlap by {self.overlap_frames}."
            )

    @property
    def frames(self) -> int:
        """Frames of a window."""
        return self.grid.num_frames(self.samples)

    @property
    def stride_frames(self) -> int:
        """Frames from the start of a window to that of the next."""
        return self.frames - self.overlap_frames

    @property
    def most_samples(self) -> int:
        """What no window exceeds: the samples that give no frame more than a window has.

        The last window of a file, and a short file, take along what follows their last frame; it
        is less than a hop.
        """
        return self.grid.receptive_samples + self.frames * self.grid.hop_samples - 1

    def end_seconds(self, window: Window) -> float:
        """Where a window's samples end, from the start of the file."""
        end = window.first_frame * self.grid.hop_samples + len(window.samples)
        return end / self.grid.sample_rate

    def cut(self, blocks: Iterable[Samples]) -> Iterator[Window]:
        """Cuts a stream; none at all where it ends before its first frame does.

        Holds about two windows and a block at a time.

        :param blocks: the file's samples, (T,) each, of any length.
        """
        hop, longest = self.grid.hop_samples, self.most_samples
        trim = self.overlap_frames // 2
        start, kept_from = 0, 0  # of the next window, in frames
        parts: list[Samples] = []
        held, held_from = 0, 0  # samples in `parts`, and where they begin in the file
        for block in blocks:
            parts.append(block)
            held += len(block)
            # One sample more than a window can have: there is a frame after this window.
            while held_from + held - start * hop > longest:
                joined = np.concatenate(parts)
                at = start * hop - held_from
                kept_until = start + self.stride_frames + trim
                samples = joined[at : at + self.samples].copy()
                yield Window(samples, start, kept_from, kept_until, last=False)
                # The last window may begin a frame after this one.
                parts = [joined[at + hop :].copy()]
                held, held_from = len(parts[0]), (start + 1) * hop
                start, kept_from = start + self.stride_frames, kept_until
        num_frames = self.grid.num_frames(held_from + held)
        if num_frames > 0:
            start = max(0, num_frames - self.frames)
            samples = np.concatenate(parts)[start * hop - held_from :]
            yield Window(samples, start, kept_from, num_frames, last=True)
