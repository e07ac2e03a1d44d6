"""Span masks over frames, with the same number of masked frames in every row.

The published code (fairseq ``compute_mask_indices``, static spans) draws ``int(prob * F / span)``
distinct starts per row, lets spans overlap, and then unmasks random frames until every row has as
many as the batch's smallest. Here the count is fixed beforehand, at the mean that those starts give
(see :func:`masked_count`), so that shapes are static and nothing waits for the device.
"""

from collections.abc import Sequence
from functools import cache
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
    """Indices of the other frames in ascending order, int64 (B, V)."""

    nearest_visible_BM: Tensor
    """For each masked frame the index of the nearest visible one (the earlier at a tie), (B, M)."""

    num_frames: tuple[int, ...] | None = None
    """In a padded batch: the true frames of each row."""

    masked_counts: tuple[int, ...] | None = None
    """In a padded batch: how many of a row's ``index_BM`` count, the others being fill."""

    visible_counts: tuple[int, ...] | None = None
    """In a padded batch: how many of a row's ``visible_BV`` count."""


@cache  # of a long crop it takes seconds, and every step asks
def masked_count(num_frames: int, *, prob: float, span: int, fraction: float | None = None) -> int:
    """Returns the number of frames to mask per row.

    It is the expected size of the union of ``round(prob * F / span)`` spans of ``span`` frames
    whose starts are drawn without replacement: .8 and 5 give 58 % of 374 frames, .65 and 10 give
    49 % of 1499, as the published settings do.

    :param fraction: masked share of the frames, which then replaces that size.
    :raises ValueError: if there is no room for a span or nothing would stay visible.
    """
    if fraction is not None:
        return min(max(1, round(fraction * num_frames)), num_frames - 1)
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
    time = uniform(key, sample_ids, num_frames - span + 1)
    covered_at = _covered_at(time, span)
    # A stable sort cuts the last span at its end rather than in its middle.
    order = torch.argsort(covered_at, dim=1, stable=True)
    index = order[:, :count].sort(dim=1).values
    visible = order[:, count:].sort(dim=1).values
    masked = torch.zeros_like(covered_at, dtype=torch.bool).scatter_(1, index, True)
    return FrameMask(masked, index, visible, _nearest_visible(masked).gather(1, index))


def padded_span_mask(
    key: int,
    sample_ids: Tensor,
    *,
    num_frames: Sequence[int],
    padded_frames: int,
    counts: Sequence[int],
    span: int,
) -> FrameMask:
    """Draws for each row of a padded batch the mask that its clip alone would get.

    :param num_frames: true frames of each row.
    :param padded_frames: frames of every row with its padding.
    :param counts: frames to mask of each row.
    """
    device = sample_ids.device
    frame_F = torch.arange(padded_frames, device=device)
    length_B1 = torch.tensor(list(num_frames), device=device)[:, None]
    count_B1 = torch.tensor(list(counts), device=device)[:, None]

    time = uniform(key, sample_ids, padded_frames - span + 1)
    starts_B1 = length_B1 - span + 1
    time = time.masked_fill(frame_F[: time.shape[1]] >= starts_B1, _NEVER)
    order = torch.argsort(_covered_at(time, span), dim=1, stable=True)
    # Frames past a row's end come last in the order, so ranks alone tell the three kinds apart.
    rank = torch.empty_like(order).scatter_(1, order, frame_F.expand_as(order))
    masked = rank < count_B1
    inside = frame_F < length_B1
    visible_counts = tuple(length - count for length, count in zip(num_frames, counts, strict=True))
    index = _indices(masked, max(counts))
    return FrameMask(
        masked,
        index,
        _indices(inside & ~masked, max(visible_counts)),
        _nearest_visible(masked | ~inside).gather(1, index),
        tuple(num_frames),
        tuple(counts),
        visible_counts,
    )


_NEVER = 2.0
"""Later than any random time."""


def _covered_at(time: Tensor, span: int) -> Tensor:
    """A frame is covered at the earliest time of the starts up to span - 1 frames before it."""
    padded = F.pad(time, (span - 1, span - 1), value=_NEVER)
    return -F.max_pool1d(-padded[:, None], span, stride=1)[:, 0]


def _indices(chosen_BF: Tensor, count: int) -> Tensor:
    """Indices of the true frames of each row in ascending order, filled up to ``count``."""
    return torch.argsort(~chosen_BF, dim=1, stable=True)[:, :count]


def _nearest_visible(masked_BF: Tensor) -> Tensor:
    """For every frame the index of the nearest unmasked one, int64 (B, F)."""
    num_frames = masked_BF.shape[1]
    position = torch.arange(num_frames, device=masked_BF.device).expand(masked_BF.shape)
    before = torch.where(masked_BF, -num_frames, position).cummax(dim=1).values
    after = torch.where(masked_BF, 2 * num_frames, position).flip(1).cummin(dim=1).values.flip(1)
    nearest = torch.where(position - before <= after - position, before, after)
    return nearest.clamp(0, num_frames - 1)


def rows_at(values_BF: Tensor, index_BM: Tensor, counts: Sequence[int] | None) -> Tensor:
    """Picks frames ``index_BM`` of ``values_BF`` (B, F, …).

    :param counts: of a padded batch: how many of each row's indices count. All of them together
        are then one long row, (1, N, …).
    """
    if counts is None:
        rows = torch.arange(len(values_BF), device=values_BF.device)
        return values_BF[rows[:, None], index_BM]
    picked = [
        values[index[:count]]
        for values, index, count in zip(values_BF, index_BM, counts, strict=True)
    ]
    return torch.cat(picked)[None]


def true_rows(values_BF: Tensor, num_frames: Sequence[int] | None) -> Tensor:
    """``values_BF`` without padding; of a padded batch as one long row."""
    if num_frames is None:
        return values_BF
    rows = zip(values_BF, num_frames, strict=False)  # several views have the same clips
    return torch.cat([values[:count] for values, count in rows])[None]


def stack_views(masks: Sequence[FrameMask]) -> FrameMask:
    """The masks of several views as one, view by view."""
    first = masks[0]
    if len(masks) == 1:
        return first
    stacked = FrameMask(
        torch.cat([mask.bool_BF for mask in masks]),
        torch.cat([mask.index_BM for mask in masks]),
        torch.cat([mask.visible_BV for mask in masks]),
        torch.cat([mask.nearest_visible_BM for mask in masks]),
    )
    if first.num_frames is None:
        return stacked
    assert first.masked_counts is not None and first.visible_counts is not None
    views = len(masks)  # of which each hides as many frames of a row
    return stacked._replace(
        num_frames=views * first.num_frames,
        masked_counts=views * first.masked_counts,
        visible_counts=views * first.visible_counts,
    )
