"""From positions to batches: the same crops for any workers, ranks, resumptions and damage."""

import dataclasses
import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Generator
from contextlib import closing
from itertools import count, islice
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from etude.data.audio import decode, encode
from etude.data.batch import AudioBatch, scaled
from etude.data.blocks import BLOCK_BYTES
from etude.data.errors import DataError
from etude.data.pipeline import held_out_batches, training_batches
from etude.data.plan import SUBSTITUTES, BatchShare, CropPlan, PlannedCrop
from etude.data.shards import Corpus, Split, open_corpus

HOP, CROP = 320, 24_000
SHARE = BatchShare(global_batch=6, micro_batch=3, rank=0, ranks=1)
BATCHES = 14
"""Micro-batches of SHARE in seven updates: 42 crops, more than two epochs of the 16 clips."""


@pytest.fixture
def copied(small_corpus: Corpus, tmp_path: Path) -> Corpus:
    """A corpus that a test may damage."""
    shutil.copytree(small_corpus.root, tmp_path / "corpus")
    return open_corpus(tmp_path / "corpus")


@pytest.fixture(scope="module")
def straight(small_corpus: Corpus) -> list[AudioBatch]:
    """What one rank hears of the whole corpus, read in the process itself."""
    return take(plan_of(small_corpus.split("train")))


def plan_of(split: Split, *, seed: int = 7) -> CropPlan:
    return CropPlan(split, crop_samples=CROP, hop_samples=HOP, seed=seed)


def stream(
    plan: CropPlan, share: BatchShare = SHARE, *, first_update: int = 0, workers: int = 0
) -> Generator[AudioBatch, None, None]:
    batches = training_batches(
        plan, share, first_update=first_update, workers=workers, pin_memory=False
    )
    assert isinstance(batches, Generator)
    return batches


def take(
    plan: CropPlan,
    share: BatchShare = SHARE,
    *,
    batches: int = BATCHES,
    first_update: int = 0,
    workers: int = 0,
) -> list[AudioBatch]:
    with closing(stream(plan, share, first_update=first_update, workers=workers)) as endless:
        return list(islice(endless, batches))


def tensors(batch: AudioBatch) -> list[Tensor]:
    lengths = [] if batch.num_samples is None else [batch.num_samples]
    return [*batch[:4], *batch.codes.values(), *lengths]


def held_out(
    plan: CropPlan, *, crops: int = 10, micro_batch: int = 3, rank: int = 0, ranks: int = 1
) -> list[AudioBatch]:
    return list(
        held_out_batches(plan, crops=crops, micro_batch=micro_batch, rank=rank, ranks=ranks)
    )


def same(one: list[AudioBatch], other: list[AudioBatch]) -> bool:
    """Whether batches are equal to the last bit, in dtype and shape too."""
    return len(one) == len(other) and all(
        a.dtype == b.dtype and torch.equal(a, b)
        for first, second in zip(one, other, strict=True)
        for a, b in zip(tensors(first), tensors(second), strict=True)
    )


def rows(batches: list[AudioBatch]) -> list[tuple[int, torch.Tensor]]:
    """Id and waveform of each crop, as a model hears it."""
    return [
        (int(sample_id), scaled(waveform))
        for batch in batches
        for sample_id, waveform in zip(batch.sample_ids, batch.waveform, strict=True)
    ]


def places(split: Split, clip: int, waveform: torch.Tensor) -> list[int]:
    """Every multiple of the hop at which the decoded clip has exactly these samples."""
    whole, _ = decode(split.read_audio_bytes(clip))
    starts = range(0, len(whole) - CROP + 1, HOP)
    return [start for start in starts if np.array_equal(whole[start:][:CROP], waveform.numpy())]


def shard_of(split: Split, clip: int) -> Path:
    return split.corpus.root / split.corpus.shards[int(split.members[clip]["shard"])].file


