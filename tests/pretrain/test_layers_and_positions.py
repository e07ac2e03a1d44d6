"""Runs whose encoder has conformer layers or rotary positions."""

from pathlib import Path

import pytest
from campaigns.tiny_runs import make_corpus, write_recipe
from engine_parts import DDP, lines, run

from etude.pretrain.config_file import load_config
from etude.pretrain.errors import ConfigError


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers")
    return write_recipe(folder, "music2vec", make_corpus(folder), dropout=0.1)


def test_frames_cannot_be_skipped_with_rotary_positions(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"objective\.decoder .* model\.positions: rotary"):
        load_config(recipe, ["model.positions=rotary", "objective.decoder.dim=16"])


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    "words",
    [["model.layer=conformer", "model.norm=pre"], ["model.positions=rotary"]],
    ids=["conformer", "rotary"],
)
def test_a_run_with_a_teacher_learns(recipe: Path, tmp_path: Path, words: list[str]) -> None:
    run(recipe, tmp_path / "run", *DDP, "data.workers=0", *words)
    written = lines(tmp_path / "run")
    assert written[-1]["loss"] < written[0]["loss"]
