import io
import multiprocessing
import pickle
import shutil
import tarfile

import numpy as np
import pytest

from etude.data.audio import decode
from etude.data.errors import DataError, InputError
from etude.data.index import verify
from etude.data.shards import open_corpus
from etude.data.tar import BLOCK, walk_pairs


@pytest.fixture
def copied(small_corpus, tmp_path):
    """A corpus that a test may damage."""
    shutil.copytree(small_corpus.root, tmp_path / "corpus")
    return open_corpus(tmp_path / "corpus")


def first_shard(corpus):
    return corpus.root / corpus.shards[0].file


def read_in_another_process(split, clip):
    return split.read_audio_bytes(clip), split.key(clip)


def test_every_clip_has_the_length_rate_and_key_that_its_json_says(small_corpus):
    for name in ("train", "valid"):
        split = small_corpus.split(name)
        assert len(split) == len(split.num_samples) > 0
        keys = set()
        for clip in range(len(split)):
            samples, rate = decode(split.read_audio_bytes(clip))
            metadata = split.read_metadata(clip)
            key = split.key(clip)
            keys.add(key)
            assert len(samples) == split.num_samples[clip] == metadata["num_samples"]
            assert rate == metadata["sample_rate"] == small_corpus.sample_rate == 24000
            assert key.startswith(metadata["track"]) and "." not in key and key.isascii()
        assert len(keys) == len(split)
        assert small_corpus.seconds(name) == pytest.approx(split.num_samples.sum() / 24000)


def test_webdataset_reads_the_same_samples_in_the_same_order(small_corpus):
    webdataset = pytest.importorskip("webdataset")
    for name in ("train", "valid"):
        split = small_corpus.split(name)
        urls = [str(small_corpus.root / s.file) for s in small_corpus.shards if s.split == name]
        samples = list(webdataset.WebDataset(urls, shardshuffle=False))
        assert [sample["__key__"] for sample in samples] == [
            split.key(clip) for clip in range(len(split))
        ]
        for clip, sample in enumerate(samples):
            assert sample["flac"] == split.read_audio_bytes(clip)


def test_a_split_reads_the_same_after_pickling_and_in_forked_and_spawned_processes(small_corpus):
    split = small_corpus.split("train")
    here = read_in_another_process(split, 3)
    assert len(pickle.dumps(split)) < 5000
    assert read_in_another_process(pickle.loads(pickle.dumps(split)), 3) == here
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply(read_in_another_process, (split, 3)) == here


def test_the_index_stays_on_disk(small_corpus):
    members = small_corpus.split("train").members
    assert isinstance(members, np.memmap) and not members.flags.writeable


def test_clips_of_a_track_share_its_number_and_tracks_do_not_cross_splits(small_corpus):
    tracks = {}
    for name in ("train", "valid"):
        split = small_corpus.split(name)
        for clip in range(len(split)):
            track = split.read_metadata(clip)["track"]
            number = int(split.members[clip]["track"])
            assert tracks.setdefault(track, (name, number)) == (name, number)
    assert len(tracks) == len(set(tracks.values())) == 8


def test_a_folder_without_an_index_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match="launch/prepare.py"):
        open_corpus(tmp_path / "nowhere")


def test_an_unknown_split_is_refused(small_corpus):
    with pytest.raises(InputError, match="no split 'test' in this corpus, only train, valid"):
        small_corpus.split("test")


def test_a_missing_shard_is_named(copied):
    first_shard(copied).unlink()
    with pytest.raises(DataError, match=first_shard(copied).name):
        open_corpus(copied.root)


def test_a_shard_of_another_size_is_named(copied):
    with first_shard(copied).open("ab") as file:
        file.write(bytes(BLOCK))
    with pytest.raises(DataError, match=first_shard(copied).name):
        open_corpus(copied.root)


