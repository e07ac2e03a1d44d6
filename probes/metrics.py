"""How answers are scored: of one example, or of all of them together.

    accuracy       classes     share of right answers
    key_score      classes     MIREX: 1 right, .5 a fifth off, .3 relative, .2 parallel (mir_eval)
    f_measure      beats       F-measure of beats within 70 ms, of each clip (mir_eval)
    roc_auc        multilabel  area under the ROC curve, mean over labels
    average_precision  multilabel  area under the precision-recall curve, mean over labels
    r2             regression  explained variance, mean over values
    r2_arousal, r2_valence     of the first and of the second value

All are better the higher. A metric that is a mean over examples gets its interval by adding sums
up; the others are computed anew on each draw of tracks (``probes.intervals``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mir_eval
import numpy as np
import numpy.typing as npt

from etude.probes.beats import pick_beats
from etude.probes.curves import Draws, average_precision, roc_auc
from etude.probes.intervals import Evidence, joint_evidence, mean_evidence
from etude.probes.task_types import AnswerKind, ProbeTask

Outputs = npt.NDArray[np.float32]
"""What a head says: (rows, outputs), a row for each example; for beats one for each span."""

Rows = npt.NDArray[np.int64]
"""Numbers of examples of a task."""

Scores = npt.NDArray[np.float64]
"""Of each example."""


@dataclass(frozen=True)
class MeanMetric:
    """The mean of what single examples score."""

    answer: AnswerKind

    each: Callable[[Outputs, ProbeTask, Rows], Scores]
    """Score of each example, of their outputs in this order."""


@dataclass(frozen=True)
class JointMetric:
    """A value of all examples together."""

    answer: AnswerKind

    value: Callable[[npt.NDArray[np.float32], Outputs, Draws], Scores]
    """Of the truth (examples, outputs), of the outputs, and of how often each example was drawn
    (draws, examples): a value for each draw, ``nan`` where it is undefined."""


Metric = MeanMetric | JointMetric


def evaluate(metric: Metric, outputs_NC: Outputs, task: ProbeTask, rows: Rows) -> float:
    """The metric on these examples."""
    outputs_NC, rows = _scored(outputs_NC, task, rows)
    if isinstance(metric, MeanMetric):
        return float(metric.each(outputs_NC, task, rows).mean())
    return float(metric.value(task.values[rows], outputs_NC, np.ones((1, len(rows))))[0])


def evidence(
    metric: Metric, outputs_SNC: Outputs, task: ProbeTask, rows: Rows, *, seed: int
) -> Evidence:
    """The metric of each seed's outputs, and on tracks drawn again.

    :param outputs_SNC: (seeds, rows, outputs).
    :param seed: decides the draws.
    """
    merged = [_scored(outputs_NC, task, rows) for outputs_NC in outputs_SNC]
    rows = merged[0][1]
    tracks = task.tracks[rows]
    if isinstance(metric, MeanMetric):
        scores_SN = np.stack([metric.each(outputs, task, rows) for outputs, _ in merged])
        return mean_evidence(scores_SN, tracks, seed=seed)
    value, truth = metric.value, task.values[rows]
    return joint_evidence(
        lambda number, times_RN: value(truth, merged[number][0], times_RN),
        len(merged),
        tracks,
        seed=seed,
    )


def track_scores(
    metric: MeanMetric, outputs_SNC: Outputs, task: ProbeTask, rows: Rows
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Scores]:
    """Tracks, scored examples of each, and the sum of their scores, mean over seeds."""
    merged = [_scored(outputs_NC, task, rows) for outputs_NC in outputs_SNC]
    rows = merged[0][1]
    scores = np.mean([metric.each(outputs, task, rows) for outputs, _ in merged], axis=0)
    tracks, place = np.unique(task.tracks[rows], return_inverse=True)
    sums = np.bincount(place, weights=scores).astype(np.float64)
    return tracks, np.bincount(place).astype(np.int64), sums


def _scored(outputs_NC: Outputs, task: ProbeTask, rows: Rows) -> tuple[Outputs, Rows]:
    """Averages a track's answers where the task says so; the first example then stands for it."""
    if not task.mean_over_track:
        return outputs_NC, rows
    clips = np.array([task.examples[row].clip.track for row in rows])
    _, first, place = np.unique(clips, return_index=True, return_inverse=True)
    sums = np.zeros((len(first), outputs_NC.shape[1]), dtype=np.float64)
    np.add.at(sums, place, outputs_NC)
    means = sums / np.bincount(place)[:, None]
    return means.astype(np.float32), rows[first]


