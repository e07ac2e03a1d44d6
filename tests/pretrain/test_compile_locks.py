"""A lock that a killed start has left is named."""

import os
import time
from pathlib import Path

import pytest
import yaml
from run_parts import ENVIRONMENT, train
from training_parts import SMALL

from etude.data.shards import Corpus
from etude.pretrain.compile_locks import stale_locks

HOUR = 3600.0


def lock(root: Path, place: str, *, age: float) -> Path:
    path = root / place / "lock"
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_old_locks_are_found_and_those_of_a_compilation_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert stale_locks() == []
    old = lock(tmp_path, "deepspeed_shm_comm", age=HOUR)
    older = lock(tmp_path, "py311_cu128/fused_adam", age=2 * HOUR)
    lock(tmp_path, "cpu_adam", age=30.0)
    assert stale_locks() == [old, older]


def test_without_a_folder_of_its_own_the_usual_one_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert stale_locks() == []
    old = lock(tmp_path / ".cache" / "torch_extensions", "py311_cpu/fused_adam", age=HOUR)
    assert stale_locks() == [old]


def test_a_run_names_the_lock_before_it_may_hang(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = lock(tmp_path / "extensions", "fused_adam", age=HOUR)
    monkeypatch.setitem(ENVIRONMENT, "TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    cqt = {"kind": "cqt", "bins": 24, "bins_per_octave": 12, "fmin": 220.0}
    values = {
        "run": {"dir": str(tmp_path / "run")},
        "data": {"corpus": str(small_corpus.root), "crop_seconds": 1.0, "workers": 0},
        "model": SMALL,
        "objective": {"targets": {"cqt": cqt}},
        "train": {"max_steps": 1, "global_batch": 1, "precision": "fp32", "engine": "ddp"},
        "optim": {"lr": 1e-3, "warmup_steps": 1},
    }
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(values))
    done = train(recipe)
    assert done.returncode == 0
    assert str(old) in done.stderr and str(old) in (tmp_path / "run" / "train.log").read_text()
