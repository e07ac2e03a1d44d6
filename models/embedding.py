"""Frozen features of files of any length: windows through a model, equal lengths in one batch.

    windows of many files -> batches -> forward -> chosen layers -> kept frames -> the file's taker
    frames -> means over fixed stretches of time, where they are wanted

and how far windowed features are from those of a whole file.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from etude.models.frames import FrameGrid
from etude.models.windows import Samples, Window, Windowing

Features = npt.NDArray[np.float32]
"""(F, L, D): frames, layers, width."""

Forward = Callable[[Tensor], Sequence[Tensor]]
"""Every hidden state (B, F, D) of a waveform (B, T), as ``probes.frozen`` gives them."""

Layers = Sequence[int] | Literal["mean"]
"""Hidden states by number, 0 being the first layer's input; or the mean of all of them."""


class Taker(Protocol):
    """A file that waits for its features."""

    def take(self, first_frame: int, features_FLD: Features) -> None:
        """Frames from ``first_frame`` on; each frame comes once, in whatever order."""
        ...


def select_layers(states: Sequence[Tensor], layers: Layers) -> Tensor:
    """The chosen hidden states (B, F, D) as one tensor (B, F, L, D)."""
    if layers == "mean":
        return torch.stack(list(states)).mean(dim=0)[:, :, None]
    return torch.stack([states[layer] for layer in layers], dim=2)


@final
class Embedder:
    """Runs windows through a model.

    A group of windows of equal length runs when it is ``batch`` strong. So that none waits for
    ever, the group that has waited longest runs once twice as many windows wait.

    :param batch: windows of equal length per forward, whatever files they are from.
    """

    def __init__(self, forward: Forward, layers: Layers, *, batch: int) -> None:
        self._forward = forward
        self._layers = layers
        self._batch = batch
        self._waiting: dict[int, list[tuple[Window, Taker]]] = {}

    def push(self, window: Window, taker: Taker) -> None:
        """Takes a window in; runs what is due."""
        group = self._waiting.setdefault(len(window.samples), [])
        group.append((window, taker))
        if len(group) == self._batch:
            self._run(len(window.samples))
        elif sum(map(len, self._waiting.values())) == 2 * self._batch:
            self._run(next(iter(self._waiting)))

    def forget(self, taker: Taker) -> None:
        """Drops what waits for a file that came to nothing."""
        for length, group in list(self._waiting.items()):
            group[:] = [pair for pair in group if pair[1] is not taker]
            if not group:
                del self._waiting[length]

    def flush(self) -> None:
        """Runs all that waits."""
        while self._waiting:
            self._run(next(iter(self._waiting)))

    @torch.inference_mode()
    def _run(self, length: int) -> None:
        group = self._waiting.pop(length)
        waveform_BT = torch.from_numpy(np.stack([window.samples for window, _ in group]))
        features_BFLD = select_layers(self._forward(waveform_BT), self._layers)
        for (window, taker), features_FLD in zip(group, features_BFLD, strict=True):
            taker.take(window.kept_from, features_FLD[window.kept].float().cpu().numpy())


@final
class TimeMeans:
    """Means of the frames whose centres lie in the same stretch of time.

    :param seconds: length of a stretch; ``inf``: the whole file is one.
    """

    def __init__(self, grid: FrameGrid, *, seconds: float) -> None:
        self._grid = grid
        self._seconds = seconds
        self._times = np.zeros(0)
        self._stretches: dict[int, _Stretch] = {}

    def take(self, first_frame: int, features_FLD: Features) -> None:
        """Adds frames from ``first_frame`` on."""
        end = first_frame + len(features_FLD)
        if end > len(self._times):
            self._times = np.array(self._grid.frame_times(2 * end))
        times = self._times[first_frame:end]
        stretch_F = times // self._seconds
        firsts = np.flatnonzero(np.diff(stretch_F, prepend=-1.0))
        totals = np.add.reduceat(features_FLD.astype(np.float64), firsts, axis=0)
        counts = np.diff(firsts, append=len(times))
        seconds = np.add.reduceat(times, firsts)
        for first, total_LD, count, sum_ in zip(firsts, totals, counts, seconds, strict=True):
            stretch = self._stretches.setdefault(int(stretch_F[first]), _Stretch(total_LD.shape))
            stretch.add(total_LD, int(count), float(sum_))

    def means(self) -> Features:
        """(stretches, L, D), in the order of time."""
        ordered = [self._stretches[index] for index in sorted(self._stretches)]
        return np.stack([item.total_LD / item.frames for item in ordered]).astype(np.float32)

    def times(self) -> npt.NDArray[np.float64]:
        """Mean of the centres of each stretch's frames, in seconds."""
        ordered = [self._stretches[index] for index in sorted(self._stretches)]
        return np.array([item.seconds / item.frames for item in ordered])


@final
class _Stretch:
    """Sums over the frames of one stretch of time."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.total_LD = np.zeros(shape)
        self.frames = 0
        self.seconds = 0.0

    def add(self, total_LD: npt.NDArray[np.float64], frames: int, seconds: float) -> None:
        self.total_LD += total_LD
        self.frames += frames
        self.seconds += seconds


@final
class _Together:
    """All frames of one file, in memory."""

    def __init__(self) -> None:
        self.parts: dict[int, Features] = {}

    def take(self, first_frame: int, features_FLD: Features) -> None:
        self.parts[first_frame] = features_FLD

    def joined(self) -> Features:
        return np.concatenate([self.parts[frame] for frame in sorted(self.parts)])


def embed_waveform(
    forward: Forward, waveform: Samples, windowing: Windowing, layers: Layers, *, batch: int = 1
) -> Features:
    """Features (F, L, D) of a waveform (T,) in memory.

    :raises ValueError: if it is shorter than a frame.
    """
    embedder, together = Embedder(forward, layers, batch=batch), _Together()
    for window in windowing.cut([waveform]):
        embedder.push(window, together)
    embedder.flush()
    if not together.parts:
        raise ValueError(
            f"a waveform must hold one frame, {windowing.grid.receptive_samples} samples, but has "
            f"{len(waveform)}."
        )
    return together.joined()


@torch.inference_mode()
def window_deviation(forward: Forward, waveform: Samples, windowing: Windowing) -> list[float]:
    """Per hidden state, the relative L2 distance of windowed features from the whole waveform's.

    :param waveform: (T,), heard once in one piece and once in windows.
    """
    whole = [state[0].float().cpu().numpy() for state in forward(torch.from_numpy(waveform)[None])]
    windowed_FLD = embed_waveform(forward, waveform, windowing, range(len(whole)))
    return [
        float(np.linalg.norm(windowed_FLD[:, layer] - state_FD) / np.linalg.norm(state_FD))
        for layer, state_FD in enumerate(whole)
    ]
