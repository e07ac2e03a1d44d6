"""The label check: right labels pass with their numbers, each kind of wrong ones is named."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_parts import GRID, feature_settings, small_quantizer

from etude.data.errors import DataError
from etude.data.packing import Packing
from etude.data.plan import CropPlan
from etude.data.shards import Corpus, open_corpus
from etude.data.tokens import (
    Codes,
    open_tokens,
    shard_keys,
    tokens_root,
    write_token_index,
    write_token_shard,
)
from etude.pretrain.codec import Codec
from etude.pretrain.config import Config
from etude.pretrain.encoding import encode_corpus
from etude.pretrain.inputs import check_inputs
from etude.pretrain.label_check import check_labels, check_stored
from etude.pretrain.quantizer import save_quantizer

NAME = "encodec_24khz"
HALF_SECOND = 37


def rewritten(
    corpus: Corpus,
    folder: Path,
    change: Callable[[int, Codes], Codes],
    packing: Packing | None = None,
    **settings: object,
) -> Corpus:
    """A copy of an encoded corpus whose training tokens are changed."""
    shutil.copytree(corpus.root, folder / "corpus")
    copy = open_corpus(folder / "corpus")
    tokens = open_tokens(corpus, NAME)
    shutil.rmtree(tokens_root(copy, NAME))
    tokens_root(copy, NAME).mkdir()
    seen = {"train": 0, "valid": 0}
    for shard, keys in shard_keys(copy):
        stored = tokens.split(shard.split)
        rows = range(seen[shard.split], seen[shard.split] + len(keys))
        seen[shard.split] += len(keys)
        changed = [
            change(row, stored.read(row)) if shard.split == "train" else stored.read(row)
            for row in rows
        ]
        path = tokens_root(copy, NAME) / shard.file
        write_token_shard(path, NAME, zip(keys, changed, strict=True), packing=packing)
    write_token_index(copy, NAME, replace(tokens.settings, **settings), packing=packing)
    return copy


def verdict(corpus: Corpus, codec: Codec | None = None) -> list[str]:
    tokens = open_tokens(corpus, NAME).split("train")
    split = corpus.split("train")
    plan = CropPlan(split, crop_samples=48_000, hop_samples=320, seed=0, tokens={NAME: tokens})
    return list(check_stored("codec", plan, tokens, grid=GRID, codec=codec, seed=0))


@pytest.fixture(scope="module")
def longer(small_corpus: Corpus, codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two minutes with tokens: enough to find a shift without the codec."""
    root = tmp_path_factory.mktemp("longer") / "corpus"
    shutil.copytree(small_corpus.root, root)
    corpus = open_corpus(root)
    assert encode_corpus(corpus, codec) is not None
    return corpus


def test_right_tokens_pass_and_their_use_is_told(
    encoded: Corpus, longer: Corpus, codec: Codec
) -> None:
    with_weights, without = verdict(encoded, codec), verdict(longer)
    assert len(with_weights) == len(without) == 9
    tokens = open_tokens(encoded, NAME).split("train")
    every = np.concatenate([tokens.read(row) for row in range(len(encoded.split("train")))])
    used = len(np.unique(every[:, 3]))
    assert with_weights[3].startswith(f"codec/q3: {used} of 1024 labels in {len(every):,} frames")
    assert "were made again and agree" in with_weights[-1]
    assert "tokens change when the sound does, at a lag of" in without[-1]


@pytest.mark.parametrize("frames", [HALF_SECOND, -HALF_SECOND])
@pytest.mark.parametrize("given", [True, False])
def test_tokens_that_are_half_a_second_off_are_refused_with_and_without_weights(
    longer: Corpus, codec: Codec, tmp_path: Path, frames: int, given: bool
) -> None:
    shifted = rewritten(longer, tmp_path, lambda row, codes: np.roll(codes, frames, axis=0))
    side = "late" if frames > 0 else "early"
    with pytest.raises(DataError, match=rf"\.tar: member \S+\.npy.* 0\.[45]\d s {side}"):
        verdict(shifted, codec if given else None)


def test_packed_tokens_are_checked_as_plain_ones_are(
    encoded: Corpus, packed: Corpus, codec: Codec
) -> None:
    assert verdict(packed) == verdict(encoded)
    assert verdict(packed, codec) == verdict(encoded, codec)


def test_too_little_audio_to_tell_a_shift_is_said_so(encoded: Corpus) -> None:
    assert "cannot be told without the codec's weights" in verdict(encoded)[-1]


def test_tokens_of_other_audio_are_refused(encoded: Corpus, codec: Codec, tmp_path: Path) -> None:
    reversed_ = rewritten(encoded, tmp_path, lambda row, codes: codes[::-1].copy())
    with pytest.raises(DataError, match=r"\.tar: member \S+\.npy: .*they belong to other audio"):
        verdict(reversed_, codec)


