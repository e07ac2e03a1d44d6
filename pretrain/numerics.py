"""Updates that were thrown away, and losses and gradients that stick out.

Skips    too many gradients that are not finite: the run is to go back (``running.py``)
spikes   values far above those before them: counted and written down, nothing is done
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, final

from etude.pretrain.errors import DivergedError

SPIKE_WINDOW = 128
"""Updates that a value is compared with: as OLMo-core's ``SkipStepOptimizer`` has it."""

_FEWEST = 32
"""Fewer values say little about the next one."""

_RIPPLE = 1e-6
"""Deviations below this share of the mean are none: a series may stand still."""


@final
class Skips:
    """Judges how many updates were thrown away lately.

    :param limit: most of them that are borne among the last ``window`` updates.
    """

    def __init__(self, *, limit: int, window: int) -> None:
        self._limit = limit
        self._window = window

    def add(self, recent: list[int], step: int) -> list[int]:
        """``recent`` skips with that of update ``step``, without those that are long past.

        :raises DivergedError: if there are too many.
        """
        recent = [one for one in recent if one > step - self._window] + [step]
        if len(recent) > self._limit:
            raise DivergedError(
                f"the gradient was not finite in {len(recent)} of the last {self._window} updates "
                f"(train.max_skipped_updates is {self._limit}), last at update {step}. Lower "
                "optim.lr, or train with train.precision=fp32 to see whether it is the precision; "
                "incidents.jsonl in the run's folder names the clips.",
                first=recent[0],
            )
        return recent


class Spike(NamedTuple):
    """A value that sticks out."""

    number: int
    """Which of those that were judged."""
    value: float
    mean: float
    """Of the values before it."""
    deviation: float
    """Likewise: a standard deviation."""


def find_spikes(
    recent: Sequence[float], values: Sequence[float], *, sigma: float
) -> tuple[list[Spike], list[float]]:
    """Values far above the finite ones before them, and the values to compare the next with.

    :param recent: the finite values before ``values``, at most :data:`SPIKE_WINDOW`.
    :param sigma: how many standard deviations above their mean is far; 0 finds nothing.
    """
    window, spikes = list(recent), []
    for index, value in enumerate(values):
        if not math.isfinite(value):
            continue
        if sigma and len(window) >= _FEWEST:
            mean = math.fsum(window) / len(window)
            variance = math.fsum((one - mean) ** 2 for one in window) / len(window)
            deviation = max(math.sqrt(variance), _RIPPLE * abs(mean))
            if value - mean > sigma * deviation:
                spikes.append(Spike(index, value, mean, deviation))
        window = [*window, value][-SPIKE_WINDOW:]
    return spikes, window
