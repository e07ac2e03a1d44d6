"""Metres and events: time counted in pulses, before any tempo is known.

A pulse is the smallest step of the grid, an eighth note in all three metres. A beat is what the
tempo counts: a quarter note in 4/4 and 3/4, a dotted quarter in 6/8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from etude.data.demo.harmony import ChordSymbol


@dataclass(frozen=True)
class Metre:
    """A time signature as counts of beats and pulses."""

    name: str
    beats_per_bar: int
    pulses_per_beat: int
    lengths: tuple[int, ...]
    """Note lengths in pulses that a melody draws from."""

    @property
    def pulses_per_bar(self) -> int:
        """Eighth notes in one bar."""
        return self.beats_per_bar * self.pulses_per_beat


METRES = {
    "4/4": Metre(name="4/4", beats_per_bar=4, pulses_per_beat=2, lengths=(1, 1, 2, 2, 2, 3, 4)),
    "3/4": Metre(name="3/4", beats_per_bar=3, pulses_per_beat=2, lengths=(1, 1, 2, 2, 2, 4)),
    "6/8": Metre(name="6/8", beats_per_bar=2, pulses_per_beat=3, lengths=(1, 1, 1, 2, 3, 3)),
}


class Event(NamedTuple):
    """A note on the grid; `pitch` is None for a drum."""

    start: float
    length: float
    pitch: int | None
    velocity: float
    instrument: str


class ChordSpan(NamedTuple):
    """A chord and the pulses it lasts for."""

    start: int
    end: int
    chord: ChordSymbol


def bar_rhythm(rng: np.random.Generator, *, metre: Metre, lengths: tuple[int, ...]) -> list[int]:
    """Note lengths in pulses that fill one bar."""
    left = metre.pulses_per_bar
    rhythm: list[int] = []
    while left > 0:
        fitting = [length for length in lengths if length <= left] or [left]
        length = fitting[rng.integers(len(fitting))]
        rhythm.append(length)
        left -= length
    return rhythm
