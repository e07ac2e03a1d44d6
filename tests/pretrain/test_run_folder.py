"""Which settings a run may be continued with."""

from pathlib import Path

import pytest
import yaml

from etude.pretrain.config import Config
from etude.pretrain.config_file import load_config
from etude.pretrain.errors import ConfigError
from etude.pretrain.run_folder import RunFolder

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.start(config())
    return folder


def config(*words: str) -> Config:
    return load_config(QUICKSTART, words)


def test_the_same_settings_and_those_that_may_differ_continue(folder: RunFolder) -> None:
    folder.check_config(config())
    folder.check_config(config("train.max_steps=7", "data.cache_gb=3.0", "logging.every_steps=3"))


def test_others_are_refused_with_the_list(folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr \(was 0\.001, now 0\.5\); seed"):
        folder.check_config(config("seed=1", "optim.lr=0.5"))


def test_a_setting_that_did_not_exist_then_has_its_default(folder: RunFolder) -> None:
    path = folder.path / "config.yaml"
    content = yaml.safe_load(path.read_text())
    del content["config"]["data"]["weighting"], content["config"]["health"]
    path.write_text(yaml.safe_dump(content))
    folder.check_config(config())
    with pytest.raises(ConfigError, match=r"data\.weighting \(was 'hours', now 'probability'\)"):
        folder.check_config(config("data.weighting=probability"))


def test_a_setting_that_is_gone_is_refused_by_name(folder: RunFolder) -> None:
    path = folder.path / "config.yaml"
    content = yaml.safe_load(path.read_text())
    content["config"]["data"]["shuffle_buffer"] = 100
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"data\.shuffle_buffer \(was 100, now None\)"):
        folder.check_config(config())
