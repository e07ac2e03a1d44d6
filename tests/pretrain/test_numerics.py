"""What sticks out of a series, and how many lost updates are borne."""

import math
import random

import pytest

from etude.pretrain.errors import DivergedError
from etude.pretrain.numerics import SPIKE_WINDOW, Skips, find_spikes
from etude.pretrain.run_state import RunState


def noise(count: int, *, seed: int = 0) -> list[float]:
    generator = random.Random(seed)
    return [generator.gauss(10.0, 1.0) for _ in range(count)]


def test_a_value_far_above_the_ones_before_is_a_spike_and_far_below_is_none() -> None:
    values = noise(200)
    values[150], values[170] = 25.0, -25.0
    spikes, _ = find_spikes([], values, sigma=6.0)
    (spike,) = spikes
    before = values[150 - SPIKE_WINDOW : 150]
    mean = sum(before) / len(before)
    deviation = math.sqrt(sum((one - mean) ** 2 for one in before) / len(before))
    assert (spike.number, spike.value) == (150, 25.0)
    assert (spike.mean, spike.deviation) == pytest.approx((mean, deviation))
    assert spike.value > mean + 6 * deviation


def test_noise_and_a_falling_loss_have_no_spikes() -> None:
    assert find_spikes([], noise(5000), sigma=6.0)[0] == []
    falling = [7.0 * 0.99**n + 0.01 * one for n, one in enumerate(noise(1000, seed=1))]
    assert find_spikes([], falling, sigma=6.0)[0] == []


def test_few_values_are_not_judged() -> None:
    assert find_spikes([], [*noise(31), 1000.0], sigma=6.0)[0] == []
    assert len(find_spikes([], [*noise(32), 1000.0], sigma=6.0)[0]) == 1


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_not_finite_is_neither_judged_nor_compared_with(odd: float) -> None:
    values = noise(100)
    spikes, window = find_spikes([], [*values[:50], odd, *values[50:], 30.0], sigma=6.0)
    assert [spike.number for spike in spikes] == [101]
    assert window == [*values, 30.0]


def test_a_series_in_parts_is_judged_as_one() -> None:
    values = noise(300)
    values[40], values[250] = 30.0, 40.0
    whole, window = find_spikes([], values, sigma=6.0)
    parts, recent = [], []
    for first in range(0, 300, 7):
        found, recent = find_spikes(recent, values[first : first + 7], sigma=6.0)
        parts += [spike._replace(number=first + spike.number) for spike in found]
    assert parts == whole and recent == window and len(whole) == 2


def test_a_series_that_stands_still_shows_any_step_but_no_rounding() -> None:
    still = [3.0] * 40
    assert find_spikes([], [*still, 3.0 + 1e-9], sigma=6.0)[0] == []
    assert len(find_spikes([], [*still, 3.1], sigma=6.0)[0]) == 1


def test_zero_standard_deviations_ask_for_nothing() -> None:
    spikes, window = find_spikes([], [*noise(40), 1e9], sigma=0.0)
    assert spikes == [] and len(window) == 41


def test_lost_updates_are_counted_among_the_last() -> None:
    skips, recent = Skips(limit=2, window=10), []
    for step in (5, 9, 16, 20, 27):  # never three within ten
        recent = skips.add(recent, step)
    assert recent == [20, 27]
    with pytest.raises(DivergedError, match="in 3 of the last 10 updates.* update 29") as caught:
        skips.add(recent, 29)
    assert (caught.value.first, caught.value.exit_status) == (20, 4)


def test_no_lost_update_at_all_may_be_asked_for() -> None:
    with pytest.raises(DivergedError):
        Skips(limit=0, window=100).add([], 3)


def test_a_state_comes_back_from_what_a_checkpoint_holds_and_ignores_the_rest() -> None:
    state = RunState(step=7, skipped_updates=2, recent_skips=[3, 5], losses=[0.1, 1 / 3])
    assert RunState.of({**state.values(), "corpus": "abc"}) == state


def test_going_back_passes_over_the_data_up_to_the_update_that_failed() -> None:
    old = RunState(step=8, losses=[1.0], skipped_crops=1)
    state = RunState(step=11, skipped_updates=3, recent_skips=[9, 10, 11], losses=[2.0])
    after = state.went_back(old)
    assert (after.step, after.passed_over, after.rollbacks) == (8, 4, 1)
    assert (after.skipped_updates, after.recent_skips) == (3, [])
    assert (after.losses, after.skipped_crops) == ([1.0], 1)
    # Again, from a checkpoint that has passed over data itself: update 20 heard what 24 would have.
    again = RunState(step=20, passed_over=4, rollbacks=1).went_back(
        RunState(step=16, passed_over=4)
    )
    assert again.step + again.passed_over == 25 and again.rollbacks == 2
