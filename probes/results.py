"""What a probe run found, and its three forms: ``results.json``, a table, a figure.

``results.json``:

    settings        seed, tracks per kind, seconds, clip_seconds, regularisation, bootstrap draws
    models          name, path, kind, sample_rate, layers of every representation
    tasks.NAME
      classes       in label order
      splits        per split: tracks, clips, examples, class_counts
      chance        1 / number of classes
      majority_rate test accuracy of always answering training's most frequent class
      test_tracks   numbers of the test's tracks; test_examples: how many questions each was asked
      results.MODEL chosen_layer, valid_accuracy, test {value, low, high}, layers [...],
                    test_right: how many each test track had right at the chosen layer
      differences   [{model, baseline, value, low, high}], accuracies subtracted
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from etude.data.files import json_bytes, write_bytes
from etude.data.text import aligned
from etude.probes.intervals import Interval
from etude.probes.linear import ProbeScore
from etude.probes.splits import SPLITS
from etude.probes.tasks import ProbeTask, TaskName

RESULTS_NAME = "results.json"
FIGURE_NAME = "layers.png"

ModelKind = Literal["trained", "huggingface", "untrained", "log-mel"]


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
    """Accuracy of a model minus a baseline's, on the same test examples."""

    model: str
    baseline: str
    interval: Interval


@dataclass(frozen=True)
class TaskResult:
    """All models on one task."""

    task: ProbeTask
    scores: dict[str, ProbeScore]
    test: dict[str, Interval]
    """Test accuracy of each model's chosen layer."""
    differences: tuple[Difference, ...]

    @property
    def chance(self) -> float:
        """Accuracy of a guess without looking at anything."""
        return 1.0 / len(self.task.classes)

    @property
    def majority_rate(self) -> float:
        """Test accuracy of the most frequent class in training."""
        labels = self.task.labels
        frequent = np.bincount(labels[self.task.rows("train")]).argmax()
        return float(np.mean(labels[self.task.rows("test")] == frequent))


@dataclass(frozen=True)
class ProbeResults:
    """All models on all tasks."""

    settings: dict[str, Any]
    models: tuple[ProbedModel, ...]
    tasks: dict[TaskName, TaskResult]

    def as_json(self) -> dict[str, Any]:
        """The content of ``results.json``."""
        return {
            "settings": self.settings,
            "models": [asdict(model) for model in self.models],
            "tasks": {name: _task_json(result) for name, result in self.tasks.items()},
        }

    def table(self) -> str:
        """Test accuracies with their 95 % intervals, and the differences below."""
        rows: list[list[str]] = [["test accuracy [95 %] (layer)", *self.tasks]]
        for model in self.models:
            cells = []
            for result in self.tasks.values():
                score, chosen = result.scores[model.name], result.test[model.name]
                layer = f" ({score.chosen.layer})" if len(score.layers) > 1 else ""
                cells.append(f"{chosen.value:.3f} [{chosen.low:.3f}, {chosen.high:.3f}]{layer}")
            rows.append([model.name, *cells])
        rows.append(["majority", *(f"{r.majority_rate:.3f}" for r in self.tasks.values())])
        rows.append(["chance", *(f"{r.chance:.3f}" for r in self.tasks.values())])
        # Every task has the same pairs in the same order.
        for pair in zip(*(result.differences for result in self.tasks.values()), strict=True):
            cells = [
                f"{d.interval.value:+.3f} [{d.interval.low:+.3f}, {d.interval.high:+.3f}]"
                for d in pair
            ]
            rows.append([f"{pair[0].model} - {pair[0].baseline}", *cells])
        return aligned(rows)

    def write(self, folder: Path) -> None:
        """Writes ``results.json`` and ``layers.png``."""
        write_bytes(folder / RESULTS_NAME, json_bytes(self.as_json()))
        self._figure().savefig(folder / FIGURE_NAME, dpi=150)

    def _figure(self) -> Figure:
        """One panel per task: accuracy over layers; a ring marks what validation chose."""
        figure = Figure(figsize=(4.2 * len(self.tasks), 3.8), layout="constrained")
        panels = figure.subplots(1, len(self.tasks), squeeze=False)[0]
        for panel, (name, result) in zip(panels, self.tasks.items(), strict=True):
            for number, model in enumerate(self.models):
                score, colour = result.scores[model.name], f"C{number}"
                if len(score.layers) == 1:
                    accuracy = score.chosen.test_accuracy
                    panel.axhline(accuracy, color=colour, linestyle="--", label=model.name)
                    continue
                style = ":" if model.kind == "untrained" else "-"
                layers = [layer.layer for layer in score.layers]
                values = [layer.test_accuracy for layer in score.layers]
                panel.plot(
                    layers, values, style, marker="o", markersize=4, color=colour, label=model.name
                )
                chosen, interval = score.chosen, result.test[model.name]
                panel.plot(
                    [chosen.layer],
                    [chosen.test_accuracy],
                    marker="o",
                    markersize=10,
                    markerfacecolor="none",
                    color=colour,
                )
                panel.vlines(chosen.layer, interval.low, interval.high, color=colour, alpha=0.5)
            panel.axhline(result.chance, color="grey", linewidth=0.8, label="chance")
            panel.set_title(f"{name} ({len(result.task.classes)} classes)")
            panel.set_xlabel("layer (0: input of the first)")
            panel.set_ylim(0.0, 1.0)
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.grid(alpha=0.25)
        panels[0].set_ylabel("test accuracy")
        figure.suptitle("Linear probes; ring: layer chosen on validation, bar: 95 %", fontsize=10)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 5))
        return figure


def _task_json(result: TaskResult) -> dict[str, Any]:
    task = result.task
    test_tracks, row = np.unique(task.tracks[task.rows("test")], return_inverse=True)
    splits = {}
    for split in SPLITS:
        examples = [example for example in task.examples if example.split == split]
        splits[split] = {
            "tracks": len({example.clip.track for example in examples}),
            "clips": len({example.clip for example in examples}),
            "examples": len(examples),
            "class_counts": task.class_counts(split),
        }
    return {
        "classes": list(task.classes),
        "splits": splits,
        "chance": result.chance,
        "majority_rate": result.majority_rate,
        "test_tracks": test_tracks.tolist(),
        "test_examples": np.bincount(row).tolist(),
        "results": {
            name: {
                "chosen_layer": score.chosen.layer,
                "valid_accuracy": score.chosen.valid_accuracy,
                "test": asdict(result.test[name]),
                "test_right": np.bincount(row, score.chosen.test_correct).astype(int).tolist(),
                "layers": [
                    {
                        "layer": layer.layer,
                        "regularisation": layer.regularisation,
                        "valid_accuracy": layer.valid_accuracy,
                        "test_accuracy": layer.test_accuracy,
                    }
                    for layer in score.layers
                ],
            }
            for name, score in result.scores.items()
        },
        "differences": [
            {"model": d.model, "baseline": d.baseline, **asdict(d.interval)}
            for d in result.differences
        ],
    }
