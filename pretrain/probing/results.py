"""What ``launch/probe.py`` found, as metrics of a run.

Its ``results.json`` is read as plain values: probes and training do not import each other.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etude.pretrain.report_probe import RESULTS_NAME


def read_values(folder: Path) -> dict[str, float]:
    """The first model's answers by metric, with its baselines.

    ``TASK/test_accuracy``, ``_low`` and ``_high`` (the interval's ends), ``TASK/layer`` (that
    validation chose), ``TASK/untrained``, ``TASK/log-mel`` and, where there is one,
    ``TASK/majority_rate``.

    :raises ValueError: if the folder holds no results, or others than are expected.
    """
    path = folder / RESULTS_NAME
    try:
        return _values(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} could not be read ({error!r})") from error


def _values(content: Mapping[str, Any]) -> dict[str, float]:
    model, *baselines = (row["name"] for row in content["models"])
    values: dict[str, float] = {}
    for task, found in content["tasks"].items():
        result = found["results"][model]
        for quantity, key in (("", "value"), ("_low", "low"), ("_high", "high")):
            values[f"{task}/test_{_metric(found)}{quantity}"] = float(result["test"][key])
        values[f"{task}/layer"] = float(result["chosen_layer"])
        for baseline in baselines:
            values[f"{task}/{baseline}"] = float(found["results"][baseline]["test"]["value"])
        if found.get("majority_rate") is not None:
            values[f"{task}/majority_rate"] = float(found["majority_rate"])
    return values


def _metric(task: Mapping[str, Any]) -> str:
    """What ``test`` is a value of."""
    return str(task.get("metric", "accuracy"))
