"""What is checked before a model is built."""

from pathlib import Path

import pytest
from training_parts import small_encoder

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
