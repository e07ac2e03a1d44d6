"""Tokens of a corpus: whole tracks encoded, cut per clip, whoever does it and however often."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training_parts import ROOT

from etude.data.audio import decode
from etude.data.errors import InputError
from etude.data.prepare import PrepareSettings, prepare
from etude.data.shards import Corpus, open_corpus
from etude.data.tar import walk_members
from etude.data.tokens import open_tokens, parse_codes, shard_keys, tokens_root
from etude.pretrain.codec import Codec
from etude.pretrain.encoding import encode_corpus

NAME = "encodec_24khz"


@pytest.fixture
def plain(short_corpus: Corpus, tmp_path: Path) -> Corpus:
    shutil.copytree(short_corpus.root, tmp_path / "corpus")
    return open_corpus(tmp_path / "corpus")


def token_bytes(corpus: Corpus) -> dict[str, bytes]:
    root = tokens_root(corpus, NAME)
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


def test_the_tokens_of_a_track_are_those_of_encoding_it_whole(
    encoded: Corpus, codec: Codec
) -> None:
    split, tokens = encoded.split("train"), open_tokens(encoded, NAME).split("train")
    tracks = split.members["track"]
    for track in np.unique(tracks)[:3]:
        rows = [int(row) for row in np.flatnonzero(tracks == track)]
        assert len(rows) > 1
        audio = np.concatenate([decode(split.read_audio_bytes(row))[0] for row in rows])
        whole = codec.encode(torch.from_numpy(audio)[None])[0].numpy()
        stored = np.concatenate([tokens.read(row) for row in rows])
        # Equal but for ties between codes that rounding decides.
        assert stored.shape == whole.shape
        assert np.mean(stored == whole) > 0.999
    for row in range(len(split)):
        assert len(tokens.read(row)) == split.num_samples[row] // codec.hop_samples


def test_an_interrupted_command_goes_on_to_the_same_bytes(
    encoded: Corpus, plain: Corpus, codec: Codec
) -> None:
    done = 0

    class Enough(Exception):
        pass

    def stop_late(clips: int) -> None:
        nonlocal done
        done += clips
        if done > 5:
            raise Enough

    with pytest.raises(Enough):
        encode_corpus(plain, codec, lanes=3, chunk_seconds=2.0, advance=stop_late)
    finished = {path.name for path in tokens_root(plain, NAME).glob("*.tar")}
    assert finished and finished < {shard.file for shard in plain.shards}
    with pytest.raises(InputError, match="begun but is not finished"):
        open_tokens(plain, NAME)
    announced: list[int] = []
    encode_corpus(plain, codec, lanes=3, chunk_seconds=2.0, begin=announced.append)
    assert announced == [sum(s.samples for s in plain.shards if s.file not in finished)]
    assert token_bytes(plain) == token_bytes(encoded)


def test_ranks_that_share_the_shards_make_the_same_bytes(
    encoded: Corpus, plain: Corpus, codec: Codec
) -> None:
    share = {"lanes": 3, "chunk_seconds": 2.0, "ranks": 2}
    assert encode_corpus(plain, codec, rank=1, **share) is None
    assert encode_corpus(plain, codec, rank=0, **share) is not None
    assert token_bytes(plain) == token_bytes(encoded)


def test_packed_tokens_are_the_plain_ones_in_ten_bytes_per_frame(
    encoded: Corpus, packed: Corpus
) -> None:
    for name in ("train", "valid"):
        plain_ones = open_tokens(encoded, NAME).split(name)
        packed_ones = open_tokens(packed, NAME).split(name)
        for clip in range(len(encoded.split(name))):
            whole = plain_ones.read(clip)
            assert np.array_equal(packed_ones.read(clip), whole)
            assert np.array_equal(packed_ones.read(clip, start=40, frames=75), whole[40:115])
    for shard in packed.shards:
        members = walk_members(tokens_root(packed, NAME) / shard.file)
        others = walk_members(tokens_root(encoded, NAME) / shard.file)
        for member, other in zip(members, others, strict=True):
            assert member.name == other.name
            assert (len(member.content) - 128) * 16 == (len(other.content) - 128) * 10


def test_a_folder_goes_on_in_the_layout_that_it_was_begun_with(
    encoded: Corpus, packed: Corpus, plain: Corpus, codec: Codec
) -> None:
    with pytest.raises(InputError, match=r"with plain tokens \(16 bits.*without --packed, or"):
        encode_corpus(encoded, codec, packed=True)
    with pytest.raises(InputError, match=r"with packed tokens \(10 bits.*with --packed, or"):
        encode_corpus(packed, codec)
    share = {"lanes": 3, "chunk_seconds": 2.0, "packed": True}
    assert encode_corpus(plain, codec, rank=0, ranks=2, **share) is None
    with pytest.raises(InputError, match="Go on with --packed"):
        encode_corpus(plain, codec)
    assert encode_corpus(plain, codec, **share) is not None
    assert token_bytes(plain) == token_bytes(packed)


def test_another_codec_in_the_same_folder_is_refused(encoded: Corpus, codec: Codec) -> None:
    other = Codec.__new__(Codec)
    other.__dict__.update(codec.__dict__)
    other.weights_sha256 = "f" * 64
    with pytest.raises(InputError, match=r"begun with other settings: weights_sha256 was \w+"):
        encode_corpus(encoded, other)


def test_clips_that_are_no_whole_number_of_frames_are_refused(
    short_corpus: Corpus, codec: Codec, tmp_path: Path
) -> None:
    source = short_corpus.root.parent / "music"
    settings = PrepareSettings(clip_seconds=5.001, min_seconds=3)
    corpus = prepare([source], tmp_path / "odd", settings, workers=0)
    with pytest.raises(InputError, match=r"has 120024 samples, no whole number of frames of 320"):
        encode_corpus(corpus, codec)


def test_a_corpus_of_another_rate_is_refused(
    short_corpus: Corpus, codec: Codec, tmp_path: Path
) -> None:
    source = short_corpus.root.parent / "music" / "tune 0.flac"
    settings = PrepareSettings(sample_rate=16_000, min_seconds=3)
    corpus = prepare([source], tmp_path / "slow", settings, workers=0)
    with pytest.raises(InputError, match=r"has 16000 Hz, but encodec_24khz hears 24000 Hz"):
        encode_corpus(corpus, codec)


def test_the_command_encodes_merges_and_says_what_is_missing(
    encoded: Corpus, packed: Corpus, weights: Path, plain: Corpus, tmp_path: Path
) -> None:
    def run(*words: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "launch/encode.py", *map(str, words)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    absent = run(plain.root, "--weights", tmp_path / "absent.th")
    assert absent.returncode == 2
    assert absent.stderr.startswith("error: there is no file") and "encodec_24khz-" in absent.stderr
    made = run(plain.root, "--weights", weights, "--lanes", 3, "--chunk-seconds", 2)
    assert made.returncode == 0, made.stderr
    assert token_bytes(plain) == token_bytes(encoded)
    merged = run(plain.root, "--merge", tmp_path / "merged")
    assert merged.returncode == 0, merged.stderr
    for shard, keys in shard_keys(plain):
        names = [member.name for member in walk_members(tmp_path / "merged" / shard.file)]
        assert names == [f"{k}.{end}" for k in keys for end in ("flac", "json", f"{NAME}.npy")]
    shutil.rmtree(tokens_root(plain, NAME))
    made = run(plain.root, "--weights", weights, "--lanes", 3, "--chunk-seconds", 2, "--packed")
    assert made.returncode == 0 and "8 codebooks of 1024 in 10 bits" in made.stdout
    assert token_bytes(plain) == token_bytes(packed)
    assert run(plain.root, "--merge", tmp_path / "again").returncode == 0
    for shard in plain.shards:
        ones = walk_members(tmp_path / "merged" / shard.file)
        others = walk_members(tmp_path / "again" / shard.file)
        for one, other in zip(ones, others, strict=True):
            assert one.name == other.name
            if one.name.endswith(".npy"):
                codes = parse_codes(one.content, one.name)
                assert np.array_equal(codes, parse_codes(other.content, other.name))
            else:
                assert one.content == other.content
    refused = run(plain.root, "--merge", tmp_path / "again", "--packed")
    assert refused.returncode == 2 and "--merge always writes plain uint16" in refused.stderr
