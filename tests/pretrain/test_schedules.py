"""The learning rate over a run."""

import pytest

from etude.pretrain.schedules import warmup_linear


def test_the_rate_rises_to_its_peak_and_falls_to_zero_in_straight_lines() -> None:
    rate = warmup_linear(2.0, warmup_steps=4, schedule_steps=12)
    assert [rate(update) for update in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    falls = [rate(update) for update in range(4, 13)]
    assert falls == pytest.approx([2.0 * (12 - update) / 8 for update in range(4, 13)])
    assert rate(12) == rate(1000) == 0.0


def test_the_first_update_is_not_wasted() -> None:
    assert warmup_linear(1.0, warmup_steps=100, schedule_steps=1000)(0) == 0.01
    assert warmup_linear(1.0, warmup_steps=0, schedule_steps=10)(0) == 1.0


def test_a_run_that_stops_early_is_on_the_longer_schedule() -> None:
    rate = warmup_linear(1.0, warmup_steps=10, schedule_steps=110)
    assert rate(60) == pytest.approx(0.5)


def test_a_warm_up_longer_than_the_run_stays_finite() -> None:
    rate = warmup_linear(1.0, warmup_steps=10, schedule_steps=5)
    assert rate(4) == 0.5 and rate(10) == 0.0
