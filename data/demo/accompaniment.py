"""What is played under the melody: chords, bass and drums, as events on the pulse grid."""

from __future__ import annotations

import itertools
from typing import Literal, get_args

import numpy as np

from etude.data.demo.harmony import ChordSymbol
from etude.data.demo.rhythm import ChordSpan, Event, Metre

ChordStyle = Literal["held", "comp", "arpeggio"]
BassStyle = Literal["root", "root_fifth", "pulse"]

CHORD_STYLES: tuple[ChordStyle, ...] = get_args(ChordStyle)


def write_chords(
    rng: np.random.Generator,
    *,
    spans: list[ChordSpan],
    metre: Metre,
    instrument: str,
    style: ChordStyle,
    low: int,
) -> list[Event]:
    """Chords in close position above the MIDI pitch `low`, each voicing near the one before."""
    events: list[Event] = []
    voicing: tuple[int, ...] = ()
    pattern = [0] + [p for p in range(1, metre.pulses_per_bar) if rng.random() < 0.4]
    rising = rng.random() < 0.6
    for span in spans:
        voicing = _voice(span.chord, near=voicing, low=low)
        length = span.end - span.start
        final = span is spans[-1]
        if style == "held" or final:
            strikes = [(0, float(length))]
        elif style == "comp":
            starts = [p for p in pattern if p < length] + [length]
            strikes = [(a, 0.75 * (b - a)) for a, b in itertools.pairwise(starts)]
        else:
            ladder = list(voicing) + [voicing[0] + 12] + list(voicing[:0:-1])
            ladder = ladder if rising else ladder[::-1]
            for pulse in range(length):
                pitch = ladder[pulse % len(ladder)]
                accent = 0.62 if pulse % metre.pulses_per_beat == 0 else 0.5
                loudness = float(np.clip(accent + rng.normal(0.0, 0.04), 0.2, 1.0))
                # An arpeggio rings over into the next pulse, as with the pedal down.
                ring = min(2.0, float(length - pulse))
                events.append(Event(float(span.start + pulse), ring, pitch, loudness, instrument))
            continue
        for offset, ring in strikes:
            accent = 0.6 if offset == 0 else 0.5
            for voice, pitch in enumerate(voicing):
                loudness = float(np.clip(accent + rng.normal(0.0, 0.04), 0.2, 1.0))
                # Fingers do not land together: a few thousandths of a pulse between voices.
                start = span.start + offset + 0.02 * voice
                events.append(Event(start, ring - 0.02 * voice, pitch, loudness, instrument))
    return events


def _voice(chord: ChordSymbol, *, near: tuple[int, ...], low: int) -> tuple[int, ...]:
    """The inversion of `chord` that moves least from `near`."""
    best: tuple[int, ...] = ()
    least = float("inf")
    for bottom in chord.tones:
        start = low + (bottom - low) % 12
        voicing = tuple(sorted(start + (tone - bottom) % 12 for tone in chord.tones))
        centre = sum(near) / len(near) if near else low + 9.0
        movement = abs(sum(voicing) / len(voicing) - centre)
        if movement < least:
            best, least = voicing, movement
    return best


def write_bass(
    rng: np.random.Generator,
    *,
    spans: list[ChordSpan],
    metre: Metre,
    instrument: str,
    style: BassStyle,
    low: int,
) -> list[Event]:
    """One low note at a time: the chord's root first, always."""
    events: list[Event] = []
    for span in spans:
        length = span.end - span.start
        root = low + (span.chord.root - low) % 12
        fifth = root + 7 if root + 7 <= low + 14 else root - 5
        if style == "root" or span is spans[-1]:
            steps = [(0, length, root)]
        elif style == "root_fifth":
            half = max(length // 2 // metre.pulses_per_beat, 1) * metre.pulses_per_beat
            steps = [(0, min(half, length), root)]
            if half < length:
                steps.append((half, length - half, fifth))
        else:
            stride = metre.pulses_per_beat if metre.pulses_per_beat == 3 else 1
            steps = [(p, min(stride, length - p), root) for p in range(0, length, stride)]
        for offset, ring, pitch in steps:
            accent = 0.72 if offset == 0 else 0.6
            loudness = float(np.clip(accent + rng.normal(0.0, 0.03), 0.2, 1.0))
            start = float(span.start + offset)
            events.append(Event(start, 0.92 * ring, pitch, loudness, instrument))
    return events


def write_drums(rng: np.random.Generator, *, metre: Metre, num_bars: int) -> list[Event]:
    """A groove of one bar, repeated, with toms at the end of each fourth bar."""
    pulses = metre.pulses_per_bar
    kicks, snares = {"4/4": ({0, 4}, {2, 6}), "3/4": ({0}, {2, 4}), "6/8": ({0}, {3})}[metre.name]
    extra = {p for p in range(1, pulses) if p not in snares and rng.random() < 0.2}
    cymbal = "ride" if rng.random() < 0.3 else "closed_hat"
    every = 1 if rng.random() < 0.7 or metre.pulses_per_beat == 3 else 2
    opens = {pulses - 1} if rng.random() < 0.4 else set()
    events: list[Event] = []

    def hit(pulse: int, drum: str, velocity: float) -> None:
        loudness = float(np.clip(velocity + rng.normal(0.0, 0.05), 0.15, 1.0))
        events.append(Event(float(pulse), 1.0, None, loudness, drum))

    for bar in range(num_bars):
        first = bar * pulses
        if bar == num_bars - 1:
            hit(first, "kick", 0.9)
            hit(first, "ride", 0.8)
            break
        fill = bar % 4 == 3
        for pulse in range(pulses):
            now = first + pulse
            if fill and pulse >= pulses - metre.pulses_per_beat:
                hit(now, "tom", 0.75)
                continue
            if pulse in kicks or pulse in extra:
                hit(now, "kick", 0.9 if pulse in kicks else 0.65)
            if pulse in snares:
                hit(now, "snare", 0.8)
            if pulse in opens:
                hit(now, "open_hat", 0.5)
            elif pulse % every == 0:
                hit(now, cymbal, 0.6 if pulse % metre.pulses_per_beat == 0 else 0.42)
    return events
