"""webdataset's own reader over our shards, behind the same stages."""

import shutil
from collections import Counter
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from test_pipeline import CROP, HOP, damage, rows

from etude.data.audio import decode
from etude.data.batch import AudioBatch
from etude.data.errors import DataError
from etude.data.pipeline import training_batches
from etude.data.plan import BatchShare, CropPlan
from etude.data.shards import Corpus, open_corpus


def plan_of(corpus: Corpus) -> CropPlan:
    return CropPlan(corpus.split("train"), crop_samples=CROP, hop_samples=HOP, seed=7)


def take(
    plan: CropPlan, batches: int, *, rank: int = 0, ranks: int = 1, workers: int = 0, first: int = 0
) -> list[AudioBatch]:
    stream = training_batches(
        plan,
        BatchShare(6, 3, rank, ranks),
        first_update=first,
        workers=workers,
        pin_memory=False,
        stock=True,
    )
    with closing(stream) as endless:  # type: ignore[type-var]
        return list(islice(endless, batches))


def clips_of(plan: CropPlan, batches: list[AudioBatch]) -> list[int]:
    """Which clip each crop was cut from, at a multiple of the hop."""
    split = plan.split
    whole = [decode(split.read_audio_bytes(clip))[0] for clip in range(len(split))]
    return [
        next(
            clip
            for clip, samples in enumerate(whole)
            for start in range(0, len(samples) - CROP + 1, HOP)
            if np.array_equal(samples[start:][:CROP], waveform.numpy())
        )
        for _, waveform in rows(batches)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_are_those_of_the_shards_and_every_clip_comes(
    small_corpus: Corpus, workers: int
) -> None:
    plan = plan_of(small_corpus)
    batches = take(plan, 16, workers=workers)  # three epochs of the 16 clips
    assert [i for batch in batches for i in batch.sample_ids.tolist()] == list(range(48))
    heard = Counter(clips_of(plan, batches))
    assert set(heard) == set(range(len(plan.split)))


def test_a_position_keeps_its_meaning_and_its_crop_does_not(small_corpus: Corpus) -> None:
    plan = plan_of(small_corpus)
    straight, later = take(plan, 8), take(plan, 4, first=2)
    assert [b.sample_ids.tolist() for b in later] == [b.sample_ids.tolist() for b in straight[4:]]
    assert not all(
        np.array_equal(a.waveform, b.waveform) for a, b in zip(later, straight[4:], strict=True)
    )


def test_a_clip_that_does_not_decode_is_counted(small_corpus: Corpus, tmp_path: Path) -> None:
    shutil.copytree(small_corpus.root, tmp_path / "corpus")
    corpus = open_corpus(tmp_path / "corpus")
    split = corpus.split("train")
    for clip in range(0, len(split), 2):
        damage(split, clip)
    batches = take(plan_of(corpus), 10)
    assert sum(int(batch.skipped) for batch in batches) > 0
    assert all(batch.waveform.shape == (3, CROP) for batch in batches)


def test_more_workers_than_shards_are_refused(small_corpus: Corpus) -> None:
    with pytest.raises(DataError, match="gives every worker of every rank shards of its own"):
        take(plan_of(small_corpus), 1, ranks=2, workers=2)
