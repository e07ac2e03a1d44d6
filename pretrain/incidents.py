"""``incidents.jsonl``: updates that were thrown away or stick out, and the clips they heard."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from etude.pretrain.numerics import Spike

_log = logging.getLogger(__name__)

_MOST = 1000
"""Incidents of one process that are written down; after these nobody reads them."""


@final
class Incidents:
    """Writes down odd updates, on the main rank.

    :param path: where; ``None`` on other ranks.
    :param clips: what is heard in an update's worth of data, by its number.
    """

    def __init__(self, path: Path | None, clips: Callable[[int], list[dict[str, Any]]]) -> None:
        self._path = path
        self._clips = clips
        self._count = 0

    def add(self, kind: str, update: int, passed_over: int, spike: Spike | None = None) -> None:
        """Writes a line: ``step`` as in ``metrics.jsonl``, what was odd, and every crop."""
        if self._path is None:
            return
        self._count += 1
        said = "" if spike is None else f" ({spike.value:.4g}, where {spike.mean:.4g} was usual)"
        _log.warning("update %d: %s%s; %s", update, kind, said, self._path.name)
        if self._count > _MOST:
            return
        line: dict[str, Any] = {"step": update + 1, "kind": kind}
        if spike is not None:
            line |= {"value": spike.value, "mean": spike.mean, "deviation": spike.deviation}
        line["clips"] = self._clips(update + passed_over)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
