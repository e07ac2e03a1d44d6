"""The melody: rhythms that come back, pitches that walk between chord tones.

A phrase is four bars in the form A B A C. On the beat the line takes a chord tone near the last
note, between beats it mostly steps along the scale; a slow contour pulls it through its register.
"""

from __future__ import annotations

import math

import numpy as np

from etude.data.demo.harmony import Key, melodic_classes
from etude.data.demo.rhythm import ChordSpan, Event, Metre, bar_rhythm

PHRASE_BARS = 4


def write_melody(
    rng: np.random.Generator,
    *,
    key: Key,
    spans: list[ChordSpan],
    metre: Metre,
    num_bars: int,
    low: int,
    high: int,
    lengths: tuple[int, ...],
    rest_chance: float,
    instrument: str,
) -> list[Event]:
    """Events of one monophonic line between the MIDI pitches `low` and `high`."""
    motifs = [bar_rhythm(rng, metre=metre, lengths=lengths) for _ in range(3)]
    longest = max(lengths)
    phase = rng.uniform(0.0, 1.0)
    current = int(rng.integers(low + 3, high - 2))
    span_index = 0
    events: list[Event] = []
    for bar in range(num_bars):
        rhythm = motifs[(0, 1, 0, 2)[bar % PHRASE_BARS]]
        if bar == num_bars - 1:
            rhythm = [min(longest, metre.pulses_per_bar)]
        start = bar * metre.pulses_per_bar
        for position, length in enumerate(rhythm):
            while spans[span_index].end <= start:
                span_index += 1
            chord = spans[span_index].chord
            on_beat = start % metre.pulses_per_beat == 0
            classes = frozenset(chord.tones) if on_beat else melodic_classes(key, chord)
            if bar == num_bars - 1:
                classes = frozenset({key.tonic})
            height = 0.5 - 0.35 * math.cos(2.0 * math.pi * (bar / 8.0 + phase))
            goal = low + height * (high - low)
            current = _next_pitch(rng, current, classes, low=low, high=high, goal=goal)
            swell = 0.5 + 0.5 * math.sin(math.pi * ((bar % PHRASE_BARS) + 0.5) / PHRASE_BARS)
            velocity = 0.5 + 0.25 * swell + (0.08 if on_beat else 0.0) + rng.normal(0.0, 0.04)
            resting = position > 0 and rng.random() < rest_chance
            if not resting:
                loudness = float(np.clip(velocity, 0.2, 1.0))
                events.append(Event(float(start), float(length), current, loudness, instrument))
            start += length
    return events


def _next_pitch(
    rng: np.random.Generator,
    current: int,
    classes: frozenset[int],
    *,
    low: int,
    high: int,
    goal: float,
) -> int:
    """A pitch of `classes` close to `current`, rarely a repeat, leaning towards `goal`."""
    pitches = np.array([pitch for pitch in range(low, high + 1) if pitch % 12 in classes])
    steps = np.abs(pitches - current)
    lean = np.abs(pitches - goal) - abs(current - goal)
    weights = np.exp(-steps / 2.5 - lean / 9.0)
    weights[steps == 0] *= 0.25
    return int(rng.choice(pitches, p=weights / weights.sum()))
