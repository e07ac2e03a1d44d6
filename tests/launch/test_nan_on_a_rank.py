"""One rank's NaN is every rank's: the campaign's short version."""

import subprocess

from run_parts import ENVIRONMENT, TORCHRUN
from training_parts import ROOT


def test_two_ranks_decide_the_same_about_the_nan_of_one_and_go_back_together() -> None:
    done = subprocess.run(
        [*TORCHRUN, str(ROOT / "tests" / "campaigns" / "nan_on_a_rank.py"), "--nans", "3"],
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 NaNs in" in done.stdout and " 0 mistakes" in done.stdout
