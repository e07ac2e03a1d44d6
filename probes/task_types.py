"""What a probe is, whatever it is asked of: clips to encode, questions about them, and an answer.

    AudioSource   where waveforms come from: rendered tracks, the files of a data set
    Clip          a stretch of one track, encoded once however many questions are about it
    Example       a question: one clip, the span (or spans) of it to look at, the truth, its split
    ProbeTask     all examples of one task, the kind of its answers, and how they are scored

A task of a real data set is a ``ProbeTask`` and an ``AudioSource`` whose name its clips carry;
``probes.run.probe_tasks`` takes both, and nothing else of the probe knows where they come from.

The kinds of answers:

    classes      one of ``outputs``; ``Example.truth`` is its number
    multilabel   any of ``outputs``; ``truth`` holds 0.0 or 1.0 for each
    regression   a value for each of ``outputs``; ``truth`` holds the values
    beats        when the beats are; ``truth`` holds seconds from the start of the clip, ``spans``
                 the stretches that are asked "is there a beat?", in the order of time

"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from etude.probes.splits import Split

AnswerKind = Literal["classes", "multilabel", "regression", "beats"]

Span = tuple[float, float]
"""Seconds from the start of a clip: first and end."""

WHOLE_CLIP: tuple[Span | None, ...] = (None,)
"""The spans of an example that is about all of its clip."""


class Clip(NamedTuple):
    """A stretch of a track, encoded once however many examples lie in it."""

    source: str
    """Name of its :class:`AudioSource`."""

    track: int
    """Number of the track in its source: what is split and what intervals draw again."""

    start: float
    """Seconds from the start of the track."""

    seconds: float
    """Length; clips of equal length share a batch."""


class AudioSource(Protocol):
    """Tracks that can be listened to at any sample rate."""

    @property
    def name(self) -> str:
        """What :attr:`Clip.source` calls it."""
        ...

    @property
    def identity(self) -> str:
        """Changes whenever any sample may have changed: a part of the feature cache's keys."""
        ...

    def read(self, clip: Clip, sample_rate: int) -> npt.NDArray[np.float32]:
        """The clip's ``round(seconds * sample_rate)`` samples, mono, in [-1, 1).

        :raises DataError: if the track cannot be read.
        """
        ...


class FeatureRow(NamedTuple):
    """What is averaged into one row of features."""

    clip: Clip
    span: Span | None


@dataclass(frozen=True)
class Example:
    """One question."""

    clip: Clip

    spans: tuple[Span | None, ...]
    """Stretches to average frames over, each a row for the head; ``None``: the whole clip.

    One, but for ``beats``, which has a row for each stretch of its grid."""

    truth: int | tuple[float, ...]
    """See the module's head for what each kind of answer has here."""

    split: Split

    group: int | None = None
    """What intervals draw again, where it is more than the track: an artist, an instrument."""


@dataclass(frozen=True)
class ProbeTask:
    """Questions of one kind about the tracks of one source, split by track."""

    name: str

    answer: AnswerKind

    outputs: tuple[str, ...]
    """Names of the classes, of the labels or of the values; of ``beats`` just one."""

    examples: tuple[Example, ...]

    metrics: tuple[str, ...] = ("accuracy",)
    """Names in ``probes.metrics.METRICS``; the first one chooses on validation and is compared."""

    mean_over_track: bool = False
    """Whether answers to a track's examples are averaged before they are scored, as MARBLE does
    with the windows of a long clip. All examples of a track must then have the same truth."""

    @property
    def feature_rows(self) -> tuple[FeatureRow, ...]:
        """What is averaged, in the order of examples and of spans within each."""
        return tuple(FeatureRow(e.clip, span) for e in self.examples for span in e.spans)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class of each example, (examples,); of ``classes`` alone."""
        return np.array([example.truth for example in self.examples], dtype=np.int64)

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """Truth of each example, (examples, outputs); of ``multilabel`` and ``regression``."""
        return np.array([example.truth for example in self.examples], dtype=np.float32)

    @property
    def tracks(self) -> npt.NDArray[np.int64]:
        """Track (or group) of each example: what is drawn when the test is drawn again."""
        drawn = (e.clip.track if e.group is None else e.group for e in self.examples)
        return np.fromiter(drawn, dtype=np.int64)

    def rows(self, split: Split) -> npt.NDArray[np.int64]:
        """Numbers of a split's examples."""
        rows = [row for row, example in enumerate(self.examples) if example.split == split]
        return np.array(rows, dtype=np.int64)

    def class_counts(self, split: Split) -> dict[str, int]:
        """Examples of each class in a split; of ``classes`` alone."""
        counts = Counter(e.truth for e in self.examples if e.split == split)
        return {name: counts[label] for label, name in enumerate(self.outputs)}
