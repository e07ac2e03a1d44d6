"""Corpora of 16-bit PCM, and the checksums of blocks that they share with those of FLAC."""

import io
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import webdataset
from prepare_parts import QUIET, SETTINGS, collection
from test_pipeline import CROP, HOP, SHARE, held_out, plan_of, same, shard_of, take
from test_remote import Store

from etude.data.audio import decode, decode_pcm16, encode
from etude.data.batch import scaled
from etude.data.blocks import BLOCK_BYTES, BlockFile, count_blocks
from etude.data.clip_format import PCM16_HEADER
from etude.data.errors import DataError, InputError
from etude.data.index import scan_shard, verify
from etude.data.pipeline import read_crop, training_batches
from etude.data.plan import CropPlan
from etude.data.prepare import PrepareSettings, prepare
from etude.data.remote import Cache, open_remote
from etude.data.shards import Corpus, open_corpus
from etude.data.tar import add_member, walk_members
from etude.data.tokens import (
    TokenSettings,
    merge_shard,
    shard_keys,
    tokens_root,
    write_token_index,
    write_token_shard,
)

KINDS = ("flac", "pcm16")


@pytest.fixture(scope="module")
def pcm16(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The music of the small corpus."""
    settings = PrepareSettings(
        clip_seconds=6, min_seconds=3, shard_mb=1, valid_fraction=0.25, audio_format="pcm16"
    )
    music, out = small_corpus.root.parent / "music", tmp_path_factory.mktemp("pcm16")
    corpus = prepare([music], out / "corpus", settings, **QUIET)
    assert corpus is not None
    return corpus


@pytest.fixture(params=KINDS)
def copied(
    request: pytest.FixtureRequest, small_corpus: Corpus, pcm16: Corpus, tmp_path: Path
) -> Corpus:
    """One of either kind that a test may damage."""
    corpus = small_corpus if request.param == "flac" else pcm16
    shutil.copytree(corpus.root, tmp_path / "corpus")
    return open_corpus(tmp_path / "corpus")


def flip(corpus: Corpus, clip: int, place: int) -> None:
    """Flips a bit of the clip's audio at this byte of it."""
    split = corpus.split("train")
    path = shard_of(split, clip)
    data = bytearray(path.read_bytes())
    data[int(split.members[clip]["audio_offset"]) + place] ^= 4
    path.write_bytes(data)


def test_every_16_bit_sample_is_scaled_to_what_libsndfile_gives() -> None:
    samples = np.arange(-32768, 32768).astype(np.int16)
    for kind in KINDS:
        data = encode(samples, 24_000, kind)
        floats, _ = soundfile.read(io.BytesIO(data), dtype="float32")
        integers, rate = decode_pcm16(io.BytesIO(data))
        assert rate == 24_000 and np.array_equal(integers, samples)
        assert np.array_equal(decode(data)[0], floats)
        ours = scaled(torch.from_numpy(integers))
        assert ours.dtype == torch.float32 and np.array_equal(ours.numpy(), floats)
        assert scaled(ours) is ours


@pytest.mark.parametrize("workers", [0, 2])
def test_the_crops_are_those_of_the_flac_corpus(
    small_corpus: Corpus, pcm16: Corpus, workers: int
) -> None:
    flac = plan_of(small_corpus.split("train"))
    sliced = plan_of(pcm16.split("train"))
    assert same(take(flac), take(sliced, workers=workers))
    assert same(
        held_out(plan_of(small_corpus.split("valid"))), held_out(plan_of(pcm16.split("valid")))
    )
    assert pcm16.fingerprint != small_corpus.fingerprint


def test_all_but_the_audio_is_that_of_the_flac_corpus(small_corpus: Corpus, pcm16: Corpus) -> None:
    report = "report.json"
    assert (pcm16.root / report).read_bytes() == (small_corpus.root / report).read_bytes()
    for name in ("train", "valid"):
        one, other = small_corpus.split(name), pcm16.split(name)
        assert len(one) == len(other)
        for clip in range(len(one)):
            assert one.key(clip) == other.key(clip)
            assert one.read_metadata(clip) == other.read_metadata(clip)
            samples, _ = decode(one.read_audio_bytes(clip))
            assert np.array_equal(samples, decode(other.read_audio_bytes(clip))[0])
    assert verify(pcm16.root) == pcm16


def test_any_webdataset_reader_gets_wav_files(pcm16: Corpus) -> None:
    split = pcm16.split("train")
    urls = [str(pcm16.root / shard.file) for shard in pcm16.shards if shard.split == "train"]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["wav"] for sample in found] == [
        split.read_audio_bytes(clip) for clip in range(len(split))
    ]
    with soundfile.SoundFile(io.BytesIO(found[0]["wav"])) as file:
        assert (file.format, file.subtype, file.channels) == ("WAV", "PCM_16", 1)
        assert file.samplerate == 24_000 and file.frames == split.num_samples[0]


