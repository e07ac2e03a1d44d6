"""Ranks that would choose different micro-batches end with an error instead of waiting for ever."""

import subprocess
from pathlib import Path

import yaml
from run_parts import ENVIRONMENT, TORCHRUN
from training_parts import ROOT, SMALL

from etude.data.shards import Corpus

OF_RANK = f"""
import os, runpy, sys
sys.argv.append("perf.device_gbytes=" + ("1.5", "8.0")[int(os.environ["RANK"])])
sys.path.insert(0, {str(ROOT / "launch")!r})
runpy.run_path({str(ROOT / "launch" / "train.py")!r}, run_name="__main__")
"""
"""Trains, on devices that the ranks believe to be of different sizes."""


def test_ranks_with_different_memory_are_told_to_state_the_micro_batch(
    small_corpus: Corpus, tmp_path: Path
) -> None:
    values = {
        "run": {"dir": str(tmp_path / "run")},
        "data": {"corpus": str(small_corpus.root), "crop_seconds": 5.0, "workers": 0},
        "model": {**SMALL, "conv_dims": (64,) * 7},
        "objective": {"targets": {"cqt": {"kind": "cqt", "bins": 24, "fmin": 220.0}}},
        "train": {"max_steps": 1, "global_batch": 16, "engine": "ddp", "precision": "fp32"},
        "optim": {"lr": 0.001, "warmup_steps": 0},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "train.py").write_text(OF_RANK)
    done = subprocess.run(
        [*TORCHRUN, str(tmp_path / "train.py"), str(tmp_path / "tiny.yaml")],
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT,
    )
    assert done.returncode != 0
    # The launcher may end a rank as soon as the other has said it.
    assert "auto comes to different numbers on different ranks" in done.stderr
    assert "Give train.micro_batch" in done.stderr and "stated: perf.device_gbytes" in done.stderr
