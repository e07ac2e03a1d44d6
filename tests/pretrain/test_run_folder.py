"""Which settings a run may be continued with."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from etude.pretrain.config import Config
from etude.pretrain.config_file import load_config
from etude.pretrain.errors import ConfigError
from etude.pretrain.run_folder import RunFolder, drop_folders, step_folders

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.lock()
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


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    script = (
        "import os, sys, time; from pathlib import Path\n"
        "from etude.pretrain.run_folder import RunFolder\n"
        "folder = RunFolder(Path(sys.argv[1])); folder.lock()\n"
        "if os.fork():  # the child is as a loader's worker, which outlives its parent\n"
        "    print('locked', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError, match="another process is training in this folder"):
            RunFolder(tmp_path / "run").lock()
        other.kill()
        other.wait()
        RunFolder(tmp_path / "run").lock()  # a killed run can be continued at once
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.stdout.close() if other.stdout else None


def test_what_was_made_after_a_step_is_dropped_and_nothing_else(tmp_path: Path) -> None:
    names = ("step-00000020", "step-00000040", "step-00000060", "step-00000060.tmp", "corpus")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    drop_folders(tmp_path, 40)
    assert {path.name for path in tmp_path.iterdir()} == {*names} - {"step-00000060"}
    assert list(step_folders(tmp_path)) == [20, 40]
    drop_folders(tmp_path / "nowhere", 0)
