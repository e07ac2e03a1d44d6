"""Losses on held-out tracks, where two variants predict the same thing under the same masks.

The sum of all losses is no measure: a variant without a target has less to sum. The loss of one
target is, if its settings, what is heard and what is hidden are equal in both. A teacher's never
is: what it wants to be predicted moves with the model.
"""

from etude.pretrain.config import Config
from etude.pretrain.config_file import as_values
from etude.pretrain.report_panels import VALID
from etude.pretrain.report_run import read_run
from etude.pretrain.sweeps.runs import SweepRun

_HEARD = ("corpus", "crop_seconds", "min_clip_seconds")
_GRID = ("sample_rate", "conv_kernels", "conv_strides", "padding")


def comparable_targets(one: Config, other: Config) -> list[str]:
    """Targets whose held-out loss means the same in both."""
    a, b = as_values(one), as_values(other)
    hidden = all(a["objective"][key] == b["objective"][key] for key in ("mask", "views"))
    heard = all(a["data"].get(key) == b["data"].get(key) for key in _HEARD)
    if not (hidden and heard and all(a["model"].get(k) == b["model"].get(k) for k in _GRID)):
        return []
    there = b["objective"]["targets"]
    return [
        name
        for name, target in a["objective"]["targets"].items()
        if target["kind"] != "teacher" and _settings(target) == _settings(there.get(name, {}))
    ]


def held_out_losses(run: SweepRun) -> dict[str, float]:
    """The newest held-out loss of each of a run's targets that has one."""
    metrics = read_run(run.folder).metrics
    losses = {name: metrics.last(f"{VALID}{name}/loss") for name in run.config.objective.targets}
    return {name: loss for name, loss in losses.items() if loss is not None}


def _settings(target: dict[str, object]) -> dict[str, object]:
    """But for the weight, which is not in the target's own loss."""
    return {key: value for key, value in target.items() if key != "weight"}
