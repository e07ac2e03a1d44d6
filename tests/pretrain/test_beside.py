"""Commands beside training: behind it in every queue, gone with it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from etude.pretrain.probing.beside import Beside

PATIENCE_SECONDS = 60.0
SPAWNS = """
import json, os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
nice, cores = os.getpriority(os.PRIO_PROCESS, 0), len(os.sched_getaffinity(0))
said = {"pids": [os.getppid(), os.getpid(), child.pid], "nice": nice, "cores": cores,
        "threads": os.environ["OMP_NUM_THREADS"], "oom": open("/proc/self/oom_score_adj").read()}
open(sys.argv[1] + ".part", "w").write(json.dumps(said))
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(600)
"""
BEGINS = """
import sys, time
from pathlib import Path
from etude.pretrain.probing.beside import Beside
Beside([sys.executable, "-c", sys.argv[1], sys.argv[2]], cores=1, environment={},
       said=Path(sys.argv[2] + ".log"))
time.sleep(600)
"""


def wait_for(path: Path) -> dict[str, object]:
    until = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    said: dict[str, object] = json.loads(path.read_text())
    return said


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_gone(pids: list[int]) -> bool:
    until = time.monotonic() + PATIENCE_SECONDS
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_a_command_gets_the_last_place_in_every_queue(tmp_path: Path) -> None:
    code = [sys.executable, "-c", SPAWNS, str(tmp_path / "said")]
    beside = Beside(code, cores=1, environment={}, said=tmp_path / "log")
    said = wait_for(tmp_path / "said")
    assert beside.status() is None
    assert (said["nice"], said["cores"], said["threads"]) == (19, 1, "1")
    assert int(str(said["oom"])) == 1000
    beside.end()
    assert beside.status() == -signal.SIGKILL
    assert all_gone(said["pids"])  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_whoever_began_it_takes_it_along_however_it_dies(
    tmp_path: Path, number: signal.Signals
) -> None:
    trainer = subprocess.Popen([sys.executable, "-c", BEGINS, SPAWNS, str(tmp_path / "said")])
    pids = wait_for(tmp_path / "said")["pids"]
    os.kill(trainer.pid, number)
    assert trainer.wait() == -number
    assert all_gone(pids)  # type: ignore[arg-type]


def test_a_guard_that_is_killed_leaves_nothing_behind_once_it_is_asked(tmp_path: Path) -> None:
    code = [sys.executable, "-c", SPAWNS, str(tmp_path / "said")]
    beside = Beside(code, cores=1, environment={}, said=tmp_path / "log")
    pids = wait_for(tmp_path / "said")["pids"]
    os.kill(beside.pid, signal.SIGKILL)
    until = time.monotonic() + PATIENCE_SECONDS
    while (status := beside.status()) is None and time.monotonic() < until:
        time.sleep(0.01)
    assert status == -signal.SIGKILL
    assert all_gone(pids)  # type: ignore[arg-type]


def test_status_and_last_words_are_the_commands(tmp_path: Path) -> None:
    code = "import sys; [print(n, flush=True) for n in range(9)]; "
    code += "print('why', file=sys.stderr); sys.exit(3)"
    beside = Beside([sys.executable, "-c", code], cores=1, environment={}, said=tmp_path / "log")
    until = time.monotonic() + PATIENCE_SECONDS
    while (status := beside.status()) is None and time.monotonic() < until:
        time.sleep(0.01)
    assert status == 3 and beside.status() == 3
    beside.end()  # nothing to end any more
    words = beside.last_words(3).splitlines()
    assert len(words) == 3 and "why" in words
