"""How sure a probe's number is: percentile bootstrap over tracks.

Clips and notes of one track fall together, so tracks are what is drawn again, with all that is in
them; an interval over clips would be too narrow. A difference of two models is taken on the same
drawn tracks: what a hard track costs both of them cancels.

What the interval speaks of is other tracks, not other trainings: two untrained encoders that differ
in their seed alone can differ by 5 points of pitch, interval clear of zero.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DRAWS = 2_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def accuracy_interval(
    correct: npt.NDArray[np.bool_], tracks: npt.NDArray[np.int64], *, seed: int, draws: int = DRAWS
) -> Interval:
    """Accuracy over test examples.

    :param correct: whether each example was answered right, (examples,).
    :param tracks: the track of each example, (examples,).
    """
    return _interval(correct.astype(np.float64), tracks, seed=seed, draws=draws)


def difference_interval(
    correct: npt.NDArray[np.bool_],
    baseline: npt.NDArray[np.bool_],
    tracks: npt.NDArray[np.int64],
    *,
    seed: int,
    draws: int = DRAWS,
) -> Interval:
    """Accuracy minus a baseline's accuracy on the same examples in the same order."""
    gain = correct.astype(np.float64) - baseline.astype(np.float64)
    return _interval(gain, tracks, seed=seed, draws=draws)


def _interval(
    scores: npt.NDArray[np.float64], tracks: npt.NDArray[np.int64], *, seed: int, draws: int
) -> Interval:
    _, row = np.unique(tracks, return_inverse=True)
    sums, counts = np.bincount(row, weights=scores), np.bincount(row)
    num_tracks = len(counts)
    # How often each track is drawn, (draws, tracks): one matrix product instead of a loop.
    times = np.random.default_rng(seed).multinomial(
        num_tracks, np.full(num_tracks, 1.0 / num_tracks), size=draws
    )
    means = (times @ sums) / (times @ counts)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(scores.mean()), float(low), float(high))
