"""The watchdog ends its process whatever else fails; whole runs are in tests/launch."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys, time
from pathlib import Path
from etude.pretrain.run_folder import RunFolder
from etude.pretrain.watchdog import Watchdog

with Watchdog(RunFolder(Path(sys.argv[1])), rank=1, ranks=2, limit=0.5) as watchdog:
    watchdog.at("data", 7)
    time.sleep(60)
"""


def stalled(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, timeout=50
    )


def test_a_stalled_rank_says_where_it_is_and_ends(tmp_path: Path) -> None:
    done = stalled(tmp_path / "run")
    assert done.returncode == 76
    assert (
        "error: no progress for 0.5 s (train.hang_seconds): rank 1 has been in `data`"
        in done.stderr
    )
    assert '"code": 76' in (tmp_path / "run" / "EXIT.json").read_text()
    assert "time.sleep" not in done.stderr and (tmp_path / "run" / "stacks-rank-1.txt").is_file()


def test_it_ends_though_it_cannot_write_how(tmp_path: Path) -> None:
    # As when several ranks write EXIT.json at once, or the disk is what everybody waits for.
    (tmp_path / "run" / "EXIT.json.part").mkdir(parents=True)
    done = stalled(tmp_path / "run")
    assert done.returncode == 76
    assert "rank 1 has been in `data` of update 7" in done.stderr


def test_it_watches_on_though_its_own_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "alive").write_text("in the way")
    done = stalled(tmp_path / "run")
    assert done.returncode == 76
    assert '"code": 76' in (tmp_path / "run" / "EXIT.json").read_text()
