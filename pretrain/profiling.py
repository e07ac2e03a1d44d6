"""``train.profile``: a few updates under torch's profiler, as a trace and as a table of parts.

    RUN/profile/trace.json.gz     for chrome://tracing or ui.perfetto.dev
    RUN/profile/breakdown.txt     where the time goes, by part; breakdown.json says the same

Ranges are entered around the parts' calls while the updates are recorded and at no other time.
"""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from etude.data.files import write_bytes
from etude.pretrain.breakdown import PREFIX, UPDATE, break_down
from etude.pretrain.hooks import Hook
from etude.pretrain.masked_prediction import MaskedPrediction
from etude.pretrain.parts import DATA, OPTIMIZER, watched, watched_call

if TYPE_CHECKING:
    from etude.pretrain.trainer import Trainer

_log = logging.getLogger(__name__)

WARM_UP = 3
"""Updates of this process before the first that is recorded: they make tables and start workers."""

UPDATES = 3
"""Updates that are recorded."""


class Profile(Hook):
    """Records updates of this rank."""

    def __init__(self, folder: Path, objective: MaskedPrediction, device: torch.device) -> None:
        self._folder = folder
        self._objective = objective
        self._device = device
        self._first = 0
        self._recording: profile | None = None
        self._watching = ExitStack()

    def start(self, trainer: "Trainer") -> None:
        """Counts from where the run is."""
        self._first = trainer.step + WARM_UP

    def step_end(self, trainer: "Trainer") -> None:
        """Begins after the warm-up, and writes after the last update."""
        if trainer.step == self._first:
            self._begin(trainer)
        elif trainer.step == self._first + UPDATES:
            self._write(trainer)

    def close(self, trainer: "Trainer") -> None:
        """Writes what there is of a run that ends before."""
        if self._recording is not None and trainer.step > self._first:
            self._write(trainer)
        self._stop()

    def _begin(self, trainer: "Trainer") -> None:
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.synchronize(self._device)
        enter = self._watching.enter_context
        enter(watched(self._objective, _range))
        enter(watched_call(trainer, "next_batch", DATA, _range))
        enter(watched_call(trainer.engine, "update", OPTIMIZER, _range))
        enter(watched_call(trainer, "one_update", UPDATE.removeprefix(PREFIX), _range))
        self._recording = profile(activities=activities)
        self._recording.start()

    def _stop(self) -> None:
        self._watching.close()
        if self._recording is not None:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # what was launched belongs to the record
            self._recording.stop()
            self._recording = None

    def _write(self, trainer: "Trainer") -> None:
        recording = self._recording
        assert recording is not None
        self._stop()
        found = break_down(recording.events())  # type: ignore[no-untyped-call]
        self._folder.mkdir(parents=True, exist_ok=True)
        recording.export_chrome_trace(str(self._folder / "trace.json.gz"))
        head = (
            f"updates {self._first + 1} to {trainer.step} on rank 0, {self._device.type}: "
            f"{1e3 * found.seconds / found.updates:.1f} ms each (recording makes them slower)"
        )
        lines = [head, "", *found.lines()]
        write_bytes(self._folder / "breakdown.txt", "".join(f"{s}\n" for s in lines).encode())
        write_bytes(self._folder / "breakdown.json", found.as_json())
        _log.info("profile of %d updates: %s", found.updates, self._folder / "breakdown.txt")


def _range(part: str) -> record_function:
    return record_function(f"{PREFIX}{part}")
