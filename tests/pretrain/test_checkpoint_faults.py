"""The campaign tests/campaigns/checkpoint_faults.py, in part; all of it is one command."""

from pathlib import Path

import pytest
from campaigns.checkpoint_faults import SITUATIONS, Fault, Saver, crash_everywhere, flip_bits

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture
def saver(tmp_path: Path) -> Saver:
    return Saver(tmp_path)


@pytest.mark.parametrize(
    ("situation", "fault"),
    [(0, "killed"), (2, "killed"), (3, "I/O error"), (2, "disk full")],
)
def test_a_save_disturbed_at_any_operation_leaves_a_valid_checkpoint(
    saver: Saver, situation: int, fault: Fault
) -> None:
    points, mistakes = crash_everywhere(saver, SITUATIONS[situation], fault)
    assert points > 20 and not mistakes


def test_every_flipped_bit_is_noticed(saver: Saver) -> None:
    assert flip_bits(saver, 200, seed=1) == []
