"""Random corpora, ranks, workers, interruptions: one sequence of (clip, crop, codes), and no other.

Every sample of a clip is a number of its own and every token says where it belongs, so that a batch
tells by itself what it was cut from.
"""

import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from etude.data.audio import encode
from etude.data.batch import AudioBatch
from etude.data.files import json_bytes
from etude.data.index import scan_shard, write_index
from etude.data.mix import MixedPlan
from etude.data.pipeline import training_batches
from etude.data.plan import BatchShare, CropPlan, Plan
from etude.data.shards import Corpus, open_corpus
from etude.data.tar import add_member
from etude.data.tokens import (
    Tokens,
    TokenSettings,
    shard_keys,
    write_token_index,
    write_token_shard,
)

RATE, HOP = 16_000, 100
CROP = 8 * HOP
GLOBAL_BATCH = 24
UPDATES = 6
LONGEST = 30  # hops


class Heard(NamedTuple):
    """One crop of a batch, by what is in it."""

    position: int
    corpus: int
    clip: int
    frame: int


def write_corpus(root: Path, number: int, random: np.random.Generator) -> tuple[Corpus, Tokens]:
    """A corpus of one to five shards; the first samples of each hop are corpus, clip and frame."""
    root.mkdir(parents=True)
    clip, files = 0, []
    for shard in range(int(random.integers(1, 6))):
        path = root / f"train-{shard:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for _ in range(int(random.integers(1, 9))):
                hops = int(random.integers(8, LONGEST))
                samples = random.integers(-3000, 3000, hops * HOP).astype(np.int16)
                samples[0::HOP], samples[1::HOP], samples[2::HOP] = number, clip, range(hops)
                metadata = {"track": f"t{clip}", "num_samples": len(samples), "sample_rate": RATE}
                add_member(tar, f"clip-{clip}.flac", encode(samples, RATE))
                add_member(tar, f"clip-{clip}.json", json_bytes(metadata))
                clip += 1
        files.append(path)
    scans = [scan_shard(path, "train", RATE) for path in files]
    write_index(root, scans, sample_rate=RATE, clip_seconds=1.0)
    corpus = open_corpus(root)
    folder = root / "targets" / "where"
    folder.mkdir(parents=True)
    split = corpus.split("train")
    frames = {split.key(row): int(n) // HOP for row, n in enumerate(split.num_samples)}
    for shard_, keys in shard_keys(corpus):
        tokens = (
            (key, np.array([(int(key[5:]), f) for f in range(frames[key])], np.uint16))
            for key in keys
        )
        write_token_shard(folder / shard_.file, "where", tokens)
    settings = TokenSettings("where", "", RATE, HOP, 2, 1024)
    return corpus, write_token_index(corpus, "where", settings)


def make_plan(folder: Path, seed: int) -> Plan:
    """One corpus or two, with random settings of the order."""
    random = np.random.default_rng(seed)
    parts = []
    crops_per_clip, block_shards = int(random.integers(1, 4)), int(random.integers(0, 3))
    for number in range(int(random.integers(1, 3))):
        corpus, tokens = write_corpus(folder / str(number), number, random)
        parts.append(
            CropPlan(
                corpus.split("train"),
                crop_samples=CROP,
                hop_samples=HOP,
                seed=seed,
                tokens={"where": tokens.split("train")},
                crops_per_clip=crops_per_clip,
                block_shards=block_shards,
            )
        )
    return parts[0] if len(parts) == 1 else MixedPlan(parts, random.random(len(parts)), seed=seed)


def heard(batch: AudioBatch) -> Iterator[Heard]:
    samples = batch.waveform.numpy().astype(int)
    for row, position in enumerate(batch.sample_ids.tolist()):
        corpus, clip, frame = samples[row, :3].tolist()
        codes = batch.codes["where"][row].tolist()
        assert codes == [[clip, frame + i] for i in range(CROP // HOP)]  # cut together
        assert samples[row, 2::HOP].tolist() == [frame + i for i in range(CROP // HOP)]
        yield Heard(position, corpus, clip, frame)


def rank_stream(
    plan: Plan, share: BatchShare, *, first_update: int, updates: int, workers: int
) -> list[list[Heard]]:
    """A rank's updates, each with all of its crops."""
    stream = training_batches(
        plan, share, first_update=first_update, workers=workers, pin_memory=False
    )
    with closing(stream) as endless:  # type: ignore[type-var]
        batches = list(islice(endless, updates * share.micro_batches))
    assert not any(int(batch.skipped) for batch in batches)
    crops = [list(heard(batch)) for batch in batches]
    assert [int(batch.update) - first_update for batch in batches] == [
        i // share.micro_batches for i in range(len(batches))
    ]
    per = share.micro_batches
    return [sum(crops[i : i + per], []) for i in range(0, len(crops), per)]


def global_batches(
    plan: Plan, *, ranks: int, micro_batch: int, workers: int, first_update: int, updates: int
) -> list[list[Heard]]:
    """Every update's crops of all ranks together, in the order of their positions."""
    streams = [
        rank_stream(
            plan,
            BatchShare(GLOBAL_BATCH, micro_batch, rank, ranks),
            first_update=first_update,
            updates=updates,
            workers=workers,
        )
        for rank in range(ranks)
    ]
    return [sorted(sum(update, [])) for update in zip(*streams, strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_the_sequence_of_crops_and_codes_depends_on_nothing_but_the_seed(
    tmp_path: Path, seed: int
) -> None:
    plan = make_plan(tmp_path, seed)
    random = np.random.default_rng(1000 + seed)
    straight = global_batches(
        plan, ranks=1, micro_batch=GLOBAL_BATCH, workers=0, first_update=0, updates=UPDATES
    )
    assert [crop.position for update in straight for crop in update] == list(
        range(UPDATES * GLOBAL_BATCH)
    )
    for ranks, workers in product([1, 2, 3, 8], [0, 1, 2]):
        stop = int(random.integers(0, UPDATES))
        micro_batch = int(random.choice([n for n in (1, 3) if GLOBAL_BATCH // ranks % n == 0]))
        # From where another number of ranks and workers was interrupted.
        resumed = global_batches(
            plan,
            ranks=ranks,
            micro_batch=micro_batch,
            workers=workers,
            first_update=stop,
            updates=UPDATES - stop,
        )
        assert resumed == straight[stop:], (ranks, workers, stop)


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_repeated_or_lost_within_an_epoch(tmp_path: Path, seed: int) -> None:
    plan = make_plan(tmp_path, seed)
    epochs = 2
    crops = next(n for n in range(1, 1 << 20) if min(plan.epochs(n)) >= epochs)
    updates = -(-crops // GLOBAL_BATCH)
    share = BatchShare(GLOBAL_BATCH, 3, 0, 1)
    stream = rank_stream(plan, share, first_update=0, updates=updates, workers=0)
    for number, part in enumerate(plan.parts):
        mine = [crop.clip for update in stream for crop in update if crop.corpus == number]
        one_pass = len(part.clips)
        for first in range(0, len(mine) - one_pass + 1, one_pass):
            counts = Counter(mine[first : first + one_pass])
            assert counts == dict.fromkeys(map(int, part.clips), 1)