def damage(split: Split, clip: int) -> None:
    """Flips a byte in every part of a clip's audio that is checked alone, in its tar."""
    data = bytearray(shard_of(split, clip).read_bytes())
    row = split.members[clip]
    first = int(row["audio_offset"])
    for place in range(first, first + int(row["audio_size"]), BLOCK_BYTES):
        data[place] ^= 0xFF
    shard_of(split, clip).write_bytes(data)


def with_foreign_rate(split: Split, clip: int) -> Split:
    """Puts silence of 16 kHz in a clip's place: intact bytes that do not belong into the corpus."""
    foreign = encode(np.zeros(split.num_samples[clip], np.int16), 16_000)
    members = np.array(split.members)
    data = bytearray(shard_of(split, clip).read_bytes())
    offset = int(members[clip]["audio_offset"])
    assert len(foreign) <= members[clip]["audio_size"]
    data[offset : offset + len(foreign)] = foreign
    shard_of(split, clip).write_bytes(data)
    members["audio_size"][clip], members["audio_crc32"][clip] = len(foreign), zlib.crc32(foreign)
    unblocked = dataclasses.replace(split.corpus, blocks_sha256=None)
    return dataclasses.replace(split, corpus=unblocked, members=members)


def first_whole(plan: CropPlan, position: int, damaged: set[int]) -> tuple[int, PlannedCrop] | None:
    """The first attempt at a position whose clip is whole, and how many came before it."""
    tried = [plan.crop(position, attempt) for attempt in range(SUBSTITUTES + 1)]
    return next(((n, crop) for n, crop in enumerate(tried) if crop.clip not in damaged), None)


def new_workers(before: list[BaseProcess]) -> list[BaseProcess]:
    return [child for child in multiprocessing.active_children() if child not in before]


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_for_any_number_of_workers(
    small_corpus: Corpus, straight: list[AudioBatch], workers: int
) -> None:
    assert same(take(plan_of(small_corpus.split("train")), workers=workers), straight)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("update", [1, 3, 6])
def test_going_on_at_an_update_gives_the_rest_of_a_straight_run(
    small_corpus: Corpus, straight: list[AudioBatch], workers: int, update: int
) -> None:
    done = update * SHARE.micro_batches
    plan = plan_of(small_corpus.split("train"))
    rest = take(plan, first_update=update, workers=workers, batches=BATCHES - done)
    assert same(rest, straight[done:])


