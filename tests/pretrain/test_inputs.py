"""What is checked before a model is built."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from training_parts import small_encoder

from etude.data.errors import InputError
from etude.data.shards import Corpus
from etude.models.weights import save_encoder
from etude.pretrain.config import Config
from etude.pretrain.errors import ConfigError
from etude.pretrain.inputs import check_inputs

BASE = {
    "data": {"crop_seconds": 2.0},
    "model": {"layers": 2, "dim": 32, "heads": 4, "ffn_dim": 48, "position_groups": 4},
    "objective": {"targets": {"cqt": {"kind": "cqt", "bins": 24, "bins_per_octave": 12}}},
    "train": {"max_steps": 1, "global_batch": 2},
    "optim": {"lr": 1e-3, "warmup_steps": 0},
}


def settings(corpus: Corpus, **changes: object) -> Config:
    values = {**BASE, **changes}
    values["data"] = {**BASE["data"], "corpus": corpus.root}
    values["run"] = {"dir": corpus.root / "run"}
    return Config.model_validate(values)


def check(config: Config) -> None:
    check_inputs(config, rank=0, ranks=1, device="cpu")


def test_weights_of_another_shape_are_refused_with_what_differs(
    small_corpus: Corpus, tmp_path: Path
) -> None:
    save_encoder(small_encoder(dim=64, dropout=0.3), tmp_path)
    with pytest.raises(ConfigError, match=r"conv_dims .*; dim \(there 64, here 32\)") as caught:
        check(settings(small_corpus, init_from=tmp_path))
    assert "dropout" not in str(caught.value)
    model = {**BASE["model"], "conv_dims": (16,) * 7, "position_kernel": 16}
    save_encoder(small_encoder(), tmp_path)
    check(settings(small_corpus, model=model, init_from=tmp_path))


def test_a_missing_kmeans_file_is_looked_for_in_the_corpus(small_corpus: Corpus) -> None:
    objective = {"targets": {"timbre": {"kind": "kmeans"}}}
    with pytest.raises(ConfigError, match=str(small_corpus.root / "kmeans-timbre.safetensors")):
        check(settings(small_corpus, objective=objective))


def codec_settings(corpus: Corpus, *, model: dict[str, object] | None = None, **codec: object):
    target = {"kind": "codec", **codec}
    return settings(
        corpus, objective={"targets": {"tokens": target}}, model={**BASE["model"], **(model or {})}
    )


def test_stored_tokens_of_other_weights_than_given_are_refused(
    encoded: Corpus, weights: Path, tmp_path: Path
) -> None:
    check(codec_settings(encoded, weights=weights))
    other = torch.load(weights, weights_only=True)
    other["encoder.model.0.conv.conv.bias"] = other["encoder.model.0.conv.conv.bias"] + 1
    torch.save(other, tmp_path / "other.th")
    with pytest.raises(ConfigError, match=r"was made by other weights \(\w+\) than"):
        check(codec_settings(encoded, weights=tmp_path / "other.th"))


def test_tokens_that_are_not_the_models_frames_are_refused(encoded: Corpus) -> None:
    narrow = {"conv_strides": (5, 2, 2, 2, 2, 2, 1)}
    with pytest.raises(ConfigError, match="makes a frame of 320 samples .* one of every 160"):
        check(codec_settings(encoded, model=narrow))


def test_more_codebooks_than_were_stored_are_refused(encoded: Corpus, weights: Path) -> None:
    with pytest.raises(ConfigError, match=r"codebooks is 9, but \S+ has 8"):
        check(codec_settings(encoded, codebooks=9))
    with pytest.raises(ConfigError, match="codebooks is 9, but encodec_24khz makes 8"):
        check(codec_settings(encoded, codebooks=9, source="online", weights=weights))


def test_online_tokens_without_weights_are_refused_with_the_settings(encoded: Corpus) -> None:
    with pytest.raises(ValidationError, match="source: online needs weights"):
        codec_settings(encoded, source="online")


def test_plain_and_packed_tokens_of_one_codec_go_together(encoded: Corpus, packed: Corpus) -> None:
    config = codec_settings(encoded)
    values = config.model_dump(exclude_unset=True)
    values["data"]["corpus"] = tuple({"corpus": corpus.root} for corpus in (encoded, packed))
    inputs = check_inputs(Config.model_validate(values), rank=0, ranks=1, device="cpu")
    one, other = (part.tokens["encodec_24khz"] for part in inputs.train.parts)
    assert one.tokens.packing is None and other.tokens.packing is not None
    assert (one.read(3) == other.read(3)).all()


def test_a_corpus_without_tokens_says_how_to_make_them(short_corpus: Corpus) -> None:
    with pytest.raises(InputError, match=r"launch/encode.py \S+ --codec encodec_24khz"):
        check(codec_settings(short_corpus))
