"""Learning rates as functions of the update alone: nothing to save, nothing to restore."""

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