def test_webdataset_s_own_reader_trains_on_them(pcm16: Corpus) -> None:
    stream = training_batches(
        plan_of(pcm16.split("train")),
        SHARE,
        first_update=0,
        workers=0,
        pin_memory=False,
        stock=True,
    )
    with closing(stream) as endless:  # type: ignore[type-var]
        for batch in islice(endless, 3):
            assert batch.waveform.dtype == torch.int16 and batch.waveform.any(dim=1).all()


def test_corpora_of_before_there_were_blocks_are_read_as_they_were(
    small_corpus: Corpus, tmp_path: Path
) -> None:
    shutil.copytree(small_corpus.root, tmp_path / "old")
    (tmp_path / "old" / "blocks.npy").unlink()
    index = json.loads((tmp_path / "old" / "index.json").read_bytes())
    del index["blocks_sha256"], index["audio_format"]
    (tmp_path / "old" / "index.json").write_text(json.dumps(index), encoding="utf-8")
    old = verify(tmp_path / "old")
    assert old.fingerprint == small_corpus.fingerprint and old.blocks_sha256 is None
    assert same(take(plan_of(old.split("train"))), take(plan_of(small_corpus.split("train"))))
    row = plan_of(old.split("train")).crop(0).clip
    for place in (30, int(old.split("train").members[row]["audio_size"]) - 1):  # heard or not
        flip(old, row, place)
        assert read_crop(plan_of(old.split("train")), 0).skipped == 1
        flip(old, row, place)


def test_a_flipped_bit_is_never_heard_and_damage_that_a_crop_does_not_need_costs_nothing(
    copied: Corpus,
) -> None:
    plan = plan_of(copied.split("train"))
    crop = plan.crop(0)
    right = read_crop(plan, 0).waveform.copy()
    substitute = plan.crop(0, 1)
    size = int(plan.split.members[crop.clip]["audio_size"])
    random = np.random.default_rng(0)
    skipped = []
    for place in sorted(random.integers(0, size, 40).tolist()):
        flip(copied, crop.clip, place)
        told: list[str] = []
        heard = read_crop(plan, 0, lambda planned, error, told=told: told.append(str(error)))
        if heard.skipped:
            assert plan.split.key(crop.clip) in told[0] and "is damaged" in told[0]
            assert substitute.clip != crop.clip
        else:
            assert not told and np.array_equal(heard.waveform, right)
        skipped.append(heard.skipped)
        flip(copied, crop.clip, place)
    assert 0 < sum(skipped) < len(skipped)


def test_every_byte_of_a_pcm16_crop_is_checked(pcm16: Corpus, tmp_path: Path) -> None:
    shutil.copytree(pcm16.root, tmp_path / "corpus")
    corpus = open_corpus(tmp_path / "corpus")
    plan = plan_of(corpus.split("train"))
    crop = plan.crop(3)
    first = PCM16_HEADER + 2 * crop.start
    for place in (first, first + CROP, first + 2 * CROP - 1):
        flip(corpus, crop.clip, place)
        assert read_crop(plan, 3).skipped == 1
        flip(corpus, crop.clip, place)
    assert read_crop(plan, 3).skipped == 0


