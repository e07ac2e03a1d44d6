import numpy as np
import pytest

from etude.probes.intervals import (
    accuracy_interval,
    difference_interval,
    joint_evidence,
    mean_evidence,
)

TRACKS = np.repeat(np.arange(60), 3)


def test_a_model_does_not_differ_from_itself() -> None:
    correct = np.random.default_rng(0).random(180) < 0.6
    interval = difference_interval(correct, correct, TRACKS, seed=0)
    assert (interval.value, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_the_interval_covers_the_true_accuracy_in_about_95_percent_of_repeats() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for repeat in range(400):
        # Tracks differ in difficulty, so that clips of one track fall together.
        difficulty = rng.beta(3, 2, size=60)
        correct = rng.random(180) < difficulty[TRACKS]
        interval = accuracy_interval(correct, TRACKS, seed=repeat, draws=500)
        covered += interval.low <= 3 / 5 <= interval.high
    assert 0.91 <= covered / 400 <= 0.98


def test_the_paired_interval_covers_the_true_difference() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for repeat in range(400):
        difficulty = rng.uniform(0.2, 0.8, size=60)[TRACKS]
        better = rng.random(180) < difficulty + 0.1
        worse = rng.random(180) < difficulty
        interval = difference_interval(better, worse, TRACKS, seed=repeat, draws=500)
        covered += interval.low <= 0.1 <= interval.high
    assert 0.91 <= covered / 400 <= 0.98


def test_clips_of_one_track_do_not_count_as_independent() -> None:
    answers = np.random.default_rng(3).random(30) < 0.5
    once = accuracy_interval(answers, np.arange(30), seed=0)
    copied = accuracy_interval(np.repeat(answers, 10), np.repeat(np.arange(30), 10), seed=0)
    assert copied == once


def test_the_same_seed_gives_the_same_interval() -> None:
    correct = np.random.default_rng(4).random(180) < 0.5
    assert accuracy_interval(correct, TRACKS, seed=5) == accuracy_interval(correct, TRACKS, seed=5)
    assert accuracy_interval(correct, TRACKS, seed=5) != accuracy_interval(correct, TRACKS, seed=6)


def test_a_heads_seeds_widen_the_interval() -> None:
    rng = np.random.default_rng(5)
    base = (rng.random(180) < 0.6).astype(np.float64)
    steady = mean_evidence(np.stack([base, base, base]), TRACKS, seed=0)
    other = np.stack([np.where(rng.random(180) < share, 1.0, base) for share in (0.0, 0.2, 0.4)])
    moving = mean_evidence(other, TRACKS, seed=0)
    widths = [each.interval.high - each.interval.low for each in (steady, moving)]
    assert widths[1] > 1.5 * widths[0]


def test_evidence_of_one_seed_is_the_interval_over_tracks() -> None:
    correct = np.random.default_rng(6).random(180) < 0.6
    found = mean_evidence(correct[None].astype(np.float64), TRACKS, seed=3).interval
    assert found == accuracy_interval(correct, TRACKS, seed=3)


def test_the_interval_over_tracks_and_seeds_covers_the_truth() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for repeat in range(300):
        difficulty = rng.beta(3, 2, size=60)[TRACKS]
        luck = rng.normal(0.0, 0.05, size=(3, 1))  # of each start of the head
        right = (rng.random((3, 180)) < difficulty + luck).astype(np.float64)
        interval = mean_evidence(right, TRACKS, seed=repeat, draws=500).interval
        covered += interval.low <= 3 / 5 <= interval.high
    assert covered / 300 >= 0.91


def test_a_joint_measure_that_is_a_mean_has_the_means_interval() -> None:
    scores = np.random.default_rng(8).random(180)
    mean = mean_evidence(scores[None], TRACKS, seed=0).interval
    joint = joint_evidence(
        lambda _, times_RN: times_RN @ scores / times_RN.sum(axis=1), 1, TRACKS, seed=0
    ).interval
    assert joint.value == pytest.approx(mean.value)
    assert abs(joint.low - mean.low) < 0.01 and abs(joint.high - mean.high) < 0.01
