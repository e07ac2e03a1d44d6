import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).parents[1] / "campaigns" / "kill_prepare.py"


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_any_instant_and_run_again_it_ends_with_the_same_bytes(ranks):
    """The short form of tests/campaigns/kill_prepare.py, which has the longer one."""
    options = ("--kills", "3", "--tracks", "6", "--workers", "1", "--ranks", str(ranks))
    run = subprocess.run(
        [sys.executable, str(CAMPAIGN), *options], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 kills, 3 corpora of the same bytes" in run.stdout