def test_verify_sees_what_no_crop_reads(copied: Corpus) -> None:
    last = int(copied.split("train").members[2]["audio_size"]) - 1
    flip(copied, 2, last)
    with pytest.raises(DataError, match=r"train-.*\.tar"):
        verify(copied.root)


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "other"])
def test_checksums_of_blocks_that_are_not_the_indexed_ones_are_refused(
    copied: Corpus, damage: str
) -> None:
    path = copied.root / "blocks.npy"
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "other":
        np.save(path, np.load(path) + np.uint32(1))
    else:
        data[-3] ^= 1
        path.write_bytes(data[:-8] if damage == "cut" else data)
    with pytest.raises(DataError, match=r"blocks\.npy"):
        open_corpus(copied.root)


@pytest.mark.parametrize(
    ("key", "value"), [("audio_format", "mp3"), ("blocks_sha256", "0" * 63), ("blocks_sha256", 3)]
)
def test_an_index_that_says_something_else_is_refused(
    copied: Corpus, key: str, value: object
) -> None:
    path = copied.root / "index.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {key: value}), encoding="utf-8")
    with pytest.raises(DataError, match=r"index\.json: not an index"):
        open_corpus(copied.root)


def test_a_wav_file_in_which_more_than_samples_is_does_not_become_a_clip(
    pcm16: Corpus, tmp_path: Path
) -> None:
    members = list(islice(walk_members(pcm16.root / "train-000000.tar"), 2))
    good = members[0].content
    stereo = io.BytesIO()
    soundfile.write(stereo, np.zeros((len(good) // 2, 2)), 24_000, format="WAV", subtype="PCM_16")
    path = tmp_path / "train-000000.tar"
    for bad in (stereo.getvalue(), good + b"LIST\0\0\0\0", good[:-1], good[:40], b"", b"\xff" * 99):
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            add_member(tar, members[0].name, bad)
            add_member(tar, members[1].name, members[1].content)
        with pytest.raises(DataError, match="is not a WAV file of 16-bit mono PCM alone"):
            scan_shard(path, "train", 24_000, "pcm16")
    with pytest.raises(DataError, match=r"where a KEY\.flac should begin"):
        scan_shard(pcm16.root / "train-000000.tar", "train", 24_000)


def test_the_format_belongs_to_what_a_corpus_is_made_of(tmp_path: Path) -> None:
    collection(tmp_path / "in", 2)
    settings = replace(SETTINGS, audio_format="pcm16")
    corpus = prepare([tmp_path / "in"], tmp_path / "out", settings, **QUIET)
    assert corpus is not None and corpus.audio_format == "pcm16"
    assert json.loads((corpus.root / "index.json").read_bytes())["audio_format"] == "pcm16"
    with pytest.raises(InputError, match="audio_format was pcm16, now flac"):
        prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, **QUIET)
    with pytest.raises(InputError, match="--audio-format must be one of flac, pcm16"):
        prepare([tmp_path / "in"], tmp_path / "o", replace(settings, audio_format="mp3"), **QUIET)  # type: ignore[arg-type]


def test_a_corpus_of_before_the_option_counts_as_flac(tmp_path: Path) -> None:
    collection(tmp_path / "in", 2)
    before = prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, **QUIET)
    assert before is not None
    path = tmp_path / "out" / ".prepare.json"
    begun = json.loads(path.read_bytes())
    del begun["settings"]["audio_format"]
    path.write_text(json.dumps(begun), encoding="utf-8")
    with pytest.raises(InputError, match="audio_format was flac, now pcm16"):
        prepare(
            [tmp_path / "in"], tmp_path / "out", replace(SETTINGS, audio_format="pcm16"), **QUIET
        )
    assert prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, **QUIET) == before


