"""What is asked of frozen features on rendered tracks, and how a task is made of their labels.

    key         a clip of a mix, 24 classes, mean over the clip
    instrument  a clip of a solo, one class per instrument, mean over the clip
    pitch       a note within a clip of a solo, 25 semitones, mean over the note's frames
    chord       a chord within a clip of a mix, root and third, 24 classes, mean over its frames
    tempo       a clip of a mix, 8 classes of beats per minute, mean over the clip
    style       a clip of a mix, pattern of the chords x drums or none, 6 classes, mean over it
    beat        one clip of each mix, an activation every 50 ms, F-measure of its peaks

Every answer is the renderer's own score, so no label is wrong: these tasks are diagnostics, which
say what a model hears and in which layer. They are no benchmark: music that a program composed is
easier than any, and no figure of theirs can be compared with a paper's.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from etude.data.demo.render import Kind
from etude.data.errors import InputError
from etude.probes.demo_questions import (
    CLIP_SECONDS,
    OUTPUTS,
    QUESTIONS,
    STRATA,
    Question,
    clip_starts,
)
from etude.probes.splits import SPLITS, split_tracks
from etude.probes.task_types import AnswerKind, Clip, Example, FeatureRow, ProbeTask

TaskName = Literal["key", "instrument", "pitch", "chord", "tempo", "style", "beat"]

TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)

DEFAULT_TASKS: tuple[TaskName, ...] = ("key", "instrument", "pitch")
"""Asked where nothing else is: seconds, something slow and something short."""


class _Form(NamedTuple):
    kind: Kind
    answer: AnswerKind = "classes"
    metrics: tuple[str, ...] = ("accuracy",)


_FORMS: Mapping[TaskName, _Form] = {
    "key": _Form("mix", metrics=("accuracy", "key_score")),
    "instrument": _Form("solo"),
    "pitch": _Form("solo"),
    "chord": _Form("mix"),
    "tempo": _Form("mix"),
    "style": _Form("mix"),
    "beat": _Form("mix", "beats", ("f_measure",)),
}

TASK_KINDS: Mapping[TaskName, Kind] = {name: form.kind for name, form in _FORMS.items()}
"""The kind of track each task listens to."""


def check_length(seconds: float) -> None:
    """Whether tracks of this length can be asked about.

    :raises InputError: if not.
    """
    if not (math.isfinite(seconds) and clip_starts(seconds)):
        raise InputError(
            f"a probe's track must hold one clip of {CLIP_SECONDS:g} s, but has {seconds:g} s; "
            "give --seconds 15."
        )


def build_task(
    name: TaskName, labels: Sequence[dict[str, Any]], *, seconds: float, seed: int
) -> ProbeTask:
    """The task on rendered tracks.

    :param labels: the renderer's labels, one mapping per track, of kind ``TASK_KINDS[name]``.
    :param seconds: length of each track.
    :param seed: decides the split.
    :raises InputError: if the tracks are too few to leave something for each split.
    """
    form = _FORMS[name]
    asked = _ask(name, labels, seconds=seconds)
    strata: list[Hashable] = [STRATA[name](track) for track in labels]
    # Of a class that training never saw nothing can be known; beats are no classes.
    classes = [frozenset(q.truth for q in track if isinstance(q.truth, int)) for track in asked]
    splits = split_tracks(strata, classes, seed=seed)
    examples = tuple(
        Example(_clip(form.kind, track, question), question.spans, question.truth, splits[track])
        for track, questions in enumerate(asked)
        for question in questions
    )
    for split in SPLITS:
        if not any(example.split == split for example in examples):
            raise InputError(
                f"{len(labels)} tracks leave none for the {split} part of the {name} probe: every "
                f"class keeps its first track for training, so {len(set(strata))} classes need "
                "three times as many tracks; raise --tracks."
            )
    return ProbeTask(name, form.answer, OUTPUTS[name], examples, form.metrics)


def feature_rows(
    name: TaskName, labels: Sequence[dict[str, Any]], *, seconds: float
) -> tuple[FeatureRow, ...]:
    """What the task would have averaged, whatever its split: for a cache that thinks ahead."""
    return tuple(
        FeatureRow(_clip(TASK_KINDS[name], track, question), span)
        for track, questions in enumerate(_ask(name, labels, seconds=seconds))
        for question in questions
        for span in question.spans
    )


def _ask(
    name: TaskName, labels: Sequence[dict[str, Any]], *, seconds: float
) -> list[list[Question]]:
    starts = clip_starts(seconds)
    return [QUESTIONS[name](track, starts) for track in labels]


def _clip(kind: Kind, track: int, question: Question) -> Clip:
    return Clip(kind, track, question.start, CLIP_SECONDS)
