"""Span masks over frames, with the same number of masked frames in every row.

The published code (fairseq ``compute_mask_indices``, static spans) draws ``int(prob * F / span)``
distinct starts per row, lets spans overlap, and then unmasks random frames until every row has as
many as the batch's smallest. Here the count is fixed beforehand, at the mean that those starts give
(see :func:`masked_count`), so that shapes are static and nothing waits for the device.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from etude.pretrain.random import uniform


class FrameMask(NamedTuple):
    """Which frames are masked, in two forms."""

    bool_BF: Tensor
    """True where masked, (B, F)."""

    index_BM: Tensor
    """Indices of the masked frames in ascending order, int64 (B, M)."""

    visible_BV: Tensor
    """Indices of the other frames in ascending order, int64 (B, F - M)."""

    nearest_visible_BM: Tensor
    """For each masked frame the index of the nearest visible one (the earlier at a tie), (B, M)."""


def masked_count(num_frames: int, *, prob: float, span: int) -> int:
    """Returns the number of frames to mask per row.

    It is the expected size of the union of ``round(prob * F / span)`` spans of ``span`` frames
    whose starts are drawn without replacement: .8 and 5 give 58 % of 374 frames, .65 and 10 give
    49 % of 1499, as the published settings do.

    :raises ValueError: if there is no room for a span or nothing would stay visible.
    """
    starts = num_frames - span + 1
    spans = max(1, round(prob * num_frames / span))
    if starts < spans:
        raise ValueError(
            f"{num_frames} frames leave no room for {spans} masked spans of {span} frames"
        )
    expected = 0.0
    for frame in range(num_frames):
        # Starts that would cover this frame; none of them drawn = the frame stays visible.
        covering = min(frame, starts - 1) - max(0, frame - span + 1) + 1
        visible = 1.0
        for draw in range(spans):
            visible *= max(0, starts - covering - draw) / (starts - draw)
        expected += 1.0 - visible
    return min(max(1, round(expected)), num_frames - 1)


def span_mask(key: int, sample_ids: Tensor, *, num_frames: int, count: int, span: int) -> FrameMask:
    """Draws a mask of exactly ``count`` frames for each sample.

    Every possible start gets a random time; spans are laid down in that order until ``count``
    frames are covered, the last span cut short where it would exceed.

    :param key: from :func:`etude.pretrain.random.derive`.
    :param sample_ids: int64 (B,).
    """
    starts = num_frames - span + 1
    time = uniform(key, sample_ids, starts)
    # A frame is covered at the earliest time of the starts up to span - 1 frames before it.
    padded = F.pad(time, (span - 1, span - 1), value=2.0)
    covered_at = -F.max_pool1d(-padded[:, None], span, stride=1)[:, 0]
    # A stable sort cuts the last span at its end rather than in its middle.
    order = torch.argsort(covered_at, dim=1, stable=True)
    index = order[:, :count].sort(dim=1).values
    visible = order[:, count:].sort(dim=1).values
    masked = torch.zeros_like(covered_at, dtype=torch.bool).scatter_(1, index, True)
    return FrameMask(masked, index, visible, _nearest_visible(masked).gather(1, index))


def _nearest_visible(masked_BF: Tensor) -> Tensor:
    """For every frame the index of the nearest unmasked one, int64 (B, F)."""
    num_frames = masked_BF.shape[1]
    position = torch.arange(num_frames, device=masked_BF.device).expand(masked_BF.shape)
    before = torch.where(masked_BF, -num_frames, position).cummax(dim=1).values
    after = torch.where(masked_BF, 2 * num_frames, position).flip(1).cummin(dim=1).values.flip(1)
    nearest = torch.where(position - before <= after - position, before, after)
    return nearest.clamp(0, num_frames - 1)
