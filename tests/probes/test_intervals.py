import numpy as np

from etude.probes.intervals import accuracy_interval, difference_interval

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
