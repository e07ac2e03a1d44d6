"""Nothing that befalls a probe beside training ends the training."""

import logging
import sys
from pathlib import Path

import pytest
import yaml
from engine_parts import lines, run
from training_parts import SMALL

from etude.data.shards import Corpus
from etude.pretrain.probing import hook

pytestmark = pytest.mark.usefixtures("process_group")

STEPS = 2


@pytest.fixture(scope="module")
def recipe(short_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = {
        "run": {"dir": "unused"},
        "data": {"corpus": str(short_corpus.root), "crop_seconds": 1.0, "workers": 0},
        "model": SMALL,
        "objective": {"targets": {"random": {"kind": "random_projection", "classes": 32}}},
        "train": {
            **{"max_steps": STEPS, "global_batch": 2, "micro_batch": 2},
            **{"precision": "fp32", "engine": "ddp"},
        },
        "optim": {"lr": 0.001, "warmup_steps": 0},
        "logging": {"every_steps": 1, "tensorboard": False},
        "probe": {"every_steps": STEPS},
        "health": {"every_steps": 0, "min_target_std": 0.0, "min_prediction_std": 0.0},
    }
    path = tmp_path_factory.mktemp("failures") / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def check_failed(folder: Path, text: str, reason: str) -> None:
    assert f"the probe of update {STEPS} failed, training goes on" in text and reason in text
    (failed,) = (line for line in lines(folder) if "probe/failed" in line)
    assert (failed["step"], failed["probe/failed"]) == (STEPS, 1)
    assert [line["step"] for line in lines(folder) if "loss" in line] == [*range(1, STEPS + 1)]
    assert not list(folder.glob("probes/*/encoder.*"))


def test_a_probe_that_fails_is_counted_and_quoted_and_training_goes_on(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run(recipe, tmp_path / "run", "probe.tracks=2", "probe.seconds=5", "probe.tasks=[pitch]")
    check_failed(tmp_path / "run", caplog.text, "raise --tracks")


def test_a_probe_that_cannot_begin_has_failed(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no" / "python"))
    with caplog.at_level(logging.WARNING):
        run(recipe, tmp_path / "run")
    check_failed(tmp_path / "run", caplog.text, "No such file or directory")


def test_a_probe_whose_folder_is_taken_away_has_failed(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    command = tmp_path / "take_away.py"
    command.write_text("import shutil, sys; shutil.rmtree(sys.argv[1])\n")
    monkeypatch.setattr(hook, "_COMMAND", command)
    with caplog.at_level(logging.WARNING):
        run(recipe, tmp_path / "run")
    check_failed(tmp_path / "run", caplog.text, "results.json could not be read")
