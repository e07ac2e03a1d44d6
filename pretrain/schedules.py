"""Rates and decays as functions of the update alone: nothing to save, nothing to restore."""

from collections.abc import Callable

Schedule = Callable[[int], float]
"""Update (from 0) to value."""


def warmup_linear(peak: float, *, warmup_steps: int, schedule_steps: int) -> Schedule:
    """Linear from 0 to ``peak``, then linear to 0 at ``schedule_steps``.

    fairseq's ``polynomial_decay`` with power 1, as in the released MERT configs. The first update
    already has ``peak / warmup_steps``: at 0 it would be wasted.
    """

    def schedule(update: int) -> float:
        if update < warmup_steps:
            return peak * (update + 1) / warmup_steps
        remaining = schedule_steps - update
        return peak * max(0.0, remaining / max(1, schedule_steps - warmup_steps))

    return schedule


_END_SCALE = 0.01


def tri_stage(peak: float, *, warmup_steps: int, hold_steps: int, schedule_steps: int) -> Schedule:
    """Linear up to ``peak``, held there, then exponentially down until ``schedule_steps``.

    fairseq's ``tri_stage`` with its default scales, as in data2vec and music2vec: the ramp starts
    at 1 % of the peak, and the last stage ends there, where it stays.
    """
    decay_steps = max(1, schedule_steps - warmup_steps - hold_steps)

    def schedule(update: int) -> float:
        if update < warmup_steps:
            return peak * (_END_SCALE + (1.0 - _END_SCALE) * update / warmup_steps)
        decayed = min(max(0, update - warmup_steps - hold_steps), decay_steps)
        return float(peak * _END_SCALE ** (decayed / decay_steps))

    return schedule


def ramp(start: float, end: float, *, steps: int) -> Schedule:
    """Linear from ``start`` to ``end`` after ``steps`` updates, where it stays."""

    def schedule(update: int) -> float:
        return end - (end - start) * max(0.0, 1.0 - update / steps) if steps else end

    return schedule
