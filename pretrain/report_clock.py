"""Where a run's steps lie on each horizontal axis of the page: updates, audio hours, training time.

Training time is that of the training loop with its validations, added up from the rates in
``metrics.jsonl``: what a run waited in a queue between two starts is not in it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from etude.pretrain.report_run import Metrics

AXES = ("updates", "hours", "seconds")
"""In the order of the page's switch."""

_RATE = "perf/audio_hours_per_day"

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Clock:
    """A run's steps, rising from 0, beside what had been heard and how long it had taken."""

    steps: Values
    hours: Values | None
    seconds: Values | None

    def at(self, steps: Sequence[float]) -> dict[str, list[float] | None]:
        """Steps on each of :data:`AXES`; ``None`` where the run did not log it."""
        asked = np.asarray(steps, dtype=np.float64)
        return {
            "updates": asked.tolist(),
            "hours": _interpolated(asked, self.steps, self.hours),
            "seconds": _interpolated(asked, self.steps, self.seconds),
        }

    def updates_at(self, hours: Sequence[float]) -> list[float] | None:
        """Updates after which the run had, or will have, heard as much audio."""
        return _interpolated(np.asarray(hours, dtype=np.float64), self.hours, self.steps)


def read_clock(metrics: Metrics) -> Clock:
    """What a run logged of hours and rates."""
    heard = [record for record in metrics.records if 0 < record.get("audio_hours", 0) < math.inf]
    # A line of validation alone has no rate: its time is in the next line's.
    rated = [record for record in heard if 0 < record.get(_RATE, 0) < math.inf]
    marks = [(0.0, 0.0, 0.0)]
    for record in rated or heard:
        step, hours, seconds = marks[-1]
        now = record["audio_hours"]
        if record["step"] > step and now > hours:  # not so where a run went back
            spent = (now - hours) / record[_RATE] * 86_400 if rated else 0.0
            marks.append((record["step"], now, seconds + spent))
    steps_N, hours_N, seconds_N = np.array(marks).T
    return Clock(steps_N, hours_N if heard else None, seconds_N if rated else None)


def _interpolated(asked: Values, known: Values | None, wanted: Values | None) -> list[float] | None:
    """Between marks along a line, beyond the last one at the mean rate."""
    if known is None or wanted is None or len(known) < 2:
        return None
    found = np.interp(asked, known, wanted)
    beyond = asked > known[-1]
    found[beyond] = asked[beyond] * (wanted[-1] / known[-1])
    return [float(value) for value in found]