def test_constant_tokens_of_one_clip_are_refused_by_name(encoded: Corpus, tmp_path: Path) -> None:
    def constant(row: int, codes: Codes) -> Codes:
        return np.full_like(codes, 3) if row == 2 else codes

    wrong = rewritten(encoded, tmp_path, constant)
    place = open_tokens(wrong, NAME).split("train").place(2)
    with pytest.raises(DataError, match="codebook 0 is 3 in all") as caught:
        verdict(wrong)
    assert str(caught.value).startswith(place)


def test_nearly_constant_tokens_are_refused(encoded: Corpus, tmp_path: Path) -> None:
    def most_alike(row: int, codes: Codes) -> Codes:
        changed = codes.copy()
        changed[np.arange(len(codes)) % 3 != 0, 5] = 7
        return changed

    with pytest.raises(DataError, match=r"label 7 makes up 6\d\.\d% of codec/q5's labels"):
        verdict(rewritten(encoded, tmp_path, most_alike))


def test_tokens_of_another_rate_are_refused_by_name(encoded: Corpus, tmp_path: Path) -> None:
    wrong = rewritten(encoded, tmp_path, lambda row, codes: codes[: len(codes) * 2 // 3])
    place = open_tokens(wrong, NAME).split("train").place(0)
    with pytest.raises(DataError, match=r"come at about 50\.0 Hz instead of 75") as caught:
        verdict(wrong)
    assert str(caught.value).startswith(place)


def test_one_array_that_ends_early_is_refused_by_name(encoded: Corpus, tmp_path: Path) -> None:
    wrong = rewritten(encoded, tmp_path, lambda row, codes: codes[:-1] if row == 4 else codes)
    place = open_tokens(wrong, NAME).split("train").place(4)
    with pytest.raises(DataError, match="1 of .* clips are so") as caught:
        verdict(wrong)
    assert str(caught.value).startswith(place)


@pytest.mark.parametrize("packing", [None, Packing(codebooks=8, bits=10)])
def test_codes_above_the_codebook_are_refused_by_name(
    encoded: Corpus, tmp_path: Path, packing: Packing | None
) -> None:
    def too_large(row: int, codes: Codes) -> Codes:
        changed = np.minimum(codes, 999)
        if row == 1:
            changed[9, 4] = 1000
        return changed

    wrong = rewritten(encoded, tmp_path, too_large, packing, codebook_size=1000)
    place = open_tokens(wrong, NAME).split("train").place(1)
    with pytest.raises(DataError, match="codebook 4 has 1000 at frame 9") as caught:
        verdict(wrong)
    assert str(caught.value).startswith(place)


def test_labels_made_in_training_are_counted_and_constant_ones_refused(
    encoded: Corpus, weights: Path, tmp_path: Path
) -> None:
    save_quantizer(small_quantizer(), tmp_path / "good.safetensors", report={})
    constant = small_quantizer(classes=2, settings=feature_settings("chroma", bins=12))
    constant.centroids[1] = 1e6
    save_quantizer(constant, tmp_path / "constant.safetensors", report={})

    def lines(**targets: dict[str, object]) -> list[str]:
        values = {
            "run": {"dir": tmp_path / "run"},
            "data": {"corpus": encoded.root, "crop_seconds": 2.0},
            "objective": {"targets": targets},
            "train": {"max_steps": 1, "global_batch": 2},
            "optim": {"lr": 1e-3, "warmup_steps": 0},
        }
        config = Config.model_validate(values)
        inputs = check_inputs(config, rank=0, ranks=1, device="cpu")
        return list(check_labels(config, inputs))

    good = {"kind": "kmeans", "centroids": tmp_path / "good.safetensors"}
    online = {"kind": "codec", "source": "online", "weights": weights, "codebooks": 2}
    told = lines(timbre=good, codec=online)
    assert told[0].startswith("timbre: ") and " of 7 labels in" in told[0]
    assert [line.split(":")[0] for line in told[1:]] == [f"codec/q{k}" for k in range(2)]
    with pytest.raises(DataError, match="objective.targets.harmony: label 0 makes up 100.0%"):
        lines(harmony={"kind": "kmeans", "centroids": tmp_path / "constant.safetensors"})


def test_broken_tokens_are_named_as_such_whatever_other_targets_there_are(
    encoded: Corpus, tmp_path: Path
) -> None:
    wrong = rewritten(encoded, tmp_path, lambda row, codes: codes[: len(codes) // 4])
    save_quantizer(small_quantizer(), tmp_path / "good.safetensors", report={})
    targets = {
        "timbre": {"kind": "kmeans", "centroids": tmp_path / "good.safetensors"},
        "codec": {"kind": "codec"},
    }
    config = Config.model_validate(
        {
            "run": {"dir": tmp_path / "run"},
            "data": {"corpus": wrong.root, "crop_seconds": 2.0},
            "objective": {"targets": targets},
            "train": {"max_steps": 1, "global_batch": 2},
            "optim": {"lr": 1e-3, "warmup_steps": 0},
        }
    )
    inputs = check_inputs(config, rank=0, ranks=1, device="cpu")
    with pytest.raises(DataError, match=r"come at about 1\d\.\d Hz instead of 75"):
        list(check_labels(config, inputs))
