"""The tasks of public data sets: what is asked, of what lengths of audio, and how it is scored."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from etude.probes.datasets import (
    emomusic,
    giantsteps,
    gtzan,
    jamendo,
    magnatagatune,
    nsynth,
    vocalset,
)
from etude.probes.datasets.reading import Listing, Source
from etude.probes.task_types import AnswerKind


@final
@dataclass(frozen=True)
class DatasetTask:
    """One question about one data set."""

    source: Source

    read: Callable[[Path], Listing]

    answer: AnswerKind

    metrics: tuple[str, ...]
    """The first one chooses on validation and is compared."""

    question: str
    """In a few words."""

    clip_seconds: float = math.inf
    """What is encoded at a time; ``inf``: the whole recording."""

    most_seconds: float = math.inf
    """Of a recording; what lies behind is not heard."""


_TAGS = ("roc_auc", "average_precision")

DATASET_TASKS: dict[str, DatasetTask] = {
    "gtzan_genre": DatasetTask(
        gtzan.SOURCE, gtzan.read, "classes", ("accuracy",), "genre, of 10", clip_seconds=30.0
    ),
    "giantsteps_key": DatasetTask(
        giantsteps.SOURCE,
        giantsteps.read,
        "classes",
        ("key_score", "accuracy"),
        "key, of 24",
        clip_seconds=30.0,
    ),
    "emomusic": DatasetTask(
        emomusic.SOURCE,
        emomusic.read,
        "regression",
        ("r2", "r2_arousal", "r2_valence"),
        "arousal and valence",
        clip_seconds=5.0,
        most_seconds=30.0,
    ),
    "nsynth_instrument": DatasetTask(
        nsynth.SOURCE, nsynth.read_family, "classes", ("accuracy",), "family of instrument, of 11"
    ),
    "nsynth_pitch": DatasetTask(
        nsynth.SOURCE, nsynth.read_pitch, "classes", ("accuracy",), "pitch, of 128"
    ),
    "magnatagatune": DatasetTask(
        magnatagatune.SOURCE, magnatagatune.read, "multilabel", _TAGS, "the 50 most frequent tags"
    ),
    "jamendo_genre": DatasetTask(
        jamendo.SOURCE, jamendo.read_genre, "multilabel", _TAGS, "genre tags", clip_seconds=30.0
    ),
    "jamendo_instrument": DatasetTask(
        jamendo.SOURCE,
        jamendo.read_instrument,
        "multilabel",
        _TAGS,
        "instrument tags",
        clip_seconds=30.0,
    ),
    "jamendo_moodtheme": DatasetTask(
        jamendo.SOURCE,
        jamendo.read_moodtheme,
        "multilabel",
        _TAGS,
        "mood and theme tags",
        clip_seconds=30.0,
    ),
    "jamendo_top50": DatasetTask(
        jamendo.SOURCE,
        jamendo.read_top50,
        "multilabel",
        _TAGS,
        "the 50 most frequent tags",
        clip_seconds=30.0,
    ),
    "vocalset_technique": DatasetTask(
        vocalset.SOURCE,
        vocalset.read_technique,
        "classes",
        ("accuracy",),
        "vocal technique, of 10",
        clip_seconds=3.0,
    ),
    "vocalset_singer": DatasetTask(
        vocalset.SOURCE,
        vocalset.read_singer,
        "classes",
        ("accuracy",),
        "singer, of 20",
        clip_seconds=3.0,
    ),
}

DATASET_NAMES: tuple[str, ...] = tuple(
    dict.fromkeys(task.source.name for task in DATASET_TASKS.values())
)
