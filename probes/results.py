"""What a probe run found, and its forms: ``results.json``, a table, a figure (``probes.figure``).

``results.json``:

    settings        seed, tracks per kind, seconds, clip_seconds, heads, head_seeds, weighted_sum,
                    regularisation, bootstrap draws
    models          name, path, kind, sample_rate, baselines
    tasks.NAME
      answer        classes, multilabel, regression or beats;  metric: its first one
      classes       in label order
      splits        per split: tracks, clips, examples; of classes also class_counts
      constant      the metric of the best answer without listening
      chance        the metric of a guess;  majority_rate: ``constant`` again.  Of classes alone
      test_tracks   numbers of the test's tracks; test_examples: how many questions each was asked
      results.MODEL what the first head found:
        chosen_layer, valid_METRIC, test {value, low, high}, layers [...], each of them with
                    its own test {value, low, high} where METRIC is a mean over examples
        test_right  of each test track the sum of what its examples scored at the chosen layer
        further     the task's other metrics at the chosen layer, {value, low, high}
        weighted_sum  valid_METRIC, test {value, low, high}, what was tuned, layer_weights
        heads.NAME  the same of every further head
      differences   [{model, baseline, value, low, high}], of the first head's metric
      head_differences.NAME  the same of every further head

METRIC is the task's first metric: ``valid_accuracy`` of classes. For a head with several random
starts, values are means over them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from etude.data.files import json_bytes, write_bytes
from etude.data.text import aligned
from etude.probes.beats import regular_pulse
from etude.probes.heads import HeadName, HeadScore, LayerScore
from etude.probes.intervals import Evidence, Interval
from etude.probes.metrics import (
    METRICS,
    MeanMetric,
    beat_f_measure,
    evaluate,
    evidence,
    track_scores,
)
from etude.probes.splits import SPLITS
from etude.probes.task_types import ProbeTask

RESULTS_NAME = "results.json"

ModelKind = Literal["trained", "huggingface", "untrained", "log-mel", "chroma", "mfcc"]


@dataclass(frozen=True)
class ProbedModel:
    """A row of the table."""

    name: str
    kind: ModelKind
    path: str | None
    """The folder its weights came from."""
    sample_rate: int
    baselines: tuple[str, ...] = ()
    """Rows it is compared with."""


@dataclass(frozen=True)
class Difference:
    """A metric of a model minus a baseline's, on the same test examples."""

    model: str
    baseline: str
    interval: Interval


@dataclass(frozen=True, eq=False)
class HeadResult:
    """All models under one head."""

    scores: Mapping[str, HeadScore]
    test: Mapping[str, Interval]
    """The first metric of each model's chosen layer."""
    further: Mapping[str, Mapping[str, Interval]]
    """The other metrics, by model and name."""
    sums: Mapping[str, Interval]
    """The first metric of each model's weighted sum, where there is one."""
    differences: tuple[Difference, ...]


@dataclass(frozen=True, eq=False)
class TaskResult:
    """All models on one task."""

    task: ProbeTask
    heads: Mapping[HeadName, HeadResult]
    """By name, in the order asked; the first one is drawn."""

    @property
    def first(self) -> HeadResult:
        """The first head's."""
        return next(iter(self.heads.values()))

    @cached_property
    def chance(self) -> float | None:
        """What the metric makes of a guess among all classes, on average; of classes alone."""
        if self.task.answer != "classes":
            return None
        if self.task.metrics[0] == "accuracy":
            return 1.0 / len(self.task.outputs)
        return float(np.mean([self._score_of(guess) for guess in np.eye(len(self.task.outputs))]))

    @property
    def constant(self) -> float:
        """The metric on the test of the answer that fits training best, whatever is heard."""
        task, train = self.task, self.task.rows("train")
        if task.answer == "beats":
            rows = task.rows("test")
            pulse = regular_pulse([task.examples[row] for row in train])
            truths = [np.asarray(task.examples[row].truth, dtype=np.float64) for row in rows]
            return float(np.mean([beat_f_measure(truth, pulse) for truth in truths]))
        if task.answer == "classes":
            answer = np.bincount(task.labels[train], minlength=len(task.outputs))
        else:
            answer = task.values[train].mean(axis=0)
        return self._score_of(answer)

    def _score_of(self, answer_C: npt.NDArray[Any]) -> float:
        """The metric on the test of one answer to all of it."""
        rows = self.task.rows("test")
        outputs_NC = np.tile(answer_C.astype(np.float32), (len(rows), 1))
        return evaluate(METRICS[self.task.metrics[0]], outputs_NC, self.task, rows)


