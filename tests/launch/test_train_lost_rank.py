"""A rank that is killed, stopped or fails ends the job soon, and is named."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_parts import ENVIRONMENT, TORCHRUN, TRAIN, deepspeed_launch
from training_parts import SMALL

from etude.data.shards import Corpus
from etude.pretrain.launchers import start_time

HANG_SECONDS = 6


@pytest.fixture
def recipe(small_corpus: Corpus, tmp_path: Path) -> Path:
    """A run that would go on for hours."""
    cqt = {"kind": "cqt", "bins": 24, "bins_per_octave": 12, "fmin": 220.0, "scale": "log"}
    values = {
        "run": {"dir": str(tmp_path / "run")},
        "data": {"corpus": str(small_corpus.root), "crop_seconds": 1.0, "workers": 0},
        "model": SMALL,
        "objective": {"targets": {"cqt": cqt}},
        "train": {
            "max_steps": 1_000_000,
            "global_batch": 4,
            "micro_batch": 2,
            "precision": "fp32",
            "hang_seconds": HANG_SECONDS,
        },
        "optim": {"lr": 1e-4, "warmup_steps": 2},
        "checkpoint": {"every_steps": 2},
        "logging": {"every_steps": 1000, "valid_every_steps": 1000, "tensorboard": False},
        "health": {"every_steps": 0},
    }
    path = tmp_path / "endless.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture
def running(request: pytest.FixtureRequest, recipe: Path) -> Iterator[tuple[Any, Path]]:
    """A job of two ranks that has trained some updates, and its folder."""
    launcher = TORCHRUN if request.param == "torchrun" else deepspeed_launch(2)
    process = subprocess.Popen(
        [*launcher, str(TRAIN), str(recipe)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    folder = recipe.parent / "run"
    try:
        deadline = time.monotonic() + 200
        while not (folder / "checkpoints" / "latest").is_file():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.2)
        yield process, folder
    finally:
        for rank in (0, 1):
            if (state := state_of(folder, rank)) and start_time(state["pid"]) == state["started"]:
                os.kill(state["pid"], signal.SIGKILL)
        process.kill()
        process.communicate()


def state_of(folder: Path, rank: int) -> dict[str, Any] | None:
    path = folder / "alive" / f"rank-{rank:05d}.json"
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize(
    ("running", "number", "rank"),
    [
        ("torchrun", signal.SIGKILL, 1),
        ("torchrun", signal.SIGSTOP, 0),
        ("deepspeed.launcher.launch", signal.SIGSTOP, 1),
    ],
    indirect=["running"],
)
def test_a_rank_that_is_killed_or_stopped_ends_the_job_and_is_named(
    running: tuple[Any, Path], number: signal.Signals, rank: int
) -> None:
    process, folder = running
    states = [state_of(folder, each) for each in (0, 1)]
    lost = states[rank]
    assert lost is not None and lost["rank"] == rank
    os.kill(lost["pid"], number)
    _, said = process.communicate(timeout=HANG_SECONDS + 60)
    assert process.returncode != 0

    done = json.loads((folder / "EXIT.json").read_text())
    assert (done["code"], done["rank"]) == (76, rank), said
    assert f"rank {rank} (process {lost['pid']} on" in done["reason"]
    assert Path(done["last_good_checkpoint"]).is_dir()
    for state in states:  # nothing is left behind
        assert state is not None and start_time(state["pid"]) != state["started"]
    if number == signal.SIGSTOP:
        stacks = (folder / f"stacks-rank-{1 - rank}.txt").read_text()
        assert "trainer.py" in stacks and "in fit" in stacks