@pytest.fixture
def store(pcm16: Corpus, tmp_path: Path) -> Iterator[Store]:
    shutil.copytree(pcm16.root, tmp_path / "store")
    with Store(tmp_path / "store") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_pcm16_corpus_at_a_url_gives_the_batches_of_the_folder(
    store: Store, pcm16: Corpus, tmp_path: Path
) -> None:
    corpus = open_remote(store.url, Cache(tmp_path / "cache", 1 << 30))
    assert corpus.sliceable
    assert same(take(plan_of(corpus.split("train"))), take(plan_of(pcm16.split("train"))))
    assert store.asked["blocks.npy"] == 1
    again = open_remote(store.url, Cache(tmp_path / "cache", 1 << 30))
    assert again == corpus and store.asked["blocks.npy"] == 1


def test_a_block_file_reads_as_a_file_and_each_block_once() -> None:
    content = np.random.default_rng(0).bytes(3 * BLOCK_BYTES + 77)
    asked: list[int] = []

    def read(first: int, last: int) -> bytes:
        asked.append(first)
        return content[first * BLOCK_BYTES : last * BLOCK_BYTES]

    file, plain = BlockFile(len(content), read), io.BytesIO(content)
    random = np.random.default_rng(1)
    for _ in range(300):
        place, size = random.integers(0, len(content)), random.integers(0, 2 * BLOCK_BYTES)
        assert file.seek(int(place)) == plain.seek(int(place))
        ours, theirs = bytearray(size), bytearray(size)
        assert file.readinto(ours) == plain.readinto(theirs)
        assert ours == theirs and file.tell() == plain.tell()
    assert sorted(asked) == list(range(count_blocks(len(content))))
    assert file.seek(-5, io.SEEK_END) == plain.seek(-5, io.SEEK_END)
    assert file.seek(-2, io.SEEK_CUR) == plain.seek(-2, io.SEEK_CUR)


def test_tokens_lie_beside_a_pcm16_corpus_as_beside_any(pcm16: Corpus, tmp_path: Path) -> None:
    shutil.copytree(pcm16.root, tmp_path / "corpus")
    corpus = open_corpus(tmp_path / "corpus")
    tokens_root(corpus, "numbers").mkdir(parents=True)
    for (shard, keys), (_, clips) in zip(shard_keys(corpus), corpus.shard_rows(), strict=True):
        lengths = corpus.split(shard.split).num_samples
        codes = [np.full((int(lengths[clip]) // HOP, 1), clip, np.uint16) for clip in clips]
        path = tokens_root(corpus, "numbers") / shard.file
        write_token_shard(path, "numbers", zip(keys, codes, strict=True))
    settings = TokenSettings("numbers", "0" * 64, corpus.sample_rate, HOP, 1, 1024)
    tokens = write_token_index(corpus, "numbers", settings)
    split = corpus.split("train")
    plan = CropPlan(
        split, crop_samples=CROP, hop_samples=HOP, seed=7, tokens={"numbers": tokens.split("train")}
    )
    for position in range(5):
        crop = read_crop(plan, position)
        assert (crop.codes["numbers"] == plan.crop(position).clip).all()
    file = corpus.shards[0].file
    (tmp_path / "merged").mkdir()
    merge_shard(tokens, file, tmp_path / "merged")
    names = [member.name.partition(".")[2] for member in walk_members(tmp_path / "merged" / file)]
    assert names[:3] == ["wav", "json", "numbers.npy"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pins memory for a GPU")
def test_batches_are_pinned_as_they_are_stored(pcm16: Corpus) -> None:
    plan = plan_of(pcm16.split("train"))
    for workers in (0, 1):
        stream = training_batches(plan, SHARE, first_update=0, workers=workers, pin_memory=True)
        with closing(stream) as endless:  # type: ignore[type-var]
            batch = next(endless)
        assert batch.waveform.is_pinned() and batch.waveform.dtype == torch.int16