@pytest.mark.parametrize("name", ["index.json", "members.npy"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_index_is_named(copied, name, damage):
    data = bytearray((copied.root / name).read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    else:
        # A digit of a checksum in the JSON, the last byte of a length in the array.
        data[data.rindex(b'"sha256": "') + 12 if name == "index.json" else -3] ^= 1
    (copied.root / name).write_bytes(data)
    with pytest.raises(DataError, match=name):
        open_corpus(copied.root)


@pytest.mark.parametrize("part", ["audio", "json"])
def test_one_flipped_bit_in_a_member_is_found_on_reading_and_named(copied, part):
    split = copied.split("train")
    row = split.members[0]
    shard = copied.root / copied.shards[int(row["shard"])].file
    data = bytearray(shard.read_bytes())
    data[int(row[f"{part}_offset"]) + 20] ^= 4
    shard.write_bytes(data)
    read = split.read_audio_bytes if part == "audio" else split.read_metadata
    extension = "flac" if part == "audio" else "json"
    with pytest.raises(DataError) as error:
        read(0)
    assert shard.name in str(error.value) and f"{split.key(0)}.{extension}" in str(error.value)
    with pytest.raises(DataError, match=shard.name):
        verify(copied.root)
    split.read_audio_bytes(1)


def test_verify_accepts_a_whole_corpus(small_corpus):
    said = []
    assert verify(small_corpus.root, said.append) == small_corpus
    assert len(said) == len(small_corpus.shards)


def walk(path):
    return [pair.key for pair in walk_pairs(path)]


def end_of_content(data):
    return len(data.rstrip(b"\0")) // BLOCK * BLOCK + BLOCK


def test_a_shard_cut_at_any_block_is_refused(copied, tmp_path):
    data = first_shard(copied).read_bytes()
    end = end_of_content(data)
    boundaries = [*range(0, end, 101 * BLOCK), *range(end - 6 * BLOCK, end + 2 * BLOCK, BLOCK)]
    for pair in walk_pairs(first_shard(copied)):
        for member in (pair.audio, pair.metadata):
            boundaries += [member.offset - BLOCK, member.offset]
    cut = tmp_path / "cut.tar"
    for boundary in boundaries:
        cut.write_bytes(data[:boundary])
        with pytest.raises(DataError, match=r"cut\.tar: damaged shard, at byte"):
            walk(cut)
    cut.write_bytes(data[: end + 2 * BLOCK])
    assert walk(cut) == walk(first_shard(copied))


def test_a_flipped_bit_anywhere_in_a_header_is_refused(copied, tmp_path):
    data = bytearray(first_shard(copied).read_bytes())
    pairs = list(walk_pairs(first_shard(copied)))
    # The header in the middle, its first part in a small tar: every byte of it.
    start = pairs[1].audio.offset - BLOCK
    small = data[start : pairs[1].metadata.offset + BLOCK * (-(-pairs[1].metadata.size // BLOCK))]
    small += bytes(2 * BLOCK)
    path = tmp_path / "flipped.tar"
    path.write_bytes(small)
    assert walk(path) == [pairs[1].key]
    for position in range(BLOCK):
        flipped = bytearray(small)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(DataError):
            walk(path)


def make_tar(path, names, *, format=tarfile.USTAR_FORMAT, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w", format=format) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.type = 3, kind
            tar.addfile(member, io.BytesIO(b"abc"))
    return path


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.flac", "b.json"], "where the JSON of 'a.flac' should be"),
        (["a.flac"], "has no JSON after it"),
        (["a.json", "a.flac"], "where a KEY.flac should begin"),
        (["a.flac", "a.json", "a.flac", "a.json"], "a second sample with the key 'a'"),
        (["a.flac", "b.flac", "a.json", "b.json"], "where the JSON of 'a.flac' should be"),
        (["a.v1.flac", "a.v1.json"], "where a KEY.flac should begin"),
        ([".flac", ".json"], "where a KEY.flac should begin"),
        (["/etc/a.flac", "/etc/a.json"], "where a KEY.flac should begin"),
        (["../a.flac", "../a.json"], "where a KEY.flac should begin"),
    ],
)
def test_samples_that_are_not_adjacent_unique_pairs_are_refused(tmp_path, names, message):
    with pytest.raises(DataError, match=message):
        walk(make_tar(tmp_path / "x.tar", names))


def test_long_names_in_pax_headers_are_read(tmp_path):
    key = "k" * 300
    names = [f"{key}.flac", f"{key}.json"]
    assert walk(make_tar(tmp_path / "x.tar", names, format=tarfile.PAX_FORMAT)) == [key]


def test_links_garbage_and_data_after_the_end_are_refused(tmp_path):
    link = make_tar(tmp_path / "link.tar", ["a.flac"], kind=tarfile.SYMTYPE)
    garbage = tmp_path / "garbage.tar"
    garbage.write_bytes(np.random.default_rng(0).bytes(20 * BLOCK))
    trailing = make_tar(tmp_path / "trailing.tar", ["a.flac", "a.json"])
    trailing.write_bytes(trailing.read_bytes() + b"x" * BLOCK)
    empty = tmp_path / "empty.tar"
    empty.write_bytes(b"")
    for path in (link, garbage, trailing, empty):
        with pytest.raises(DataError, match=path.name):
            walk(path)


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        (tarfile.REGTYPE, 1 << 31, "no clip has more than 2\\^30"),
        (tarfile.XHDTYPE, 1 << 24, "an extended header of 16777216 bytes"),
    ],
)
def test_a_member_that_would_fill_the_memory_is_refused_by_its_header(
    tmp_path, kind, size, message
):
    member = tarfile.TarInfo("a.flac")
    member.size, member.type = size, kind
    path = tmp_path / "huge.tar"
    with path.open("wb") as file:  # holes: as large as it says, without a disk that large
        file.write(member.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(size + 4 * BLOCK)
    with pytest.raises(DataError, match=message):
        walk(path)