def test_batches_hold_what_they_say(straight: list[AudioBatch]) -> None:
    assert [sample_id for sample_id, _ in rows(straight)] == list(range(42))
    for number, batch in enumerate(straight):
        assert batch.waveform.shape == (3, CROP) and batch.waveform.dtype == torch.int16
        assert batch.sample_ids.dtype == batch.update.dtype == torch.int64
        assert batch.update.shape == () and batch.update == number // 2
        assert batch.skipped == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_together_hear_what_one_rank_hears(
    small_corpus: Corpus, straight: list[AudioBatch], workers: int
) -> None:
    plan = plan_of(small_corpus.split("train"))
    parts = [
        take(plan, BatchShare(6, 3, rank, 2), batches=BATCHES // 2, workers=workers)
        for rank in range(2)
    ]
    assert same([batch for both in zip(*parts, strict=True) for batch in both], straight)
    large = take(plan, BatchShare(6, 6, 0, 1), batches=BATCHES // 2)
    for first, second, alone in zip(*parts, large, strict=True):
        assert torch.equal(torch.cat([first.waveform, second.waveform]), alone.waveform)
        assert torch.equal(torch.cat([first.sample_ids, second.sample_ids]), alone.sample_ids)
        assert first.update == second.update == alone.update


def test_a_crop_is_the_clip_from_the_planned_start_to_the_last_bit(
    small_corpus: Corpus, straight: list[AudioBatch]
) -> None:
    plan = plan_of(small_corpus.split("train"))
    for position, waveform in rows(straight):
        planned = plan.crop(position)
        assert places(plan.split, planned.clip, waveform) == [planned.start]


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_clips_are_replaced_and_counted_and_no_other_crop_moves(
    copied: Corpus, straight: list[AudioBatch], workers: int
) -> None:
    split = copied.split("train")
    plan = plan_of(split)
    # A clip, and the one that would be heard in its place.
    damaged = {plan.crop(4).clip, plan.crop(4, 1).clip}
    originals = {clip: decode(split.read_audio_bytes(clip))[0] for clip in range(len(split))}
    for clip in damaged:
        damage(split, clip)
    batches = take(plan, workers=workers)
    replaced = 0
    for (position, waveform), (_, before) in zip(rows(batches), rows(straight), strict=True):
        expected = first_whole(plan, position, damaged)
        assert expected is not None
        attempts, crop = expected
        replaced += attempts > 0
        wanted = originals[crop.clip][crop.start : crop.start + CROP]
        assert np.array_equal(waveform.numpy(), wanted)
        assert torch.equal(waveform, before) == (attempts == 0)
    assert replaced > 3
    assert [sample_id for sample_id, _ in rows(batches)] == list(range(42))
    for batch in batches:
        tries = [first_whole(plan, int(position), damaged) for position in batch.sample_ids]
        # One for each clip that was planned, however many were tried in its place.
        assert batch.skipped == sum(found[0] > 0 for found in tries if found is not None)
    assert batches[1].skipped >= 1


def test_each_damaged_clip_is_reported_by_name(
    copied: Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    split = copied.split("train")
    plan = plan_of(split)
    damage(split, plan.crop(4).clip)
    take(plan, batches=2)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert split.key(plan.crop(4).clip) in record.getMessage()
    assert shard_of(split, plan.crop(4).clip).name in record.getMessage()


@pytest.mark.parametrize("fault", ["cut", "gone"])
def test_a_shard_that_is_lost_while_training_costs_its_own_clips_alone(
    copied: Corpus, small_corpus: Corpus, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    split = copied.split("train")
    plan = plan_of(split)
    shard = shard_of(split, plan.crop(0).clip)
    if fault == "cut":
        os.truncate(shard, 1024)
    else:
        shard.unlink()
    lost = {clip for clip in range(len(split)) if shard_of(split, clip) == shard}
    batches = take(plan)
    whole = rows(take(plan_of(small_corpus.split("train"))))
    for (position, waveform), (_, expected) in zip(rows(batches), whole, strict=True):
        assert torch.equal(waveform, expected) != (plan.crop(position).clip in lost)
    assert sum(int(batch.skipped) for batch in batches) >= len(lost)
    # Two epochs and more, but each clip is named once.
    named = [record.getMessage() for record in caplog.records]
    assert len(named) == len(lost) and len(set(named)) == len(lost)
    assert all(shard.name in message for message in named)


def test_a_disk_that_fails_now_and_then_is_asked_again(
    small_corpus: Corpus, monkeypatch: pytest.MonkeyPatch, straight: list[AudioBatch]
) -> None:
    real, calls = os.pread, count()

    def flaky(descriptor: int, size: int, offset: int) -> bytes:
        if next(calls) % 3 < 2:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", flaky)
    monkeypatch.setattr("etude.data.shards._FIRST_WAIT", 0.001)
    assert same(take(plan_of(small_corpus.split("train")), batches=4), straight[:4])
    assert next(calls) > 20


@pytest.mark.parametrize("workers", [0, 2])
def test_if_all_is_damaged_the_error_is_the_one_of_the_data_also_out_of_a_worker(
    copied: Corpus, workers: int
) -> None:
    split = copied.split("train")
    for clip in range(len(split)):
        damage(split, clip)
    before = multiprocessing.active_children()
    with pytest.raises(DataError) as error:
        next(stream(plan_of(split), workers=workers))
    assert type(error.value) is DataError and error.value.exit_status == 3
    message = str(error.value)
    assert message.startswith("9 clips in a row are damaged; the last: ")
    assert any(shard.file in message for shard in copied.shards)
    assert "Traceback" not in message and "worker" not in message and "\n" not in message
    assert not new_workers(before)


@pytest.mark.parametrize("workers", [0, 2])
def test_all_batches_before_an_error_are_delivered_first(
    copied: Corpus, straight: list[AudioBatch], workers: int
) -> None:
    split = copied.split("train")
    plan = plan_of(split)
    # All but the ninth: the first nine positions have it among their substitutes.
    damaged = {clip for clip in range(len(split)) if clip != plan.crop(8).clip}
    for clip in damaged:
        damage(split, clip)
    readable = next(p for p in count() if first_whole(plan, p, damaged) is None)
    assert readable == 9
    batches = stream(plan, workers=workers)
    delivered = list(islice(batches, 3))
    assert [sample_id for sample_id, _ in rows(delivered)] == list(range(readable))
    assert torch.equal(delivered[2].waveform[2], straight[2].waveform[2])
    assert [int(batch.skipped) for batch in delivered] == [3, 3, 2]
    with pytest.raises(DataError):
        next(batches)


def test_a_clip_of_another_rate_is_replaced_like_a_damaged_one(
    copied: Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    split = copied.split("train")
    clip = plan_of(split).crop(4).clip
    foreign = plan_of(with_foreign_rate(split, clip))
    batches = take(foreign, batches=2)
    substitute = foreign.crop(4, 1)
    assert places(split, substitute.clip, scaled(batches[1].waveform[1])) == [substitute.start]
    assert [int(batch.skipped) for batch in batches] == [0, 1]
    assert f"{split.key(clip)} in {copied.root} has 16000 Hz" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corpus_of_another_rate_than_it_says_is_a_data_error(
    small_corpus: Corpus, workers: int
) -> None:
    plan = plan_of(dataclasses.replace(small_corpus, sample_rate=16_000).split("train"))
    message = "has 24000 Hz, but the corpus is said to have 16000 Hz"
    with pytest.raises(DataError, match=message):
        next(stream(plan, workers=workers))
    with pytest.raises(DataError, match=message):
        held_out(plan)


@pytest.mark.parametrize("name", ["train", "valid"])
def test_held_out_crops_are_the_middles_of_the_first_clips(small_corpus: Corpus, name: str) -> None:
    plan = plan_of(small_corpus.split(name))
    crops = rows(held_out(plan, crops=4))
    assert [sample_id for sample_id, _ in crops] == [-1, -2, -3, -4]
    for clip, (_, waveform) in enumerate(crops):
        (start,) = places(plan.split, clip, waveform)
        before, after = start, int(plan.split.num_samples[clip]) - CROP - start
        assert 0 <= after - before < 2 * HOP


def test_held_out_batches_are_always_the_same(small_corpus: Corpus) -> None:
    plan = plan_of(small_corpus.split("valid"))
    first = held_out(plan)
    take(plan, batches=2)
    assert same(held_out(plan), first)
    assert same(held_out(plan_of(small_corpus.split("valid"), seed=8)), first)
    assert [len(batch.waveform) for batch in first] == [3, 1]  # all four clips there are
    assert [int(batch.update) for batch in first] == [0, 0]


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
@pytest.mark.parametrize("crops", [1, 10, 100])
def test_the_ranks_parts_of_what_is_held_out_are_disjoint_and_together_complete(
    small_corpus: Corpus, ranks: int, micro_batch: int, crops: int
) -> None:
    plan = plan_of(small_corpus.split("train"))
    alone = dict(rows(held_out(plan, crops=crops)))
    assert len(alone) == min(crops, 16) and max(alone) < 0
    together = []
    for rank in range(ranks):
        part = held_out(plan, crops=crops, micro_batch=micro_batch, rank=rank, ranks=ranks)
        assert all(len(batch.waveform) == micro_batch for batch in part[:-1])
        together += rows(part)
    assert sorted(sample_id for sample_id, _ in together) == sorted(alone)
    assert all(torch.equal(waveform, alone[sample_id]) for sample_id, waveform in together)


def test_a_damaged_held_out_clip_is_an_error_rather_than_another_crop(copied: Corpus) -> None:
    split = copied.split("valid")
    damage(split, 2)
    with pytest.raises(DataError, match=split.key(2)):
        held_out(plan_of(split))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_workers_read_on_when_they_are_signalled(
    small_corpus: Corpus, straight: list[AudioBatch], number: signal.Signals
) -> None:
    before = multiprocessing.active_children()
    with closing(stream(plan_of(small_corpus.split("train")), workers=2)) as batches:
        heard = list(islice(batches, 2))  # one from each worker: both are up
        workers = new_workers(before)
        assert len(workers) == 2
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, number)
        heard += islice(batches, BATCHES - 2)
        assert new_workers(before) == workers
    assert same(heard, straight)


@pytest.mark.parametrize("read", [1, 5])
def test_closing_the_batches_leaves_no_worker_behind(small_corpus: Corpus, read: int) -> None:
    before = multiprocessing.active_children()
    batches = stream(plan_of(small_corpus.split("train")), workers=2)
    for _ in range(read):
        next(batches)
    workers = new_workers(before)
    assert len(workers) == 2
    batches.close()
    assert not new_workers(before)
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_a_program_ends_quietly_and_with_its_workers_even_if_the_batches_are_still_open(
    small_corpus: Corpus,
) -> None:
    program = f"""
import multiprocessing
from pathlib import Path
from etude.data.pipeline import training_batches
from etude.data.plan import BatchShare, CropPlan
from etude.data.shards import open_corpus
split = open_corpus(Path({str(small_corpus.root)!r})).split("train")
plan = CropPlan(split, crop_samples={CROP}, hop_samples={HOP}, seed=7)
share = BatchShare(global_batch=6, micro_batch=3, rank=0, ranks=1)
batches = training_batches(plan, share, first_update=0, workers=2, pin_memory=False)
next(batches), next(batches)
print(*(child.pid for child in multiprocessing.active_children()))
"""
    # Without the workers' end it waits for them for ever.
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0 and "Traceback" not in ended.stderr
    workers = [int(pid) for pid in ended.stdout.split()]
    assert len(workers) == 2
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


# Clips that are shorter than a crop.

LONG = 130_000
"""Longer than some clips of the small corpus, and shorter than others."""


@pytest.mark.parametrize("workers", [0, 2])
def test_short_clips_are_whole_and_padded_where_asked_for(
    small_corpus: Corpus, workers: int
) -> None:
    split = small_corpus.split("train")
    lengths = np.asarray(split.num_samples)
    assert lengths.min() < LONG < lengths.max(), lengths
    plan = CropPlan(split, crop_samples=LONG, hop_samples=HOP, seed=7, min_samples=CROP)
    assert len(plan.clips) == (lengths >= CROP).sum()
    padded = 0
    for batch in take(plan, workers=workers):
        assert batch.waveform.shape[1] == LONG
        for row, (position, waveform) in enumerate(rows([batch])):
            planned = plan.crop(position)
            length = min(LONG, int(lengths[planned.clip]))
            whole, _ = decode(split.read_audio_bytes(planned.clip))
            heard = whole[planned.start : planned.start + length]
            assert np.array_equal(waveform[:length].numpy(), heard)
            assert not waveform[length:].any()
            told = LONG if batch.num_samples is None else int(batch.num_samples[row])
            assert told == length
            padded += length < LONG
    assert padded
    for batch in held_out(plan):
        assert batch.waveform.shape[1] == LONG


def test_full_crops_say_nothing_of_their_length(straight: list[AudioBatch]) -> None:
    assert {batch.num_samples for batch in straight} == {None}
