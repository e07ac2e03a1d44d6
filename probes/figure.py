"""``layers.png``: a panel per task, the metric over layers; a ring marks what validation chose."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from etude.probes.results import HeadResult, ProbedModel, ProbeResults

FIGURE_NAME = "layers.png"


def draw(results: ProbeResults, folder: Path) -> None:
    """Draws the first head's results into the folder."""
    tasks = results.tasks
    figure = Figure(figsize=(4.2 * len(tasks), 3.8), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for panel, (name, result) in zip(panels, tasks.items(), strict=True):
        for number, model in enumerate(results.models):
            _draw_model(panel, model, result.first, f"C{number}")
        if result.chance is not None:
            panel.axhline(result.chance, color="grey", linewidth=0.8, label="chance")
        task = result.task
        kind = f"{len(task.outputs)} classes" if task.answer == "classes" else task.metrics[0]
        panel.set_title(f"{name} ({kind})")
        panel.set_xlabel("layer (0: input of the first)")
        panel.set_ylabel(f"test {task.metrics[0]}")
        # R² of answers worse than the mean is negative.
        panel.set_ylim(min(0.0, panel.get_ylim()[0]), 1.0)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.25)
    head = next(iter(next(iter(tasks.values())).heads))
    title = f"{head} probes; ring: layer chosen on validation, bar: 95 %, diamond: all layers"
    figure.suptitle(title, fontsize=10)
    named = {
        label: handle
        for panel in panels
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(named.values()), list(named), loc="outside lower center", ncols=min(len(named), 5)
    )
    figure.savefig(folder / FIGURE_NAME, dpi=150)


def _draw_model(panel: Any, model: ProbedModel, found: HeadResult, colour: str) -> None:
    score = found.scores[model.name]
    if len(score.layers) == 1:
        panel.axhline(score.chosen.test, color=colour, linestyle="--", label=model.name)
        return
    style = ":" if model.kind == "untrained" else "-"
    layers = [layer.layer for layer in score.layers]
    values = [layer.test for layer in score.layers]
    panel.plot(layers, values, style, marker="o", markersize=4, color=colour, label=model.name)
    chosen, interval = score.chosen, found.test[model.name]
    panel.plot(
        [chosen.layer],
        [chosen.test],
        marker="o",
        markersize=10,
        markerfacecolor="none",
        color=colour,
    )
    panel.vlines(chosen.layer, interval.low, interval.high, color=colour, alpha=0.5)
    if score.weighted_sum is not None:
        panel.plot([len(layers)], [score.weighted_sum.test], marker="D", markersize=5, color=colour)