def _accuracy(outputs_NC: Outputs, task: ProbeTask, rows: Rows) -> Scores:
    right: npt.NDArray[np.bool_] = outputs_NC.argmax(axis=1) == task.labels[rows]
    return right.astype(np.float64)


def _key_score(outputs_NC: Outputs, task: ProbeTask, rows: Rows) -> Scores:
    """``outputs`` of the task must be names of keys that mir_eval reads, such as "F# minor"."""
    return np.array(
        [
            mir_eval.key.weighted_score(task.outputs[label], task.outputs[answer])
            for label, answer in zip(task.labels[rows], outputs_NC.argmax(axis=1), strict=True)
        ]
    )


def _f_measure(outputs_NC: Outputs, task: ProbeTask, rows: Rows) -> Scores:
    scores, first = [], 0
    for row in rows:
        example = task.examples[row]
        activation = outputs_NC[first : first + len(example.spans), 0]
        first += len(example.spans)
        found = pick_beats(activation, example.spans)
        truth = np.asarray(example.truth, dtype=np.float64)
        scores.append(beat_f_measure(truth, found))
    return np.array(scores)


def beat_f_measure(truth: npt.NDArray[np.float64], found: npt.NDArray[np.float64]) -> float:
    """F-measure of beat times in seconds within 70 ms; 1 where there is nothing to find."""
    if len(truth) == 0 or len(found) == 0:
        return float(len(truth) == len(found))
    return float(mir_eval.beat.f_measure(truth, found))


def _r2(truth_NC: npt.NDArray[np.float32], outputs_NC: Outputs, times_RN: Draws) -> Scores:
    """Mean over outputs of each draw."""
    total_R1 = times_RN.sum(axis=1, keepdims=True)
    # Around a value near the mean, so that the difference of squares below keeps its digits.
    truth = truth_NC.astype(np.float64) - truth_NC.mean(axis=0)
    spread_RC = times_RN @ truth**2 - (times_RN @ truth) ** 2 / total_R1
    error_RC = times_RN @ (truth_NC.astype(np.float64) - outputs_NC) ** 2
    known_RC = spread_RC > 1e-9 * total_R1
    ratio_RC = error_RC / np.where(known_RC, spread_RC, np.nan)
    values_R: Scores = (1.0 - ratio_RC).mean(axis=1)
    return values_R


def _r2_of(output: int) -> Callable[[npt.NDArray[np.float32], Outputs, Draws], Scores]:
    def value(truth_NC: npt.NDArray[np.float32], outputs_NC: Outputs, times_RN: Draws) -> Scores:
        return _r2(truth_NC[:, [output]], outputs_NC[:, [output]], times_RN)

    return value


METRICS: Mapping[str, Metric] = {
    "accuracy": MeanMetric("classes", _accuracy),
    "key_score": MeanMetric("classes", _key_score),
    "f_measure": MeanMetric("beats", _f_measure),
    "roc_auc": JointMetric("multilabel", roc_auc),
    "average_precision": JointMetric("multilabel", average_precision),
    "r2": JointMetric("regression", _r2),
    "r2_arousal": JointMetric("regression", _r2_of(0)),
    "r2_valence": JointMetric("regression", _r2_of(1)),
}
"""By the names that tasks use; the kind of answer says which tasks may."""
