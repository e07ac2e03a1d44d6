"""Tokens beside the audio: same keys and order, the right frames with every crop, damage named."""

import io
import json
import pickle
import shutil
import tarfile
from contextlib import closing
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import webdataset

from etude.data.errors import DataError, InputError
from etude.data.packing import Packing
from etude.data.pipeline import held_out_batches, training_batches
from etude.data.plan import BatchShare, CropPlan
from etude.data.shards import Corpus, open_corpus
from etude.data.tar import add_member, walk_members
from etude.data.tokens import (
    Codes,
    Tokens,
    TokenSettings,
    merge_shard,
    open_tokens,
    parse_codes,
    shard_keys,
    tokens_root,
    write_token_index,
    write_token_shard,
)

HOP, CROP, NAME = 320, 24_000, "numbers"
SETTINGS = TokenSettings(
    codec="numbers",
    weights_sha256="0" * 64,
    sample_rate=24_000,
    hop_samples=HOP,
    codebooks=2,
    codebook_size=1024,
)


def numbers(clip: int, num_samples: int) -> Codes:
    """Codes that say where they are from: clip and frame."""
    frames = np.arange(num_samples // HOP)
    return np.stack([np.full_like(frames, clip), frames], axis=1).astype(np.uint16)


PACKING = Packing(codebooks=2, bits=10)


def write_numbers(corpus: Corpus, packing: Packing | None = None) -> None:
    tokens_root(corpus, NAME).mkdir(parents=True)
    seen = {"train": 0, "valid": 0}
    for shard, keys in shard_keys(corpus):
        first = seen[shard.split]
        seen[shard.split] += len(keys)
        lengths = corpus.split(shard.split).num_samples[first : first + len(keys)]
        codes = [numbers(first + i, int(length)) for i, length in enumerate(lengths)]
        path = tokens_root(corpus, NAME) / shard.file
        write_token_shard(path, NAME, zip(keys, codes, strict=True), packing=packing)


@pytest.fixture
def corpus(small_corpus: Corpus, tmp_path: Path) -> Corpus:
    shutil.copytree(small_corpus.root, tmp_path / "corpus")
    return open_corpus(tmp_path / "corpus")


@pytest.fixture(params=[None, PACKING], ids=["plain", "packed"])
def tokens(corpus: Corpus, request: pytest.FixtureRequest) -> Tokens:
    """Of either layout: whoever reads them sees no difference."""
    write_numbers(corpus, request.param)
    return write_token_index(corpus, NAME, SETTINGS, packing=request.param)


def test_every_clip_reads_its_own_tokens_in_either_split(corpus: Corpus, tokens: Tokens) -> None:
    assert len({shard.split for shard in corpus.shards}) == 2 and len(corpus.shards) > 2
    for name in ("train", "valid"):
        split, stored = corpus.split(name), tokens.split(name)
        for clip in range(len(split)):
            expected = numbers(clip, int(split.num_samples[clip]))
            assert np.array_equal(stored.read(clip), expected)
            assert stored.frames(clip) == len(expected)
            for start, frames in ((0, 7), (13, 20), (len(expected) - 3, 9)):
                part = stored.read(clip, start=start, frames=frames)
                assert np.array_equal(part, expected[start : start + frames])


def test_a_crop_comes_with_the_frames_that_it_starts_at(corpus: Corpus, tokens: Tokens) -> None:
    split = corpus.split("train")
    stored = {NAME: tokens.split("train")}
    plan = CropPlan(split, crop_samples=CROP, hop_samples=HOP, seed=3, tokens=stored)
    share = BatchShare(global_batch=6, micro_batch=3, rank=0, ranks=1)
    starts = set()
    for workers in (0, 2):
        batches = training_batches(plan, share, first_update=1, workers=workers, pin_memory=False)
        with closing(batches) as endless:  # type: ignore[type-var]
            for batch in islice(endless, 8):
                assert batch.codes[NAME].shape == (3, CROP // HOP, 2)
                for position, codes in zip(batch.sample_ids, batch.codes[NAME], strict=True):
                    planned = plan.crop(int(position))
                    first = planned.start // HOP
                    assert codes[:, 0].tolist() == [planned.clip] * (CROP // HOP)
                    assert codes[:, 1].tolist() == list(range(first, first + CROP // HOP))
                    starts.add(first)
    assert len(starts) > 10


def test_held_out_crops_come_with_their_tokens_too(corpus: Corpus, tokens: Tokens) -> None:
    stored = {NAME: tokens.split("valid")}
    split = corpus.split("valid")
    plan = CropPlan(split, crop_samples=CROP, hop_samples=HOP, seed=3, tokens=stored)
    for batch in held_out_batches(plan, crops=99, micro_batch=1, rank=0, ranks=1):
        clip = int(batch.codes[NAME][0, 0, 0])
        start = int(batch.codes[NAME][0, 0, 1]) * HOP
        assert abs(start + CROP / 2 - int(split.num_samples[clip]) / 2) <= HOP


def test_damaged_tokens_are_replaced_and_counted_like_damaged_audio(
    corpus: Corpus, tokens: Tokens
) -> None:
    stored = tokens.split("train")
    row = stored.members[2]
    path = tokens.root / tokens.shards[int(row["shard"])].file
    data = bytearray(path.read_bytes())
    data[int(row["offset"]) + int(row["size"]) - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"member \S+\.numbers\.npy is damaged"):
        stored.read(2)
    plan = CropPlan(
        corpus.split("train"), crop_samples=CROP, hop_samples=HOP, seed=3, tokens={NAME: stored}
    )
    clips = len(plan.clips)
    share = BatchShare(global_batch=clips, micro_batch=clips, rank=0, ranks=1)
    batch = next(training_batches(plan, share, first_update=0, workers=0, pin_memory=False))
    assert int(batch.skipped) == 1
    assert 2 not in batch.codes[NAME][:, 0, 0].tolist()


def test_webdataset_reads_the_sidecars_in_the_order_of_the_audio(
    corpus: Corpus, tokens: Tokens
) -> None:
    for shard, keys in shard_keys(corpus):
        url = str(tokens.root / shard.file)
        read = list(webdataset.WebDataset(url, shardshuffle=False, empty_check=False))
        assert [sample["__key__"] for sample in read] == keys
        array = np.load(io.BytesIO(read[0][f"{NAME}.npy"]), allow_pickle=False)
        assert array.shape[1] == (2 if tokens.packing is None else 3)
        assert array.dtype == (np.uint16 if tokens.packing is None else np.uint8)


def test_an_opened_split_travels_to_workers_small(tokens: Tokens) -> None:
    stored = tokens.split("train")
    again = pickle.loads(pickle.dumps(stored))
    assert np.array_equal(again.read(1), stored.read(1))
    assert isinstance(again.members.base, np.memmap) or isinstance(again.members, np.memmap)


def test_no_tokens_says_how_to_make_them(corpus: Corpus) -> None:
    with pytest.raises(InputError, match=r"launch/encode.py .* --codec numbers"):
        open_tokens(corpus, NAME)
    write_numbers(corpus)
    with pytest.raises(InputError, match="was begun but is not finished"):
        open_tokens(corpus, NAME)


def test_tokens_of_another_corpus_are_refused(corpus: Corpus, tokens: Tokens) -> None:
    index = tokens.root / "index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "corpus": "f" * 64}))
    with pytest.raises(DataError, match="made for another corpus"):
        open_tokens(corpus, NAME)


@pytest.mark.parametrize("damage", ["cut", "longer", "gone"])
def test_a_sidecar_that_is_not_the_indexed_one_is_named(
    corpus: Corpus, tokens: Tokens, damage: str
) -> None:
    path = tokens.root / corpus.shards[0].file
    if damage == "gone":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-512] if damage == "cut" else data + bytes(512))
    with pytest.raises(DataError, match=str(path)):
        open_tokens(corpus, NAME)


@pytest.mark.parametrize("wrong", ["order", "missing", "extra"])
def test_the_index_refuses_tokens_that_are_not_the_clips(corpus: Corpus, wrong: str) -> None:
    write_numbers(corpus)
    shard, keys = next(iter(shard_keys(corpus)))
    codes = [numbers(0, CROP)] * len(keys)
    changed = {"order": keys[::-1], "missing": keys[:-1], "extra": [*keys, "zzz"]}[wrong]
    samples = zip(changed, [*codes, codes[0]], strict=False)
    write_token_shard(tokens_root(corpus, NAME) / shard.file, NAME, samples)
    with pytest.raises(DataError, match=shard.file):
        write_token_index(corpus, NAME, SETTINGS)


def test_arrays_of_another_kind_are_refused_and_nothing_is_unpickled() -> None:
    for array in (np.zeros((3, 2), np.int64), np.zeros(3, np.uint16)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        with pytest.raises(DataError, match="must be uint16"):
            parse_codes(buffer.getvalue(), "here")
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="is no array"):
        parse_codes(buffer.getvalue(), "here")


def test_equal_tokens_give_equal_bytes(corpus: Corpus, tokens: Tokens, tmp_path: Path) -> None:
    shard, keys = next(iter(shard_keys(corpus)))
    again = [(key, tokens.split(shard.split).read(i)) for i, key in enumerate(keys)]
    write_token_shard(tmp_path / shard.file, NAME, again, packing=tokens.packing)
    assert (tmp_path / shard.file).read_bytes() == (tokens.root / shard.file).read_bytes()


# --- packed


def changed_shard(corpus: Corpus, change: bytes) -> Path:
    """The first sidecar with another last byte of its first array."""
    path = tokens_root(corpus, NAME) / corpus.shards[0].file
    members = {member.name: member.content for member in walk_members(path)}
    first = next(iter(members))
    members[first] = members[first][:-1] + change
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            add_member(tar, name, content)
    return path


def test_an_index_of_plain_tokens_says_nothing_that_it_did_not_say_before(corpus: Corpus) -> None:
    """Or folders that were made before would have another fingerprint than new ones."""
    write_numbers(corpus)
    plain = write_token_index(corpus, NAME, SETTINGS)
    content = json.loads((plain.root / "index.json").read_text())
    assert "bits" not in content and plain.packing is None
    shutil.rmtree(plain.root)
    write_numbers(corpus, PACKING)
    packed = write_token_index(corpus, NAME, SETTINGS, packing=PACKING)
    said = json.loads((packed.root / "index.json").read_text())
    assert said["bits"] == 10 and packed.packing == PACKING == SETTINGS.packing
    assert said.keys() - content.keys() == {"bits"}
    # What they are tokens of, and made by, is the same: runs may mix the two.
    assert packed.settings == plain.settings


@pytest.mark.parametrize("bits", [16, 9, 0, "many"])
def test_bits_that_the_codes_do_not_need_are_refused(corpus: Corpus, bits: object) -> None:
    write_numbers(corpus, PACKING)
    tokens = write_token_index(corpus, NAME, SETTINGS, packing=PACKING)
    index = tokens.root / "index.json"
    index.write_text(index.read_text().replace('"bits": 10', f'"bits": {json.dumps(bits)}'))
    with pytest.raises(DataError, match=r"index\.json: .* Delete"):
        open_tokens(corpus, NAME)


def test_a_bit_behind_the_last_code_is_noticed_by_the_index_and_by_the_reader(
    corpus: Corpus,
) -> None:
    write_numbers(corpus, PACKING)
    path = changed_shard(corpus, b"\x71")
    with pytest.raises(DataError, match=rf"{path}: member \S+ is not packed right .*last 4 bits"):
        write_token_index(corpus, NAME, SETTINGS, packing=PACKING)
    # An index that believes in four codes of 6 bits knows of no bits behind them.
    other = TokenSettings(**{**asdict(SETTINGS), "codebooks": 4, "codebook_size": 64})
    assert other.packing is not None and other.packing.row_bytes == PACKING.row_bytes
    tokens = write_token_index(corpus, NAME, other, packing=other.packing)
    wrong = replace(tokens, settings=SETTINGS, packing=PACKING).split(corpus.shards[0].split)
    with pytest.raises(DataError, match=r"clip 0 of \S+ is not packed right"):
        wrong.read(0)
    assert len(wrong.read(0, frames=5)) == 5  # those frames are as they should be


@pytest.mark.parametrize("packing", [None, PACKING])
def test_arrays_of_the_other_layout_are_refused(corpus: Corpus, packing: Packing | None) -> None:
    write_numbers(corpus, packing)
    other = PACKING if packing is None else None
    with pytest.raises(DataError, match="must be uint(8|16) .*, but is uint(8|16)"):
        write_token_index(corpus, NAME, SETTINGS, packing=other)


def test_merged_tars_have_plain_tokens_from_either_layout(
    corpus: Corpus, tokens: Tokens, tmp_path: Path
) -> None:
    (tmp_path / "merged").mkdir()
    shard = corpus.shards[0]
    merge_shard(tokens, shard.file, tmp_path / "merged")
    split = corpus.split(shard.split)
    merged = [
        member.content
        for member in walk_members(tmp_path / "merged" / shard.file)
        if member.name.endswith(f".{NAME}.npy")
    ]
    assert len(merged) == shard.samples
    for clip, content in enumerate(merged):
        expected = numbers(clip, int(split.num_samples[clip]))
        assert np.array_equal(parse_codes(content, "here"), expected)


def test_codes_of_sixteen_bits_have_nothing_to_pack() -> None:
    wide = TokenSettings(**{**asdict(SETTINGS), "codebook_size": 40_000})
    assert wide.packing is None
