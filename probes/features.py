"""Frozen features of the clips, averaged over what each example asks about.

    clips (B, T) -> model -> layers x (B, F, D) -> mean over a clip's or a note's frames -> (D,)

Each clip is encoded once, however many tasks and notes need it; frame features are pooled on the
spot and never kept, so that memory grows with examples, not with frames.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from etude.data.demo.render import Kind
from etude.models.frames import FrameGrid
from etude.probes.corpus import Corpus
from etude.probes.tasks import CLIP_SECONDS, Clip, ProbeTask, TaskName

BATCH_CLIPS = 4

PooledFeatures = npt.NDArray[np.float32]
"""(layers, examples, D)."""


class FrozenModel(Protocol):
    """Anything that turns a waveform into frames, layer by layer."""

    @property
    def name(self) -> str:
        """What the tables call it."""
        ...

    @property
    def grid(self) -> FrameGrid:
        """Where its frames lie in time, and the sample rate it hears."""
        ...

    def layers(self, waveform: Tensor) -> list[Tensor]:
        """Features (B, F, D), float32, of a waveform (B, T) in [-1, 1], first layer first."""
        ...


def span_frames(
    grid: FrameGrid, num_frames: int, span: tuple[float, float] | None
) -> tuple[int, int]:
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
    layers: Sequence[Tensor], grid: FrameGrid, spans: Sequence[tuple[float, float] | None]
) -> Tensor:
    """Means of each layer (F, D) over each span, (layers, spans, D)."""
    num_frames = layers[0].shape[0]
    ranges = [span_frames(grid, num_frames, span) for span in spans]
    # Not one product with a matrix of weights: it is so small that two threads quarrel over it
    # (40 ms a clip on a busy machine).
    return torch.stack(
        [torch.stack([layer_FD[a:b].mean(dim=0) for a, b in ranges]) for layer_FD in layers]
    )


@torch.inference_mode()
def extract(
    model: FrozenModel, tasks: Sequence[ProbeTask], corpora: Mapping[Kind, Corpus]
) -> dict[TaskName, PooledFeatures]:
    """Pooled features of every example of every task, examples in the task's order."""
    wanted: dict[Clip, list[tuple[TaskName, int]]] = {}
    for task in tasks:
        for row, example in enumerate(task.examples):
            wanted.setdefault(example.clip, []).append((task.name, row))
    examples = {task.name: task.examples for task in tasks}
    pooled: dict[TaskName, PooledFeatures] = {}

    clips = sorted(wanted)
    starts = range(0, len(clips), BATCH_CLIPS)
    for start in tqdm(starts, desc=f"encoding, {model.name}", disable=None, leave=False):
        batch = clips[start : start + BATCH_CLIPS]
        waveform_BT = np.stack(
            [
                corpora[clip.kind].clip(clip.track, start=clip.start, seconds=CLIP_SECONDS)
                for clip in batch
            ]
        )
        layers = model.layers(torch.from_numpy(waveform_BT))
        for item, clip in enumerate(batch):
            places = wanted[clip]
            spans = [examples[name][row].span for name, row in places]
            pooled_LND = pool([layer[item] for layer in layers], model.grid, spans).cpu().numpy()
            for column, (name, row) in enumerate(places):
                if name not in pooled:
                    shape = (len(layers), len(examples[name]), pooled_LND.shape[-1])
                    pooled[name] = np.full(shape, np.nan, dtype=np.float32)
                pooled[name][:, row] = pooled_LND[:, column]
    return pooled
