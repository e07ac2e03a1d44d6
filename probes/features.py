"""Frozen features of the clips, averaged over what each example asks about.

    clips (B, T) -> model -> layers x (B, F, D) -> mean over a clip's or a note's frames -> (D,)

Each clip is encoded once, however many tasks and notes need it; frame features are pooled on the
spot and never kept, so that memory grows with examples, not with frames.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from etude.models.frames import FrameGrid
from etude.probes.task_types import AudioSource, Clip, FeatureRow, Span

BATCH_CLIPS = 4

PooledFeatures = npt.NDArray[np.float32]
"""(layers, rows, D)."""


class FrozenModel(Protocol):
    """Anything that turns a waveform into frames, layer by layer."""

    @property
    def name(self) -> str:
        """What the tables call it."""
        ...

    @property
    def identity(self) -> str:
        """Changes whenever its features may: a part of the feature cache's keys."""
        ...

    @property
    def grid(self) -> FrameGrid:
        """Where its frames lie in time, and the sample rate it hears."""
        ...

    @property
    def with_deviation(self) -> bool:
        """Whether deviations over time are features beside the means."""
        ...

    def layers(self, waveform: Tensor) -> list[Tensor]:
        """Features (B, F, D), float32, of a waveform (B, T) in [-1, 1], first layer first."""
        ...


def span_frames(grid: FrameGrid, num_frames: int, span: Span | None) -> tuple[int, int]:
    """First frame and end of the frames whose centres lie in ``span`` (seconds).

    A span between two centres, or beyond the last one, gets the one frame nearest to its middle.
    """
    if span is None:
        return 0, num_frames

    def first_at(seconds: float) -> int:
        frame = math.ceil((seconds * grid.sample_rate - grid.centre_samples) / grid.hop_samples)
        return min(max(frame, 0), num_frames)

    first, end = first_at(span[0]), first_at(span[1])
    if first < end:
        return first, end
    middle = (span[0] + span[1]) / 2 * grid.sample_rate - grid.centre_samples
    nearest = min(max(round(middle / grid.hop_samples), 0), num_frames - 1)
    return nearest, nearest + 1


def pool(
    layers: Sequence[Tensor],
    grid: FrameGrid,
    spans: Sequence[Span | None],
    *,
    with_deviation: bool = False,
) -> Tensor:
    """Means of each layer (F, D) over each span, (layers, spans, D).

    :param with_deviation: whether standard deviations follow them, (layers, spans, 2 D).
    """
    num_frames = layers[0].shape[0]
    ranges = [span_frames(grid, num_frames, span) for span in spans]
    # Not one product with a matrix of weights: it is so small that two threads quarrel over it
    # (40 ms a clip on a busy machine).
    means_LND = torch.stack(
        [torch.stack([layer_FD[a:b].mean(dim=0) for a, b in ranges]) for layer_FD in layers]
    )
    if not with_deviation:
        return means_LND
    deviations = [
        [layer_FD[a:b].std(dim=0, correction=0) for a, b in ranges] for layer_FD in layers
    ]
    deviations_LND = torch.stack([torch.stack(layer) for layer in deviations])
    return torch.cat([means_LND, deviations_LND], dim=-1)


@torch.inference_mode()
def extract(
    model: FrozenModel,
    wanted: Sequence[Sequence[FeatureRow]],
    sources: Mapping[str, AudioSource],
) -> list[PooledFeatures]:
    """Pooled features of several lists of rows; a clip that is in more than one is encoded once.

    :param sources: by name; those of all clips.
    :raises DataError: if a track cannot be read.
    """
    places: dict[Clip, list[tuple[int, int]]] = {}
    for number, rows in enumerate(wanted):
        for place, row in enumerate(rows):
            places.setdefault(row.clip, []).append((number, place))
    pooled: list[PooledFeatures | None] = [None] * len(wanted)

    batches = _batches(places)
    for batch in tqdm(batches, desc=f"encoding, {model.name}", disable=None, leave=False):
        rate = model.grid.sample_rate
        waveform_BT = np.stack([sources[clip.source].read(clip, rate) for clip in batch])
        layers = model.layers(torch.from_numpy(waveform_BT))
        for item, clip in enumerate(batch):
            spans = [wanted[number][place].span for number, place in places[clip]]
            heard = [layer[item] for layer in layers]
            means = pool(heard, model.grid, spans, with_deviation=model.with_deviation)
            pooled_LND = means.cpu().numpy()
            for column, (number, place) in enumerate(places[clip]):
                into = pooled[number]
                if into is None:
                    shape = (len(layers), len(wanted[number]), pooled_LND.shape[-1])
                    into = pooled[number] = np.full(shape, np.nan, dtype=np.float32)
                into[:, place] = pooled_LND[:, column]
    return [np.empty((0, 0, 0), dtype=np.float32) if each is None else each for each in pooled]


def _batches(clips: Iterable[Clip]) -> list[list[Clip]]:
    """In the order of tracks, equal lengths together."""
    batches: list[list[Clip]] = []
    for clip in sorted(clips, key=lambda clip: (clip.source, clip.seconds, clip)):
        last = batches[-1] if batches else []
        if last and len(last) < BATCH_CLIPS and last[0].seconds == clip.seconds:
            last.append(clip)
        else:
            batches.append([clip])
    return batches
