"""The order of a run: the same for any number of ranks and workers, from any update on."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from etude.data.crop import crop_start
from etude.data.errors import InputError
from etude.data.plan import SUBSTITUTES, BatchShare, CropPlan
from etude.data.shards import MEMBER, Corpus, Split

RATE, HOP, CROP = 24_000, 320, 24_000
GLOBAL_BATCH = 16


def split_of(lengths: list[int]) -> Split:
    """A split of which only the lengths are real: a plan reads no audio."""
    members = np.zeros(len(lengths), MEMBER)
    members["num_samples"] = lengths
    corpus = Corpus(Path("corpora/tiny"), RATE, clip_seconds=6, fingerprint="", shards=())
    return Split(corpus, "train", members)


def plan_of(lengths: list[int], *, seed: int = 7, crop_samples: int = CROP) -> CropPlan:
    return CropPlan(split_of(lengths), crop_samples=crop_samples, hop_samples=HOP, seed=seed)


def clips(count: int, *, seed: int = 7) -> CropPlan:
    return plan_of([CROP + 1000 * clip for clip in range(count)], seed=seed)


def order(plan: CropPlan, epoch: int) -> list[int]:
    first = epoch * len(plan.clips)
    return [plan.crop(first + place).clip for place in range(len(plan.clips))]


def rank_positions(
    share: BatchShare, *, first_update: int, updates: int, workers: int
) -> list[list[int]]:
    """A rank's micro-batches as torch's DataLoader asks its workers for them: in turn."""
    streams = [
        share.positions(first_update=first_update, worker=worker, workers=workers)
        for worker in range(workers)
    ]
    return [next(streams[i % workers]) for i in range(updates * share.micro_batches)]


def global_positions(
    *, ranks: int, workers: int, micro_batch: int, first_update: int, updates: int
) -> list[int]:
    """What all ranks together hear, micro-batch by micro-batch."""
    parts = [
        rank_positions(
            BatchShare(GLOBAL_BATCH, micro_batch, rank, ranks),
            first_update=first_update,
            updates=updates,
            workers=workers,
        )
        for rank in range(ranks)
    ]
    return [position for at_once in zip(*parts, strict=True) for p in at_once for position in p]


def test_the_order_is_a_function_of_seed_and_corpus_alone() -> None:
    positions = [*range(100)]
    forwards, backwards = clips(30), clips(30)
    np.random.seed(0)
    crops = {position: forwards.crop(position) for position in positions}
    np.random.seed(1)
    assert {p: backwards.crop(p) for p in reversed(positions)} == crops
    assert [crops[p].position for p in positions] == positions
    other_seed, other_corpus = clips(30, seed=8), clips(31)
    assert [other_seed.crop(p).clip for p in positions] != [crops[p].clip for p in positions]
    assert [other_corpus.crop(p).clip for p in positions] != [crops[p].clip for p in positions]


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_each_clip_is_heard_once_per_epoch(count: int) -> None:
    plan = clips(count)
    for epoch in range(4):
        assert sorted(order(plan, epoch)) == list(range(count))


def test_every_epoch_has_an_order_of_its_own() -> None:
    plan = clips(30)
    orders = [order(plan, epoch) for epoch in [*range(20), 10_000, 10_001]]
    assert len({tuple(clips) for clips in orders}) == len(orders)
    assert list(range(30)) not in orders


@pytest.mark.parametrize("seed", [0, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 2])
def test_neighbouring_seeds_differ_in_order_and_starts_however_large_they_are(seed: int) -> None:
    one, other = clips(30, seed=seed), clips(30, seed=seed + 1)
    assert order(one, 0) != order(other, 0)
    assert order(one, 1) != order(other, 1)
    assert starts(seed) != starts(seed + 1)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_all_ranks_and_workers_together_hear_the_positions_in_order(
    ranks: int, workers: int, micro_batch: int
) -> None:
    heard = global_positions(
        ranks=ranks, workers=workers, micro_batch=micro_batch, first_update=0, updates=5
    )
    assert heard == list(range(5 * GLOBAL_BATCH))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_going_on_at_any_update_gives_the_rest_of_a_straight_run(
    ranks: int, workers: int, micro_batch: int
) -> None:
    plan = clips(21)  # epochs end within updates: 16 crops are no multiple of 21

    def heard(first: int, updates: int) -> list[tuple[int, int, int]]:
        positions = global_positions(
            ranks=ranks,
            workers=workers,
            micro_batch=micro_batch,
            first_update=first,
            updates=updates,
        )
        return [tuple(plan.crop(position)) for position in positions]

    straight = heard(0, 6)
    for update in range(6):
        assert heard(update, 6 - update) == straight[update * GLOBAL_BATCH :]


def test_a_micro_batch_belongs_to_one_update_and_each_rank_has_its_own_chunk() -> None:
    share = BatchShare(global_batch=8, micro_batch=2, rank=1, ranks=2)
    assert share.micro_batches == 2
    heard = list(islice(share.positions(first_update=10), 4))
    assert heard == [[82, 83], [86, 87], [90, 91], [94, 95]]


def starts(seed: int, *, num_samples: int = 2 * CROP, positions: range = range(600)) -> list[int]:
    return [
        crop_start(num_samples, CROP, hop_samples=HOP, seed=seed, position=position)
        for position in positions
    ]


@pytest.mark.parametrize("spare", [0, 1, HOP - 1, HOP, HOP + 1, 7 * HOP, 20 * HOP - 1])
def test_starts_are_all_the_multiples_of_the_hop_that_leave_room_for_the_crop(spare: int) -> None:
    assert sorted(set(starts(7, num_samples=CROP + spare))) == list(range(0, spare + 1, HOP))


def test_no_start_is_favoured() -> None:
    counts = np.bincount(np.array(starts(7, num_samples=CROP + 3 * HOP)) // HOP)
    assert counts.min() > 110 and counts.max() < 190  # 150 each; the deviation is 10.6


def test_a_start_depends_on_seed_and_position_and_not_on_what_was_drawn_before() -> None:
    straight = starts(7)
    assert starts(7, positions=range(599, -1, -1)) == straight[::-1]
    assert starts(8) != straight
    assert len(set(straight[:20])) > 10


def test_a_planned_start_is_that_of_its_position_whichever_clip_is_there() -> None:
    spare = [20 * HOP + clip for clip in range(9)]  # lengths differ, the choice of starts does not
    plan = plan_of([CROP + samples for samples in spare])
    for position in range(30):
        start = crop_start(CROP + 20 * HOP, CROP, hop_samples=HOP, seed=7, position=position)
        for attempt in range(SUBSTITUTES + 1):
            assert plan.crop(position, attempt).start == start


def test_a_clip_shorter_than_a_crop_is_left_out_and_counted() -> None:
    lengths = [CROP - 1, CROP, 2 * CROP, 100, CROP + 1]
    plan = plan_of(lengths)
    assert plan.clips.tolist() == [1, 2, 4] and plan.too_short == 2
    crops = [plan.crop(position, attempt) for position in range(30) for attempt in range(4)]
    assert {crop.clip for crop in crops} == {1, 2, 4}
    assert all(crop.start + CROP <= lengths[crop.clip] for crop in crops)
    assert clips(5).too_short == 0


@pytest.mark.parametrize(
    ("lengths", "longest"),
    [([12_000, 23_999, 36], "clip of 3 has 1.00 s"), ([18_000], "clip of 1 has 0.75 s")],
)
def test_a_split_without_a_clip_as_long_as_a_crop_is_refused_with_both_lengths(
    lengths: list[int], longest: str
) -> None:
    with pytest.raises(InputError) as error:
        plan_of(lengths)
    assert error.value.exit_status == 2
    message = str(error.value)
    assert "data.crop_seconds is 1," in message and longest in message
    assert "`train`" in message and "corpora/tiny" in message


@pytest.mark.parametrize("count", [2, 5, 8, 9, 10, 17, 18, 30])
def test_substitutes_of_a_damaged_clip_are_other_clips_and_always_the_same(count: int) -> None:
    plan, again = clips(count), clips(count)
    for position in [0, 1, count - 1, count, 5 * count + 3]:
        tried = [plan.crop(position, attempt) for attempt in range(SUBSTITUTES + 1)]
        assert tried[0] == plan.crop(position)
        assert [again.crop(position, attempt) for attempt in range(SUBSTITUTES + 1)] == tried
        assert {crop.position for crop in tried} == {position}
        # A corpus of fewer clips than are tried has no more others than this.
        others = min(SUBSTITUTES, count - 1)
        assert len({crop.clip for crop in tried[: others + 1]}) == others + 1


def test_substitutes_lie_apart_in_a_large_corpus() -> None:
    plan = clips(900)
    places = {clip: place for place, clip in enumerate(order(plan, 0))}
    tried = sorted(places[plan.crop(5, attempt).clip] for attempt in range(SUBSTITUTES + 1))
    assert np.diff(tried).min() == 100


def in_shards(sizes: list[int], *, block_shards: int, seed: int = 7) -> CropPlan:
    """A plan of clips that lie in shards of these sizes."""
    split = split_of([2 * CROP] * sum(sizes))
    split.members["shard"] = np.repeat(np.arange(len(sizes)), sizes)
    return CropPlan(split, crop_samples=CROP, hop_samples=HOP, seed=seed, block_shards=block_shards)


@pytest.mark.parametrize("block_shards", [1, 3, 10])
def test_within_a_block_few_shards_are_needed_and_each_clip_comes_once(block_shards: int) -> None:
    sizes = [9, 4, 7, 12, 6, 8, 5]
    plan = in_shards(sizes, block_shards=block_shards)
    shards = plan.split.members["shard"]
    for number in range(3):
        heard = order(plan, number)
        assert sorted(heard) == list(range(sum(sizes)))
        spans = [
            (min(places), max(places))
            for shard in range(len(sizes))
            if (places := [i for i, clip in enumerate(heard) if shards[clip] == shard])
        ]
        at_once = max(
            sum(low <= place <= high for low, high in spans) for place in range(len(heard))
        )
        assert at_once <= block_shards
    assert order(plan, 0) != order(plan, 1)
    assert len({tuple(shards[order(plan, n)]) for n in range(4)}) == 4  # other shards together
    if block_shards > 1:
        assert len(set(shards[order(plan, 0)[:8]])) > 1  # clips of a block are mixed


def test_an_order_does_not_depend_on_which_were_asked_for_before() -> None:
    plan, other = in_shards([5, 9, 3], block_shards=2), in_shards([5, 9, 3], block_shards=2)
    forwards = [order(plan, number) for number in range(5)]
    assert [order(other, number) for number in (4, 0, 3, 1, 2)] == [
        forwards[number] for number in (4, 0, 3, 1, 2)
    ]


def test_the_crops_of_an_epoch_lie_in_different_parts_of_each_clip() -> None:
    spare = 60  # frames: 61 starts, in three parts

    def part(start: int) -> int:
        return sum(start // HOP >= bound for bound in (61 // 3, 2 * 61 // 3))

    split = split_of([CROP + spare * HOP] * 10)
    plan = CropPlan(split, crop_samples=CROP, hop_samples=HOP, seed=7, crops_per_clip=3)
    for epoch in range(4):
        crops = [plan.crop(epoch * 30 + place) for place in range(30)]
        for clip in range(10):
            assert sorted(part(crop.start) for crop in crops if crop.clip == clip) == [0, 1, 2]
        assert {part(crop.start) for crop in crops[:10]} == {
            0,
            1,
            2,
        }  # not all clips at their beginning first
    assert plan.epochs(45) == [1.5]


def test_a_clip_with_fewer_starts_than_crops_is_heard_at_each_of_them() -> None:
    split = split_of([CROP + HOP] * 4)
    plan = CropPlan(split, crop_samples=CROP, hop_samples=HOP, seed=7, crops_per_clip=5)
    assert {plan.crop(place).start for place in range(20)} == {0, HOP}


def test_a_plan_travels_to_workers_without_its_orders() -> None:
    plan = clips(30)
    plan.crop(0)
    unheard = dict(plan.__getstate__())
    assert unheard["_orders"] == {}
    assert unheard["clips"] is plan.clips