def judge(
    task: ProbeTask,
    scores: Mapping[HeadName, Mapping[str, HeadScore]],
    models: Sequence[ProbedModel],
    *,
    seed: int,
) -> TaskResult:
    """Intervals of all models, and of what they differ by.

    :param scores: by head and model.
    :param seed: decides the draws, which are the same for all.
    """
    return TaskResult(
        task, {head: _judge_head(task, found, models, seed) for head, found in scores.items()}
    )


def _judge_head(
    task: ProbeTask, scores: Mapping[str, HeadScore], models: Sequence[ProbedModel], seed: int
) -> HeadResult:
    rows = task.rows("test")
    first, *others = task.metrics

    def found(score: LayerScore, metric: str) -> Evidence:
        return evidence(METRICS[metric], score.fit.outputs_SNC, task, rows, seed=seed)

    chosen = {name: found(score.chosen, first) for name, score in scores.items()}
    return HeadResult(
        scores,
        {name: each.interval for name, each in chosen.items()},
        {
            name: {metric: found(score.chosen, metric).interval for metric in others}
            for name, score in scores.items()
        },
        {
            name: found(score.weighted_sum, first).interval
            for name, score in scores.items()
            if score.weighted_sum is not None
        },
        tuple(
            Difference(model.name, baseline, chosen[model.name].minus(chosen[baseline]).interval)
            for model in models
            for baseline in model.baselines
        ),
    )


@dataclass(frozen=True)
class ProbeResults:
    """All models on all tasks."""

    settings: dict[str, Any]
    models: tuple[ProbedModel, ...]
    tasks: Mapping[str, TaskResult]

    def as_json(self) -> dict[str, Any]:
        """The content of ``results.json``."""
        return {
            "settings": self.settings,
            "models": [asdict(model) for model in self.models],
            "tasks": {
                name: _task_json(result, seed=self.settings["seed"])
                for name, result in self.tasks.items()
            },
        }

    def table(self) -> str:
        """A table for each head: the metric with its 95 % interval, and the differences below."""
        heads = next(iter(self.tasks.values())).heads
        return "\n\n".join(self._head_table(head, named=len(heads) > 1) for head in heads)

    def further_table(self) -> str:
        """The first head's further metrics at the layers that the first metric chose."""
        rows = [["test score [95 %]"]]
        rows += [[model.name] for model in self.models]
        for name, result in self.tasks.items():
            for metric in result.task.metrics[1:]:
                rows[0].append(f"{name} ({metric})")
                for row, model in zip(rows[1:], self.models, strict=True):
                    row.append(_cell(result.first.further[model.name][metric]))
        return aligned(rows) if len(rows[0]) > 1 else ""

    def write(self, folder: Path) -> None:
        """Writes ``results.json`` and ``layers.png``."""
        # Imported here alone: figures want matplotlib, whoever reads results does without.
        from etude.probes.figure import draw

        write_bytes(folder / RESULTS_NAME, json_bytes(self.as_json()))
        draw(self, folder)

    def _head_table(self, head: HeadName, *, named: bool) -> str:
        by_task = {name: (result, result.heads[head]) for name, result in self.tasks.items()}
        accuracies = all(result.task.metrics[0] == "accuracy" for result in self.tasks.values())
        title = f"test {'accuracy' if accuracies else 'score'} [95 %] (layer)"
        rows: list[list[str]] = [[f"{head}, {title}" if named else title]]
        for name, (result, _) in by_task.items():
            metric = result.task.metrics[0]
            rows[0].append(name if metric == "accuracy" else f"{name} ({metric})")
        for model in self.models:
            cells, sums = [], []
            for _, found in by_task.values():
                score = found.scores[model.name]
                layer = f" ({score.chosen.layer})" if len(score.layers) > 1 else ""
                cells.append(_cell(found.test[model.name]) + layer)
                sums.append(_cell(found.sums[model.name]) if model.name in found.sums else "")
            rows.append([model.name, *cells])
            if any(sums):
                rows.append([f"{model.name}, all layers", *sums])
        results = [result for result, _ in by_task.values()]
        classes = all(result.chance is not None for result in results)
        rows.append(["majority" if classes else "constant"])
        rows[-1] += [f"{result.constant:.3f}" for result in results]
        rows.append(["chance", *("" if r.chance is None else f"{r.chance:.3f}" for r in results)])
        # Every task has the same pairs in the same order.
        for pair in zip(*(found.differences for _, found in by_task.values()), strict=True):
            cells = [_cell(difference.interval, sign="+") for difference in pair]
            rows.append([f"{pair[0].model} - {pair[0].baseline}", *cells])
        return aligned(rows)


