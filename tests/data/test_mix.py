"""Several corpora as one order: exact shares, and every corpus in its own passes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from etude.data.mix import BLOCK, MixedPlan, places
from etude.data.plan import CropPlan
from etude.data.shards import MEMBER, Corpus, Split

CROP = 24_000


def plan_of(clips: int, *, crops_per_clip: int = 1, seed: int = 7) -> CropPlan:
    """A plan of clips of which only the lengths are real: it reads no audio."""
    members = np.zeros(clips, MEMBER)
    members["num_samples"] = 5 * CROP
    corpus = Corpus(Path("corpora/tiny"), 24_000, clip_seconds=5, fingerprint="", shards=())
    return CropPlan(
        Split(corpus, "train", members),
        crop_samples=CROP,
        hop_samples=320,
        seed=seed,
        crops_per_clip=crops_per_clip,
    )


def mixed(*shares: float, sizes: tuple[int, ...] = (11, 7, 300), seed: int = 7) -> MixedPlan:
    parts = [plan_of(size) for size in sizes[: len(shares)]]
    return MixedPlan(parts, shares, seed=seed)


def test_every_block_holds_each_corpus_in_its_share() -> None:
    plan = mixed(3.0, 1.0)
    for block in range(3):
        parts = Counter(plan.crop(block * BLOCK + place).part for place in range(BLOCK))
        assert parts == {0: 3 * BLOCK // 4, 1: BLOCK // 4}


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([1.0, 1.0], (BLOCK // 2, BLOCK // 2)),
        ([1e-9, 1.0], (1, BLOCK - 1)),  # never left out
        ([1.0, 1.0, 1.0], (1366, 1365, 1365)),
        ([5.0], (BLOCK,)),
    ],
)
def test_places_of_a_block_follow_the_shares(
    shares: list[float], expected: tuple[int, ...]
) -> None:
    assert places(shares) == expected


def test_each_corpus_is_heard_in_the_order_of_its_own_plan() -> None:
    plan = mixed(2.0, 1.0, 1.0)
    heard: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for position in range(2 * BLOCK + 100):
        crop = plan.crop(position)
        assert crop.position == position
        heard[crop.part].append(crop.clip)
    for part, clips in heard.items():
        alone = plan_of((11, 7, 300)[part])
        assert clips == [alone.crop(index).clip for index in range(len(clips))]


def test_the_mixture_is_a_function_of_seed_and_position() -> None:
    forwards, backwards, other = mixed(1.0, 1.0), mixed(1.0, 1.0), mixed(1.0, 1.0, seed=8)
    positions = range(BLOCK - 50, BLOCK + 50)
    crops = {position: forwards.crop(position) for position in positions}
    assert {p: backwards.crop(p) for p in reversed(positions)} == crops
    assert [other.crop(p).part for p in positions] != [crops[p].part for p in positions]
    first, second = ([forwards.crop(b * BLOCK + i).part for i in range(99)] for b in (0, 1))
    assert first != second


def test_a_substitute_comes_from_the_same_corpus() -> None:
    plan = mixed(1.0, 1.0)
    for position in range(50):
        tried = [plan.crop(position, attempt) for attempt in range(4)]
        assert len({crop.part for crop in tried}) == 1
        assert len({crop.clip for crop in tried}) > 1


@pytest.mark.parametrize("crops", [0, 17, BLOCK, 3 * BLOCK + 1234])
def test_epochs_count_what_was_heard_of_each_corpus(crops: int) -> None:
    plan = mixed(3.0, 1.0)
    heard = Counter(plan.crop(position).part for position in range(crops))
    assert plan.epochs(crops) == pytest.approx([heard[0] / 11, heard[1] / 7])
