"""What may be said of a difference: better, worse, or that nothing was shown.

A difference is a variant's value minus the reference's with the same seed, so that both heard the
same crops in the same order under the same masks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Word = Literal["better", "worse", "not shown"]


@dataclass(frozen=True)
class Measure:
    """One number that every run has."""

    name: str
    """``key accuracy``, ``held-out logmel loss``."""

    higher_is_better: bool


@dataclass(frozen=True)
class Verdict:
    """A variant beside the reference in one measure."""

    variant: str
    measure: Measure
    by_seed: Mapping[int, float]
    """The difference of each pair."""

    value: float
    """Mean of the pairs."""

    interval: tuple[float, float] | None
    """95 %; ``None`` where there is nothing to take one from: a loss of one seed."""

    tracks: int | None
    """Test tracks that the interval is drawn over; ``None``: of a loss they are not known."""

    @property
    def word(self) -> Word:
        """Better or worse only beyond the interval; its ends belong to it."""
        if self.interval is None or self.interval[0] <= 0.0 <= self.interval[1]:
            return "not shown"
        return "better" if (self.value > 0.0) == self.measure.higher_is_better else "worse"

    @property
    def sentence(self) -> str:
        """The word with what it rests on."""
        seeds = len(self.by_seed)
        basis = f"{seeds} seed{'s' if seeds > 1 else ''}"
        if self.tracks is not None:
            basis += f" and {self.tracks} track{'s' if self.tracks > 1 else ''}"
        if self.interval is None:
            return "not judged: one seed has no interval; seeds were not measured"
        if self.word == "not shown":
            said = f"no difference that {basis} could show"
        else:
            said = f"{self.word} ({basis})"
        return said if seeds > 1 else f"{said}; seeds were not measured"
