"""The questions that each task asks of one rendered track, out of the renderer's labels.

Key and style ask for what a model heard over seconds, pitch and chord for what it knows of one
moment, instrument for what is left when pitch is averaged away, tempo and beat for time itself:
layers differ in which they keep.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from etude.data.demo.accompaniment import CHORD_STYLES
from etude.data.demo.harmony import ALL_KEYS, MAJOR_NAMES, MINOR_NAMES, QUALITIES
from etude.data.demo.render import INSTRUMENTS
from etude.data.demo.score import MAX_TEMPO, MIN_TEMPO
from etude.probes.task_types import WHOLE_CLIP, Span

CLIP_SECONDS = 5.0
"""What is encoded at a time: the crop MERT and music2vec were trained on."""

PITCHES = range(55, 80)
"""MIDI numbers asked for, G3 to G5: the two octaves that every instrument's register reaches."""

MIN_NOTE_SECONDS = 0.25

MIN_CHORD_SECONDS = 0.5
"""Of what a clip has of a chord: less is mostly the tail of the one before."""

BEAT_STEP_SECONDS = 0.05
"""A grid fine enough for a tolerance of 70 ms: its centres are at most 25 ms off."""

TEMPO_CLASSES = 8
"""Of equal ratio, 15 % wide, from the slowest to the fastest tempo of the demo corpus."""

Track = Mapping[str, Any]
"""The renderer's labels of one track."""


class Question(NamedTuple):
    """What will be an example once its track has a split."""

    start: float
    """Of the clip, in seconds."""
    spans: tuple[Span | None, ...]
    truth: int | tuple[float, ...]


def clip_starts(seconds: float) -> list[float]:
    """Where the clips of a track start: side by side, as many as fit."""
    return [CLIP_SECONDS * index for index in range(int(seconds / CLIP_SECONDS))]


def tempo_class(tempo: float) -> int:
    """Which of ``TEMPO_CLASSES`` a tempo in beats per minute is in."""
    share = math.log(tempo / MIN_TEMPO) / math.log(MAX_TEMPO / MIN_TEMPO)
    return min(max(int(share * TEMPO_CLASSES), 0), TEMPO_CLASSES - 1)


def _tempo_names() -> tuple[str, ...]:
    step = (MAX_TEMPO / MIN_TEMPO) ** (1 / TEMPO_CLASSES)
    edges = [MIN_TEMPO * step**edge for edge in range(TEMPO_CLASSES + 1)]
    return tuple(f"{low:.0f}-{high:.0f} BPM" for low, high in itertools.pairwise(edges))


def _of_clips(label: Callable[[Track], int]) -> Callable[[Track, Sequence[float]], list[Question]]:
    """One question about each whole clip, with the track's answer."""

    def ask(track: Track, starts: Sequence[float]) -> list[Question]:
        return [Question(start, WHOLE_CLIP, label(track)) for start in starts]

    return ask


def _notes(track: Track, starts: Sequence[float]) -> list[Question]:
    return [
        Question(
            start,
            ((note["start"] - start, note["end"] - start),),
            PITCHES.index(note["pitch"]),
        )
        for start in starts
        for note in track["notes"]
        if note["pitch"] in PITCHES
        and note["end"] - note["start"] >= MIN_NOTE_SECONDS
        and start <= note["start"]
        and note["end"] <= start + CLIP_SECONDS
    ]


def _chords(track: Track, starts: Sequence[float]) -> list[Question]:
    questions = []
    for start in starts:
        for chord in track["chords"]:
            first = max(chord["start"] - start, 0.0)
            end = min(chord["end"] - start, CLIP_SECONDS)
            if end - first >= MIN_CHORD_SECONDS:
                questions.append(Question(start, ((first, end),), chord_class(chord)))
    return questions


def chord_class(chord: Mapping[str, Any]) -> int:
    """Root and third: sevenths fall together with the triad below, as in MIREX's ``majmin``."""
    minor = 3 in QUALITIES[chord["quality"]]
    return int(chord["root"]) + 12 * minor


def style_class(track: Track) -> int:
    """Pattern of the chords, and whether drums play."""
    drums = "kick" in track["instruments"]
    return CHORD_STYLES.index(track["chord_style"]) + len(CHORD_STYLES) * drums


def _beats(track: Track, starts: Sequence[float]) -> list[Question]:
    """One clip of each track, the middle one: frames are many, and tracks are what counts."""
    start = starts[len(starts) // 2]
    steps = round(CLIP_SECONDS / BEAT_STEP_SECONDS)
    edges = [step * BEAT_STEP_SECONDS for step in range(steps + 1)]
    beats = (beat - start for beat in track["beats"])
    inside = tuple(beat for beat in beats if 0.0 <= beat < CLIP_SECONDS)
    return [Question(start, tuple(itertools.pairwise(edges)), inside)]


_KEY_NAMES = tuple(key.name for key in ALL_KEYS)

OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "key": _KEY_NAMES,
    "instrument": INSTRUMENTS,
    "pitch": tuple(str(pitch) for pitch in PITCHES),
    "chord": (*(f"{n} major" for n in MAJOR_NAMES), *(f"{n} minor" for n in MINOR_NAMES)),
    "tempo": _tempo_names(),
    "style": tuple(
        f"{style}, {drums}" for drums in ("no drums", "drums") for style in CHORD_STYLES
    ),
    "beat": ("beat",),
}
"""Names of each task's classes."""

QUESTIONS: Mapping[str, Callable[[Track, Sequence[float]], list[Question]]] = {
    "key": _of_clips(lambda track: _KEY_NAMES.index(track["key"]["name"])),
    "instrument": _of_clips(lambda track: INSTRUMENTS.index(track["lead"])),
    "pitch": _notes,
    "chord": _chords,
    "tempo": _of_clips(lambda track: tempo_class(track["tempo"])),
    "style": _of_clips(style_class),
    "beat": _beats,
}
"""What each task asks of a track with clips at these starts."""

# Solos are split by instrument in both of their tasks, so that pitch is asked across timbres.
STRATA: Mapping[str, Callable[[Track], Hashable]] = {
    "key": lambda track: track["key"]["name"],
    "instrument": lambda track: track["lead"],
    "pitch": lambda track: track["lead"],
    "chord": lambda track: track["key"]["name"],
    "tempo": lambda track: tempo_class(track["tempo"]),
    "style": style_class,
    "beat": lambda track: track["metre"],
}
"""What each task's split balances over."""
