"""Scores of the demo corpus: who plays which note when, in seconds.

`compose_mix` writes a small arrangement (melody, chords, bass, sometimes drums) and `compose_solo`
one melody alone. Stages, in this order: key, metre, tempo -> chords on the pulse grid -> parts as
events -> seconds, with the small unevenness of human hands. The score is the label: the renderer
plays exactly what stands here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from etude.data.demo.accompaniment import (
    BassStyle,
    ChordStyle,
    write_bass,
    write_chords,
    write_drums,
)
from etude.data.demo.harmony import ALL_KEYS, Key, chord_walk
from etude.data.demo.instruments import TIMBRES
from etude.data.demo.melody import write_melody
from etude.data.demo.rhythm import METRES, ChordSpan, Event, Metre

MIN_TEMPO, MAX_TEMPO = 60.0, 180.0
SOLO_LOW, SOLO_HIGH = 48, 84
CHORD_PLAYERS = (
    *("piano", "nylon_guitar", "harp", "electric_piano", "organ", "synth_pad"),
    *("vibraphone", "marimba", "harpsichord"),
)
BASS_PLAYERS = ("synth_bass", "cello", "nylon_guitar", "piano", "electric_piano")


@dataclass(frozen=True)
class Note:
    """One sounding note; `pitch` is a MIDI number, None for a drum."""

    start_seconds: float
    end_seconds: float
    pitch: int | None
    velocity: float
    instrument: str


@dataclass(frozen=True)
class Chord:
    """A chord of the progression; `root` is a pitch class, 0 = C."""

    start_seconds: float
    end_seconds: float
    root: int
    quality: str


@dataclass(frozen=True)
class Score:
    """A whole track before it sounds."""

    seconds: float
    key: Key
    tempo: float
    """Beats per minute; a beat is a dotted quarter in 6/8."""
    metre: str
    beats: tuple[float, ...]
    downbeats: tuple[float, ...]
    chords: tuple[Chord, ...]
    notes: tuple[Note, ...]
    lead: str
    chord_style: ChordStyle | None = None
    """How the chords are played; `None` where nobody plays any."""

    @property
    def instruments(self) -> tuple[str, ...]:
        """All that is heard, drums included, in alphabetical order."""
        return tuple(sorted({note.instrument for note in self.notes}))


@dataclass(frozen=True)
class _Grid:
    """Where the bars and pulses of one track lie in time."""

    metre: Metre
    num_bars: int
    tempo: float
    offset_seconds: float

    @property
    def pulse_seconds(self) -> float:
        return 60.0 / self.tempo / self.metre.pulses_per_beat

    @property
    def num_pulses(self) -> int:
        return self.num_bars * self.metre.pulses_per_bar

    def at(self, pulse: float) -> float:
        return self.offset_seconds + pulse * self.pulse_seconds


def compose_mix(
    rng: np.random.Generator, *, key: Key | None = None, seconds: float = 15.0
) -> Score:
    """A melody with chords and bass, in three of five tracks with drums."""
    key = key or ALL_KEYS[rng.integers(len(ALL_KEYS))]
    grid = _draw_grid(rng, seconds=seconds)
    spans = _draw_spans(rng, key=key, grid=grid)
    lead = str(rng.choice([name for name in TIMBRES if name != "synth_bass"]))
    chord_player = str(rng.choice([name for name in CHORD_PLAYERS if name != lead]))
    taken = (lead, chord_player)
    bass_player = str(rng.choice([name for name in BASS_PLAYERS if name not in taken]))

    timbre = TIMBRES[lead]
    centre = int(np.clip(rng.integers(66, 77), timbre.low + 8, timbre.high - 8))
    events = write_melody(
        rng,
        key=key,
        spans=spans,
        metre=grid.metre,
        num_bars=grid.num_bars,
        low=centre - 8,
        high=centre + 8,
        lengths=grid.metre.lengths,
        rest_chance=0.08,
        instrument=lead,
    )
    # A slow attack never speaks within one pulse: such players hold their chords.
    styles: tuple[ChordStyle, ...] = ("comp", "arpeggio", "held")
    chord_style: ChordStyle = "held"
    if chord_player not in ("synth_pad", "organ"):
        chord_style = styles[rng.choice(3, p=(0.4, 0.45, 0.15))]
    events += write_chords(
        rng,
        spans=spans,
        metre=grid.metre,
        instrument=chord_player,
        style=chord_style,
        low=int(rng.integers(50, 56)),
    )
    bass_styles: tuple[BassStyle, ...] = ("root", "root_fifth", "pulse")
    events += write_bass(
        rng,
        spans=spans,
        metre=grid.metre,
        instrument=bass_player,
        style=bass_styles[rng.integers(3)],
        low=int(rng.integers(33, 38)) if bass_player != "nylon_guitar" else 40,
    )
    if rng.random() < 0.6:
        events += write_drums(rng, metre=grid.metre, num_bars=grid.num_bars)
    return _finish(
        rng,
        events,
        key=key,
        grid=grid,
        spans=spans,
        seconds=seconds,
        lead=lead,
        chord_style=chord_style,
    )


def compose_solo(
    rng: np.random.Generator,
    instrument: str,
    *,
    key: Key | None = None,
    seconds: float = 15.0,
) -> Score:
    """One instrument alone: a line of clear notes, 0.3 to 1.2 s each, around MIDI 48 to 84."""
    key = key or ALL_KEYS[rng.integers(len(ALL_KEYS))]
    grid = _draw_grid(rng, seconds=seconds)
    spans = _draw_spans(rng, key=key, grid=grid)
    timbre = TIMBRES[instrument]
    low, high = max(SOLO_LOW, timbre.low), min(SOLO_HIGH, timbre.high)
    window = 20
    bottom = int(rng.integers(low, high - window + 1))
    lengths = tuple(n for n in range(1, 9) if 0.36 <= n * grid.pulse_seconds <= 1.2)
    # Short ones are drawn more often, for more notes per track.
    lengths += 2 * tuple(n for n in lengths if n * grid.pulse_seconds <= 0.7)
    events = write_melody(
        rng,
        key=key,
        spans=spans,
        metre=grid.metre,
        num_bars=grid.num_bars,
        low=bottom,
        high=bottom + window,
        lengths=lengths,
        rest_chance=0.04,
        instrument=instrument,
    )
    events = [event for event in events if event.length * grid.pulse_seconds >= 0.36]
    return _finish(rng, events, key=key, grid=grid, spans=spans, seconds=seconds, lead=instrument)


def _draw_grid(rng: np.random.Generator, *, seconds: float) -> _Grid:
    """Metre and tempo, bent so that whole bars end a moment before the track does."""
    metre = METRES[("4/4", "3/4", "6/8")[rng.choice(3, p=(0.6, 0.2, 0.2))]]
    fastest = 120.0 if metre.name == "6/8" else MAX_TEMPO
    drawn = float(np.exp(rng.uniform(np.log(MIN_TEMPO), np.log(fastest))))
    offset = float(rng.uniform(0.02, 0.2))
    tail = min(0.8, 0.1 * seconds)
    beats = (seconds - offset - tail) * drawn / 60.0
    num_bars = max(1, round(beats / metre.beats_per_bar))
    tempo = drawn * num_bars * metre.beats_per_bar / max(beats, 1e-3)
    tempo = float(np.clip(tempo, MIN_TEMPO, fastest))
    return _Grid(metre=metre, num_bars=num_bars, tempo=round(tempo, 3), offset_seconds=offset)


def _draw_spans(rng: np.random.Generator, *, key: Key, grid: _Grid) -> list[ChordSpan]:
    """One chord a bar, or two where a bar of four beats is long."""
    bar_seconds = grid.metre.pulses_per_bar * grid.pulse_seconds
    halves = grid.metre.beats_per_bar == 4 and bar_seconds > 2.4
    size = grid.metre.pulses_per_bar // (2 if halves else 1)
    num_slots = grid.num_pulses // size
    chords = chord_walk(rng, key=key, num_slots=num_slots)
    spans = [ChordSpan(i * size, (i + 1) * size, chord) for i, chord in enumerate(chords)]
    if halves:
        # The last bar is one chord: the melody closes on the tonic there.
        last = spans.pop()
        spans[-1] = ChordSpan(spans[-1].start, last.end, last.chord)
        if len(spans) >= 2:
            dominant = chords[-2]
            spans[-2] = ChordSpan(spans[-2].start, spans[-2].end, dominant)
    return spans


def _finish(
    rng: np.random.Generator,
    events: list[Event],
    *,
    key: Key,
    grid: _Grid,
    spans: list[ChordSpan],
    seconds: float,
    lead: str,
    chord_style: ChordStyle | None = None,
) -> Score:
    """Events to seconds: late or early by some milliseconds, and cut at the end of the track."""
    notes: list[Note] = []
    solo = len({event.instrument for event in events}) == 1
    for event in events:
        start = max(0.0, grid.at(event.start) + float(np.clip(rng.normal(0, 0.005), -0.012, 0.012)))
        length = event.length * grid.pulse_seconds
        # A gap of 15 ms between melody notes keeps a monophonic line monophonic.
        end = min(start + (length - 0.03 if solo else 0.96 * length), seconds)
        if end - start >= 0.04:
            notes.append(
                Note(
                    start_seconds=round(start, 6),
                    end_seconds=round(end, 6),
                    pitch=event.pitch,
                    velocity=round(event.velocity, 4),
                    instrument=event.instrument,
                )
            )
    notes.sort(key=lambda note: (note.start_seconds, note.instrument, note.pitch or 0))
    chords = [
        Chord(grid.at(s.start), min(grid.at(s.end), seconds), s.chord.root, s.chord.quality)
        for s in spans
        if grid.at(s.start) < seconds
    ]
    # The last chord rings on to the end of the track.
    chords[-1] = Chord(chords[-1].start_seconds, seconds, chords[-1].root, chords[-1].quality)
    per_beat, per_bar = grid.metre.pulses_per_beat, grid.metre.pulses_per_bar
    beats = (grid.at(pulse) for pulse in range(0, grid.num_pulses, per_beat))
    downbeats = (grid.at(pulse) for pulse in range(0, grid.num_pulses, per_bar))
    return Score(
        seconds=seconds,
        key=key,
        tempo=grid.tempo,
        metre=grid.metre.name,
        beats=tuple(beat for beat in beats if beat < seconds),
        downbeats=tuple(beat for beat in downbeats if beat < seconds),
        chords=tuple(chords),
        notes=tuple(notes),
        lead=lead,
        chord_style=chord_style,
    )
