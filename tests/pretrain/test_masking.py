"""Span masks: how many frames, in what spans, and the same ones wherever the sample is."""

import pytest
import torch
from torch import Tensor

from etude.pretrain.masking import FrameMask, masked_count, padded_span_mask, span_mask
from etude.pretrain.random import derive

KEY = derive(0, "mask")


def draw(rows: int = 64, *, frames: int = 374, count: int = 217, span: int = 5) -> FrameMask:
    return span_mask(KEY, torch.arange(rows), num_frames=frames, count=count, span=span)


def runs(row: Tensor) -> list[int]:
    """Lengths of the runs of True."""
    text = "".join("x" if masked else " " for masked in row.tolist())
    return [len(run) for run in text.split()]


@pytest.mark.parametrize(
    ("frames", "prob", "span", "share"),
    [(374, 0.8, 5, 0.58), (1499, 0.65, 10, 0.49)],
)
def test_published_settings_mask_the_published_share(
    frames: int, prob: float, span: int, share: float
) -> None:
    assert round(masked_count(frames, prob=prob, span=span) / frames, 2) == share


@pytest.mark.parametrize(
    ("frames", "prob", "span"),
    [(374, 0.8, 5), (1499, 0.65, 10), (74, 0.8, 5), (40, 0.4, 7), (30, 0.9, 1), (99, 0.02, 6)],
)
def test_the_count_is_the_mean_of_drawing_starts_without_replacement(
    frames: int, prob: float, span: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    starts, spans = frames - span + 1, max(1, round(prob * frames / span))
    drawn = torch.rand(4000, starts, generator=generator).argsort(dim=1)[:, :spans]
    covered = torch.zeros(4000, frames, dtype=torch.bool)
    for offset in range(span):
        covered.scatter_(1, drawn + offset, True)
    mean = float(covered.sum(dim=1).float().mean())
    assert masked_count(frames, prob=prob, span=span) == pytest.approx(mean, abs=0.01 * frames)
    assert abs(masked_count(frames, prob=prob, span=span) - mean) < 0.5 + 0.01 * mean


def test_a_crop_with_no_room_for_the_spans_is_refused() -> None:
    with pytest.raises(ValueError, match="7 frames leave no room for 1 masked spans of 8 frames"):
        masked_count(7, prob=0.5, span=8)
    assert masked_count(8, prob=1.0, span=8) == 7  # something must stay visible


@pytest.mark.parametrize(("frames", "count", "span"), [(374, 217, 5), (50, 49, 3), (50, 1, 10)])
def test_every_row_masks_exactly_the_count(frames: int, count: int, span: int) -> None:
    mask = draw(frames=frames, count=count, span=span)
    assert mask.bool_BF.shape == (64, frames)
    assert (mask.bool_BF.sum(dim=1) == count).all()
    for row in range(64):
        masked = mask.bool_BF[row].nonzero().flatten()
        visible = (~mask.bool_BF[row]).nonzero().flatten()
        assert mask.index_BM[row].tolist() == masked.tolist()
        assert mask.visible_BV[row].tolist() == visible.tolist()


@pytest.mark.parametrize("span", [1, 2, 5, 10])
def test_masked_frames_are_whole_spans_but_for_one_that_is_cut(span: int) -> None:
    mask = draw(500, frames=374, count=120, span=span)
    lengths = [runs(row) for row in mask.bool_BF]
    assert all(sum(length < span for length in row) <= 1 for row in lengths)
    cut = sum(any(length < span for length in row) for row in lengths)
    assert (cut == 0) if span == 1 else 0 < cut < 500
    # Spans overlap and are drawn one by one: most runs are single spans, some are longer.
    if span == 5:
        flat = [length for row in lengths for length in row]
        assert flat.count(5) > 0.4 * len(flat) and max(flat) > 10


def test_every_frame_is_masked_about_equally_often_away_from_the_edges() -> None:
    often = draw(4000).bool_BF.float().mean(dim=0)
    inside = often[10:-10]
    assert float(inside.min()) > 0.53 and float(inside.max()) < 0.64
    assert float(often[0]) > 0.1 and float(often[-1]) > 0.1


def test_a_mask_depends_on_the_seed_and_the_sample_alone() -> None:
    whole = draw(8)
    ids = torch.tensor([6, 2, 7])
    part = span_mask(KEY, ids, num_frames=374, count=217, span=5)
    assert torch.equal(part.bool_BF, whole.bool_BF[ids])
    assert torch.equal(part.nearest_visible_BM, whole.nearest_visible_BM[ids])
    other = span_mask(derive(1, "mask"), ids, num_frames=374, count=217, span=5)
    assert not torch.equal(other.bool_BF, part.bool_BF)
    assert len({tuple(row.tolist()) for row in draw(64).index_BM}) == 64


@pytest.mark.parametrize(("frames", "count"), [(60, 36), (60, 59), (60, 2)])
def test_the_nearest_visible_frame_is_what_a_search_finds(frames: int, count: int) -> None:
    mask = draw(40, frames=frames, count=count, span=5)
    for row in range(40):
        visible = mask.visible_BV[row].tolist()
        for frame, nearest in zip(
            mask.index_BM[row].tolist(), mask.nearest_visible_BM[row].tolist(), strict=True
        ):
            assert nearest == min(visible, key=lambda other: (abs(other - frame), other))


# Rows of different lengths.

LENGTHS = [60, 41, 60, 9, 23]


def padded(
    counts: list[int], *, lengths: list[int] = LENGTHS, span: int = 5, frames: int = 60
) -> FrameMask:
    ids = torch.arange(3, 3 + len(lengths))
    return padded_span_mask(
        KEY, ids, num_frames=lengths, padded_frames=frames, counts=counts, span=span
    )


@pytest.mark.parametrize("counts", [[36, 20, 1, 5, 22], [59, 40, 59, 8, 1], [2, 40, 30, 1, 7]])
@pytest.mark.parametrize("span", [1, 5, 9])
@pytest.mark.parametrize("frames", [60, 74])
def test_a_padded_row_has_the_mask_that_its_clip_has_alone(
    counts: list[int], span: int, frames: int
) -> None:
    mask = padded(counts, span=span, frames=frames)
    assert mask.bool_BF.shape == (5, frames)
    assert mask.num_frames == tuple(LENGTHS) and mask.masked_counts == tuple(counts)
    visible_counts = [length - count for length, count in zip(LENGTHS, counts, strict=True)]
    assert mask.visible_counts == tuple(visible_counts)
    assert mask.index_BM.shape == (5, max(counts))
    assert mask.visible_BV.shape == (5, max(visible_counts))
    for row, (length, count) in enumerate(zip(LENGTHS, counts, strict=True)):
        alone = span_mask(KEY, torch.tensor([3 + row]), num_frames=length, count=count, span=span)
        assert torch.equal(mask.bool_BF[row, :length], alone.bool_BF[0])
        assert not mask.bool_BF[row, length:].any()  # what fills a row up is never masked
        assert torch.equal(mask.index_BM[row, :count], alone.index_BM[0])
        assert torch.equal(mask.visible_BV[row, : length - count], alone.visible_BV[0])
        nearest = mask.nearest_visible_BM[row, :count]
        assert torch.equal(nearest, alone.nearest_visible_BM[0])
        assert nearest.max() < length
        assert torch.isin(nearest, alone.visible_BV).all()


def test_a_batch_of_equal_lengths_is_masked_as_one_without_padding() -> None:
    lengths, counts = [60] * 5, [36] * 5
    mask = padded(counts, lengths=lengths)
    plain = span_mask(KEY, torch.arange(3, 8), num_frames=60, count=36, span=5)
    for one, other in zip(mask[:4], plain[:4], strict=True):
        assert torch.equal(one, other)