def _cell(interval: Interval, *, sign: str = "") -> str:
    return f"{interval.value:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def _task_json(result: TaskResult, *, seed: int) -> dict[str, Any]:
    task = result.task
    splits: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        examples = [example for example in task.examples if example.split == split]
        splits[split] = {
            "tracks": len({example.clip.track for example in examples}),
            "clips": len({example.clip for example in examples}),
            "examples": len(examples),
        }
        if task.answer == "classes":
            splits[split]["class_counts"] = task.class_counts(split)
    (first, found), *others = result.heads.items()
    guesses = {"constant": result.constant}
    if result.chance is not None:
        guesses |= {"chance": result.chance, "majority_rate": result.constant}
    content = {
        "answer": task.answer,
        "metric": task.metrics[0],
        "classes": list(task.outputs),
        "splits": splits,
        **guesses,
        **_asked(task, next(iter(found.scores.values()))),
        "results": {
            name: {
                **_model_json(task, found, name, seed),
                "heads": {head: _model_json(task, other, name, seed) for head, other in others},
            }
            for name in found.scores
        },
        "differences": _differences_json(found),
        "head_differences": {head: _differences_json(other) for head, other in others},
    }
    return content


def _asked(task: ProbeTask, score: HeadScore) -> dict[str, list[int]]:
    """Test tracks and how many scored examples each has, whatever was answered."""
    metric = METRICS[task.metrics[0]]
    rows = task.rows("test")
    if isinstance(metric, MeanMetric):
        tracks, examples, _ = track_scores(metric, score.chosen.fit.outputs_SNC, task, rows)
    else:
        tracks, examples = np.unique(task.tracks[rows], return_counts=True)
    return {"test_tracks": tracks.tolist(), "test_examples": examples.tolist()}


def _model_json(task: ProbeTask, found: HeadResult, name: str, seed: int) -> dict[str, Any]:
    score, first = found.scores[name], task.metrics[0]
    metric = METRICS[first]
    content: dict[str, Any] = {
        "chosen_layer": score.chosen.layer,
        f"valid_{first}": score.chosen.fit.valid,
        "test": asdict(found.test[name]),
    }
    if isinstance(metric, MeanMetric):
        rows = task.rows("test")
        *_, right = track_scores(metric, score.chosen.fit.outputs_SNC, task, rows)
        content["test_right"] = [_whole(value) for value in right.tolist()]
    content["layers"] = [
        {
            "layer": layer.layer,
            **layer.fit.tuning,
            f"valid_{first}": layer.fit.valid,
            f"test_{first}": layer.test,
            **_layer_interval(task, layer, seed),
        }
        for layer in score.layers
    ]
    content["further"] = {key: asdict(value) for key, value in found.further[name].items()}
    if score.weighted_sum is not None:
        fit = score.weighted_sum.fit
        content["weighted_sum"] = {
            f"valid_{first}": fit.valid,
            "test": asdict(found.sums[name]),
            **fit.tuning,
            "layer_weights": list(fit.layer_weights or ()),
        }
    return content


def _layer_interval(task: ProbeTask, layer: LayerScore, seed: int) -> dict[str, Any]:
    """Of means over examples alone: the bootstrap of an area under a curve costs too much."""
    metric = METRICS[task.metrics[0]]
    if not isinstance(metric, MeanMetric):
        return {}
    found = evidence(metric, layer.fit.outputs_SNC, task, task.rows("test"), seed=seed)
    return {"test": asdict(found.interval)}


def _differences_json(found: HeadResult) -> list[dict[str, Any]]:
    return [
        {"model": d.model, "baseline": d.baseline, **asdict(d.interval)} for d in found.differences
    ]


def _whole(value: float) -> float | int:
    """Counts of right answers as the whole numbers they are."""
    return int(value) if value.is_integer() else value
