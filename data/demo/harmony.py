"""Keys, scales and chords of the demo corpus: what may sound together.

Everything is a pitch class (0 = C ... 11 = B) or an offset in semitones from the tonic; nothing
here knows about time. Progressions start on the tonic and `chord_walk` ends on a cadence, so that
the key of a track can be told from its relative major or minor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Mode = Literal["major", "minor"]

MAJOR_NAMES = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
MINOR_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B")
SCALES: dict[Mode, tuple[int, ...]] = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
}
QUALITIES: dict[str, tuple[int, ...]] = {
    "maj": (0, 4, 7),
    "min": (0, 3, 7),
    "maj7": (0, 4, 7, 11),
    "min7": (0, 3, 7, 10),
    "dom7": (0, 4, 7, 10),
}
# Each progression is one chord per slot, as (semitones above the tonic, quality).
PROGRESSIONS: dict[Mode, tuple[tuple[tuple[int, str], ...], ...]] = {
    "major": (
        ((0, "maj"), (7, "maj"), (9, "min"), (5, "maj")),
        ((0, "maj"), (9, "min"), (5, "maj"), (7, "maj")),
        ((0, "maj"), (5, "maj"), (7, "dom7"), (0, "maj")),
        ((0, "maj"), (4, "min"), (5, "maj"), (7, "maj")),
        ((0, "maj"), (5, "maj"), (2, "min"), (7, "dom7")),
        ((0, "maj7"), (9, "min7"), (2, "min7"), (7, "dom7")),
    ),
    "minor": (
        ((0, "min"), (8, "maj"), (3, "maj"), (10, "maj")),
        ((0, "min"), (5, "min"), (7, "dom7"), (0, "min")),
        ((0, "min"), (10, "maj"), (8, "maj"), (7, "maj")),
        ((0, "min"), (8, "maj"), (5, "min"), (7, "dom7")),
        ((0, "min"), (5, "min"), (10, "maj"), (3, "maj")),
        ((0, "min7"), (5, "min7"), (8, "maj7"), (7, "dom7")),
    ),
}


@dataclass(frozen=True)
class Key:
    """A tonic (0-11) and a mode."""

    tonic: int
    mode: Mode

    @property
    def name(self) -> str:
        """The key in words, for example "F# minor"."""
        names = MAJOR_NAMES if self.mode == "major" else MINOR_NAMES
        return f"{names[self.tonic]} {self.mode}"

    @property
    def scale(self) -> frozenset[int]:
        """Pitch classes of the (natural minor or major) scale."""
        return frozenset((self.tonic + step) % 12 for step in SCALES[self.mode])


ALL_KEYS = tuple(Key(tonic=tonic, mode=mode) for mode in ("major", "minor") for tonic in range(12))


@dataclass(frozen=True)
class ChordSymbol:
    """A chord without a time: root pitch class and quality."""

    root: int
    quality: str

    @property
    def tones(self) -> tuple[int, ...]:
        """Pitch classes from the root up."""
        return tuple((self.root + step) % 12 for step in QUALITIES[self.quality])


def chord_walk(rng: np.random.Generator, *, key: Key, num_slots: int) -> list[ChordSymbol]:
    """One chord per slot: a progression repeated, then dominant and tonic."""
    choices = PROGRESSIONS[key.mode]
    pattern = choices[rng.integers(len(choices))]
    offsets = [pattern[slot % len(pattern)] for slot in range(num_slots)]
    offsets[-1] = (0, "maj" if key.mode == "major" else "min")
    if num_slots >= 4:
        offsets[-2] = (7, "dom7")
    return [ChordSymbol(root=(key.tonic + step) % 12, quality=name) for step, name in offsets]


def melodic_classes(key: Key, chord: ChordSymbol) -> frozenset[int]:
    """Pitch classes that a melody may use over `chord`.

    Where the chord leaves the scale (the leading tone of a minor dominant), the scale tone a
    semitone below it is left out: both side by side would blur the key.
    """
    tones = frozenset(chord.tones)
    foreign = tones - key.scale
    return (key.scale - {(tone - 1) % 12 for tone in foreign}) | tones
