"""The learning rate and a teacher's decay over a run."""

import math

import pytest

from etude.pretrain.schedules import ramp, tri_stage, warmup_linear


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


def fairseqs_tri_stage(update: int, *, peak: float, warmup: int, hold: int, decay: int) -> float:
    """``TriStageLRSchedule`` of fairseq with its default scales of .01, written out."""
    first = final = 0.01 * peak
    if update < warmup:
        return first + (peak - first) / warmup * update
    if update < warmup + hold:
        return peak
    if update <= warmup + hold + decay:
        return peak * math.exp(math.log(0.01) / decay * (update - warmup - hold))
    return final


@pytest.mark.parametrize(("warmup", "hold", "decay"), [(12, 360, 28), (0, 5, 3), (4, 0, 9)])
def test_three_stages_are_those_of_fairseq(warmup: int, hold: int, decay: int) -> None:
    rate = tri_stage(
        5e-4, warmup_steps=warmup, hold_steps=hold, schedule_steps=warmup + hold + decay
    )
    for update in range(warmup + hold + decay + 50):
        expected = fairseqs_tri_stage(update, peak=5e-4, warmup=warmup, hold=hold, decay=decay)
        assert rate(update) == pytest.approx(expected, rel=1e-9), update


def test_three_stages_turn_where_music2vecs_do() -> None:
    rate = tri_stage(5e-4, warmup_steps=12_000, hold_steps=360_000, schedule_steps=400_000)
    assert rate(0) == pytest.approx(5e-6)
    assert rate(6_000) == pytest.approx(5e-4 * 0.505)
    assert rate(11_999) < rate(12_000) == rate(200_000) == rate(372_000) == 5e-4
    assert rate(386_000) == pytest.approx(5e-5)
    assert rate(400_000) == rate(10**9) == pytest.approx(5e-6)


def test_three_stages_without_room_for_the_last_stay_finite() -> None:
    rate = tri_stage(1.0, warmup_steps=2, hold_steps=3, schedule_steps=5)
    assert [rate(update) for update in (2, 4, 5)] == [1.0, 1.0, 1.0]
    assert rate(6) == rate(100) == pytest.approx(0.01)


def test_a_ramp_is_a_straight_line_that_stays_at_its_end() -> None:
    decay = ramp(0.999, 0.9999, steps=30_000)
    assert decay(0) == pytest.approx(0.999, abs=1e-12)
    assert decay(10_000) == pytest.approx(0.9993, abs=1e-12)
    assert decay(30_000) == decay(10**7) == 0.9999
    assert decay(29_999) < 0.9999
    falling = ramp(1.0, 0.0, steps=4)
    assert [falling(update) for update in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_a_ramp_of_no_steps_is_at_its_end_at_once() -> None:
    assert ramp(0.5, 0.9, steps=0)(0) == 0.9
