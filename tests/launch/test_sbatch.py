"""``launch/train.sbatch`` puts a job back into the queue if, and only if, the run was interrupted.

There is no Slurm here: `srun` and `scontrol` are scripts that write down how they were called.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from run_parts import LAUNCH


def submit(
    tmp_path: Path, *words: str, status: int, said: int | None, step: int = 0
) -> tuple[int, str]:
    """The job's exit status, and the calls it made."""
    calls = tmp_path / "calls"
    exit_json = tmp_path / "run" / "EXIT.json"
    content = json.dumps({"code": said, "step": step})
    write = "" if said is None else f"echo '{content}' > {exit_json}\n"
    scripts = {
        "srun": f"echo srun $* >> {calls}\n{write}exit {status}\n",
        "scontrol": f"echo scontrol $* >> {calls}\n",
    }
    (tmp_path / "run").mkdir(exist_ok=True)
    exit_json.write_text('{"code": 75}')  # of the start before
    for name, body in scripts.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{body}")
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    done = subprocess.run(
        ["bash", str(LAUNCH / "train.sbatch"), *words], env=environment, capture_output=True
    )
    return done.returncode, calls.read_text() if calls.is_file() else ""


@pytest.mark.parametrize(
    ("status", "said", "requeued"),
    [
        (0, 0, False),
        (75, 75, True),
        (143, 75, True),  # what srun makes of it, and what the run said
        (75, None, True),  # before the run had a folder
        (4, 4, False),
        (76, 76, False),
        (2, None, False),
    ],
)
def test_an_interrupted_run_is_queued_again_and_no_other(
    tmp_path: Path, status: int, said: int | None, requeued: bool
) -> None:
    words = ("configs/quickstart.yaml", f"run.dir={tmp_path / 'run'}")
    ended, calls = submit(tmp_path, *words, status=status, said=said)
    assert calls.startswith(f"srun python launch/train.py {' '.join(words)}\n")
    assert ("scontrol requeue 17" in calls) == requeued
    assert ended == (0 if requeued else status)


def test_a_job_that_gets_no_further_is_not_queued_for_ever(tmp_path: Path) -> None:
    words = ("configs/quickstart.yaml", f"run.dir={tmp_path / 'run'}")
    steps = (0, 0, 40, 40, 55, 55, 55)
    ended = [submit(tmp_path, *words, status=75, said=75, step=step)[0] for step in steps]
    assert ended == [0, 0, 0, 0, 0, 0, 75]


def test_without_a_folder_nothing_is_started(tmp_path: Path) -> None:
    ended, calls = submit(tmp_path, "configs/quickstart.yaml", status=0, said=0)
    assert (ended, calls) == (2, "")
