"""What is asked of frozen features: the key of a mix, the instrument of a solo, a note's pitch.

    key         a 5 s clip of a mix, 24 classes, mean over the clip
    instrument  a 5 s clip of a solo, one class per instrument, mean over the clip
    pitch       a note within a 5 s clip of a solo, 25 semitones, mean over the note's frames

Every answer is the renderer's own score, so no label is wrong. Key asks for what a model heard over
seconds, pitch for what it knows of one moment, instrument for what is left when pitch is averaged
away: layers differ in which they keep.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from etude.data.demo.harmony import ALL_KEYS
from etude.data.demo.render import INSTRUMENTS, Kind
from etude.data.errors import InputError
from etude.probes.splits import SPLITS, Split, split_tracks

TaskName = Literal["key", "instrument", "pitch"]

TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)

TASK_KINDS: Mapping[TaskName, Kind] = {"key": "mix", "instrument": "solo", "pitch": "solo"}
"""The kind of track each task listens to."""

CLIP_SECONDS = 5.0
"""What is encoded at a time: the crop MERT and music2vec were trained on."""

PITCHES = range(55, 80)
"""MIDI numbers asked for, G3 to G5: the two octaves that every instrument's register reaches."""

MIN_NOTE_SECONDS = 0.25


class Clip(NamedTuple):
    """A stretch of ``CLIP_SECONDS``, encoded once however many examples lie in it."""

    kind: Kind
    track: int
    start: float
    """Seconds from the start of the track."""


@dataclass(frozen=True)
class Example:
    """One question: which class is this clip, or this span of it?"""

    clip: Clip

    span: tuple[float, float] | None
    """Seconds from the start of the clip to pool over; ``None``: all of it."""

    label: int
    """Index into the task's classes."""

    split: Split


@dataclass(frozen=True)
class ProbeTask:
    """A classification of clips or notes, with its split by track."""

    name: TaskName
    classes: tuple[str, ...]
    examples: tuple[Example, ...]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Label of each example."""
        return np.array([example.label for example in self.examples], dtype=np.int64)

    @property
    def tracks(self) -> npt.NDArray[np.int64]:
        """Track of each example: what is drawn when the test is drawn again."""
        return np.array([example.clip.track for example in self.examples], dtype=np.int64)

    def rows(self, split: Split) -> npt.NDArray[np.int64]:
        """Indices of a split's examples."""
        rows = [row for row, example in enumerate(self.examples) if example.split == split]
        return np.array(rows, dtype=np.int64)

    def class_counts(self, split: Split) -> dict[str, int]:
        """Examples of each class in a split."""
        counts = Counter(e.label for e in self.examples if e.split == split)
        return {name: counts[label] for label, name in enumerate(self.classes)}


def build_task(
    name: TaskName, labels: Sequence[dict[str, Any]], *, seconds: float, seed: int
) -> ProbeTask:
    """The task on rendered tracks.

    :param labels: the renderer's labels, one mapping per track, of kind ``TASK_KINDS[name]``.
    :param seconds: length of each track.
    :param seed: decides the split.
    :raises InputError: if the tracks are too few to leave something for each split.
    """
    starts = [CLIP_SECONDS * index for index in range(int(seconds / CLIP_SECONDS))]
    if not starts:
        raise InputError(
            f"a probe's track must hold one clip of {CLIP_SECONDS:g} s, but has {seconds:g} s; "
            "give --seconds 15."
        )
    questions = [_questions(name, track, starts) for track in labels]
    # Solos are split by instrument in both of their tasks, so that pitch is asked across timbres.
    strata = [track["key"]["name"] if name == "key" else track["lead"] for track in labels]
    asked = [frozenset(label for *_, label in track) for track in questions]
    splits = split_tracks(strata, asked, seed=seed)

    examples = tuple(
        Example(Clip(TASK_KINDS[name], track, start), span, label, splits[track])
        for track, asked_here in enumerate(questions)
        for start, span, label in asked_here
    )
    for split in SPLITS:
        if not any(example.split == split for example in examples):
            raise InputError(
                f"{len(labels)} tracks leave none for the {split} part of the {name} probe: every "
                f"class keeps its first track for training, so {len(set(strata))} classes need "
                "three times as many tracks; raise --tracks."
            )
    return ProbeTask(name, _CLASSES[name], examples)


_KEY_NAMES = tuple(key.name for key in ALL_KEYS)
_CLASSES: Mapping[TaskName, tuple[str, ...]] = {
    "key": _KEY_NAMES,
    "instrument": INSTRUMENTS,
    "pitch": tuple(str(pitch) for pitch in PITCHES),
}

_Question = tuple[float, tuple[float, float] | None, int]
"""Start of the clip, span within it, label."""


def _questions(name: TaskName, track: dict[str, Any], starts: Sequence[float]) -> list[_Question]:
    if name == "key":
        label = _KEY_NAMES.index(track["key"]["name"])
        return [(start, None, label) for start in starts]
    if name == "instrument":
        label = INSTRUMENTS.index(track["lead"])
        return [(start, None, label) for start in starts]
    return [
        (start, (note["start"] - start, note["end"] - start), PITCHES.index(note["pitch"]))
        for start in starts
        for note in track["notes"]
        if note["pitch"] in PITCHES
        and note["end"] - note["start"] >= MIN_NOTE_SECONDS
        and start <= note["start"]
        and note["end"] <= start + CLIP_SECONDS
    ]
