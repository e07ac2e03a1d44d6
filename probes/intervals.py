"""How sure a probe's number is: percentile bootstrap over tracks.

Clips and notes of one track fall together, so tracks are what is drawn again, with all that is in
them; an interval over clips would be too narrow. A difference of two models is taken on the same
drawn tracks: what a hard track costs both of them cancels.

What such an interval speaks of is other tracks, not other trainings: two untrained encoders that
differ in their seed alone can differ by 5 points of pitch, interval clear of zero. Of other
trainings speaks ``paired_interval``, which needs several of them, in pairs that share a seed.

A head that starts from random weights adds an error of its own. ``Evidence`` holds a measure per
seed of the head, on the test's tracks and on tracks drawn again, and adds both errors up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

DRAWS = 2_000
JOINT_DRAWS = 500
"""For measures that are no means: each draw computes them anew, and holds all examples."""

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Evidence:
    """A measure on the test, once per seed of the head: as it came out, and on tracks drawn again.

    Of models asked the same, evidence is drawn on the same tracks: ``minus`` subtracts draw by
    draw and seed by seed, so that what a hard track costs both of them cancels.
    """

    values_S: npt.NDArray[np.float64]
    """By seed."""

    drawn_RS: npt.NDArray[np.float64]
    """By draw and seed."""

    tracks: int
    """Tracks in the test."""

    def minus(self, other: "Evidence") -> "Evidence":
        """The difference; a head without seeds counts beside every seed of another."""
        return Evidence(self.values_S - other.values_S, self.drawn_RS - other.drawn_RS, self.tracks)

    @property
    def interval(self) -> Interval:
        """Over other tracks, and over other seeds where there is more than one."""
        return _both_errors(self.values_S, self.drawn_RS.mean(axis=1), self.tracks)


def mean_evidence(
    scores_SN: npt.NDArray[np.float64],
    tracks: npt.NDArray[np.int64],
    *,
    seed: int,
    draws: int = DRAWS,
) -> Evidence:
    """Evidence of a measure that is a mean over examples, such as accuracy.

    :param scores_SN: of each example, by seed of the head.
    :param tracks: the track of each example, (examples,).
    :param seed: decides the draws.
    """
    _, row = np.unique(tracks, return_inverse=True)
    sums_ST = np.stack([np.bincount(row, weights=scores_N) for scores_N in scores_SN])
    counts_T = np.bincount(row)
    drawn_RS = _drawn_means(sums_ST.T, counts_T, seed=seed, draws=draws)
    return Evidence(scores_SN.mean(axis=1), drawn_RS, len(counts_T))


def joint_evidence(
    measure: Callable[[int, npt.NDArray[np.float64]], npt.NDArray[np.float64]],
    seeds: int,
    tracks: npt.NDArray[np.int64],
    *,
    seed: int,
    draws: int = JOINT_DRAWS,
) -> Evidence:
    """Evidence of a measure over all examples together, such as an area under a curve.

    :param measure: its values (draws,), of a seed's number and of how often each example was drawn
        (draws, examples); ``nan`` where a draw leaves it undefined, which takes no part.
    :param seeds: number of seeds of the head.
    """
    values, row = np.unique(tracks, return_inverse=True)
    num_tracks = len(values)
    times_RT = np.random.default_rng(seed).multinomial(
        num_tracks, np.full(num_tracks, 1.0 / num_tracks), size=draws
    )
    # The first row is the test as it is.
    times_RN = np.concatenate([np.ones((1, len(tracks))), times_RT[:, row]])
    found_RS = np.stack([measure(number, times_RN) for number in range(seeds)], axis=1)
    return Evidence(found_RS[0], found_RS[1:], num_tracks)


def accuracy_interval(
    correct: npt.NDArray[np.bool_], tracks: npt.NDArray[np.int64], *, seed: int, draws: int = DRAWS
) -> Interval:
    """Accuracy over test examples, of a head without seeds.

    :param correct: whether each example was answered right, (examples,).
    :param tracks: the track of each example, (examples,).
    """
    scores_SN = correct.astype(np.float64)[None]
    return mean_evidence(scores_SN, tracks, seed=seed, draws=draws).interval


def difference_interval(
    correct: npt.NDArray[np.bool_],
    baseline: npt.NDArray[np.bool_],
    tracks: npt.NDArray[np.int64],
    *,
    seed: int,
    draws: int = DRAWS,
) -> Interval:
    """Accuracy minus a baseline's accuracy on the same examples in the same order."""
    gain_SN = (correct.astype(np.float64) - baseline.astype(np.float64))[None]
    return mean_evidence(gain_SN, tracks, seed=seed, draws=draws).interval


def paired_interval(
    gain_ST: npt.NDArray[np.float64],
    examples_T: npt.NDArray[np.float64],
    *,
    seed: int,
    draws: int = DRAWS,
) -> Interval:
    """Accuracy of a variant minus its reference's, mean over trainings that share a seed in pairs.

    Two errors add up: other tracks (the bootstrap's variance, of the mean over trainings) and
    other trainings (the variance of the pairs over their number). Few trainings estimate theirs
    badly, so that Student's t takes the place of 1.96, with the degrees of freedom of Welch and
    Satterthwaite. Drawing trainings again as well as tracks would be simpler, and too narrow where
    trainings differ most: with three that differ by 10 points (standard deviation) it covered the
    truth in 87 % of 500 simulated experiments on 67 tracks, this in 91 %; with three that differ
    by 3 points or not at all, in 98 %.

    With one training that error is unknown, and the interval is the one over tracks alone.

    :param gain_ST: right answers minus the reference's, by training and test track.
    :param examples_T: questions asked of each track.
    """
    trainings, tracks = gain_ST.shape
    if tracks < 2:
        value = float(gain_ST.sum() / examples_T.sum() / trainings)
        return Interval(value, -1.0, 1.0)  # one track says nothing of others
    drawn = _drawn_means(gain_ST.mean(axis=0), examples_T, seed=seed, draws=draws)
    return _both_errors(gain_ST.sum(axis=1) / examples_T.sum(), drawn, tracks)


def trainings_interval(differences_S: npt.NDArray[np.float64]) -> Interval:
    """Mean of paired differences over at least two trainings; nothing else is known of them."""
    trainings = len(differences_S)
    variance = float(differences_S.var(ddof=1)) / trainings
    return _student(float(differences_S.mean()), variance, freedom=trainings - 1)


def _student(value: float, variance: float, *, freedom: float) -> Interval:
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * variance**0.5
    return Interval(value, value - half, value + half)


def _both_errors(
    values_S: npt.NDArray[np.float64], drawn_R: npt.NDArray[np.float64], tracks: int
) -> Interval:
    """The interval of a mean over trainings, or over seeds of a head; see ``paired_interval``."""
    value, trainings = float(values_S.mean()), len(values_S)
    drawn_R = drawn_R[~np.isnan(drawn_R)]
    if trainings == 1 or tracks < 2:
        return _percentiles(value, drawn_R)
    over_tracks = float(drawn_R.var())
    over_trainings = float(values_S.var(ddof=1)) / trainings
    variance = over_tracks + over_trainings
    if variance == 0.0:
        return Interval(value, value, value)
    parts = over_trainings**2 / (trainings - 1) + over_tracks**2 / (tracks - 1)
    return _student(value, variance, freedom=variance**2 / parts)


def _drawn_means(
    sums: npt.NDArray[Any],
    counts: npt.NDArray[Any],
    *,
    seed: int,
    draws: int,
) -> npt.NDArray[np.float64]:
    """Means over examples of tracks drawn again, (draws, ...), of sums (tracks, ...)."""
    num_tracks = len(counts)
    # How often each track is drawn, (draws, tracks): one matrix product instead of a loop.
    times = np.random.default_rng(seed).multinomial(
        num_tracks, np.full(num_tracks, 1.0 / num_tracks), size=draws
    )
    examples = times @ counts
    means: npt.NDArray[np.float64] = (times @ sums) / examples.reshape(-1, *[1] * (sums.ndim - 1))
    return means


def _percentiles(value: float, means: npt.NDArray[np.float64]) -> Interval:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
