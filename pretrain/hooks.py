"""What a trainer calls around its loop. Whatever would want an `if` in the loop is a hook."""

import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from etude.pretrain.checkpoint import Checkpoints
from etude.pretrain.objective import Objective

if TYPE_CHECKING:
    from etude.pretrain.trainer import Trainer

_log = logging.getLogger(__name__)


class Hook:
    """Does nothing; a hook overrides what it needs. Every rank runs every hook."""

    def start(self, trainer: "Trainer") -> None:
        """Before the first update of this process; ``trainer.step`` updates are done already."""

    def step_end(self, trainer: "Trainer") -> None:
        """After each update."""

    def logged(self, trainer: "Trainer", values: Mapping[str, float]) -> None:
        """After metrics were reduced; the same values on every rank."""

    def complete(self, trainer: "Trainer") -> None:
        """After the last update and its checkpoint; not where the run was stopped or failed."""

    def close(self, trainer: "Trainer") -> None:
        """At the end, also when the run was asked to stop or failed."""


class MetricsFile(Hook):
    """``metrics.jsonl`` and TensorBoard, on the main rank."""

    def __init__(self, path: Path, tensorboard: Path | None) -> None:
        self._file = path.open("a", buffering=1)
        self._tensorboard = tensorboard
        self._writer: SummaryWriter | None = None

    def start(self, trainer: "Trainer") -> None:
        """What an interrupted run wrote after the checkpoint is hidden: it comes again."""
        if self._tensorboard is not None:
            self._writer = SummaryWriter(  # type: ignore[no-untyped-call]
                str(self._tensorboard), purge_step=trainer.step + 1
            )

    @property
    def writer(self) -> SummaryWriter | None:
        """TensorBoard's, for what is no number."""
        return self._writer

    def logged(self, trainer: "Trainer", values: Mapping[str, float]) -> None:
        """One line of JSON per log interval."""
        self.write(trainer.step, values)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A line that belongs to update ``step``, which may lie behind."""
        line = {"step": step, **{key: _json_number(v) for key, v in values.items()}}
        self._file.write(json.dumps(line) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    def close(self, trainer: "Trainer") -> None:
        """Closes both."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()  # type: ignore[no-untyped-call]


class Progress(Hook):
    """A bar with crops per second and ETA on a terminal, plain lines elsewhere."""

    def __init__(self, max_steps: int, global_batch: int) -> None:
        self._max_steps = max_steps
        self._global_batch = global_batch
        self._bar: tqdm[Any] | None = None

    def start(self, trainer: "Trainer") -> None:
        """Opens the bar at the step that is reached."""
        if sys.stderr.isatty():
            self._bar = tqdm(total=self._max_steps, initial=trainer.step, unit="update")

    def step_end(self, trainer: "Trainer") -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update()

    def logged(self, trainer: "Trainer", values: Mapping[str, float]) -> None:
        """Shows the newest numbers."""
        shown = {
            key: f"{value:.3g}"
            for key, value in values.items()
            # One number per target: `codec/accuracy`, not those of its eight codebooks.
            if key == "loss" or (key.endswith("/accuracy") and key.count("/") == 1)
        }
        speed = values.get("perf/crops_per_second")
        if self._bar is not None:
            speed_text = {} if speed is None else {"crops/s": f"{speed:.1f}"}
            self._bar.set_postfix(shown | speed_text)
            return
        parts = [f"step {trainer.step}/{self._max_steps}"]
        parts += [f"{key} {value}" for key, value in shown.items()]
        if speed:
            left = (self._max_steps - trainer.step) * self._global_batch / speed
            parts.append(f"{speed:.1f} crops/s, {left / 60:.1f} min left")
        if "valid/loss" in values:
            parts.append(f"valid/loss {values['valid/loss']:.4g}")
        print("  ".join(parts), flush=True)

    def close(self, trainer: "Trainer") -> None:
        """Leaves the bar where it is."""
        if self._bar is not None:
            self._bar.close()


class WarnOfWaiting(Hook):
    """Says once that ranks wait for data."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._first = True
        self._said = False

    def logged(self, trainer: "Trainer", values: Mapping[str, float]) -> None:
        """Looks at every line but the first, before which workers start."""
        wait = values.get("perf/data_wait", 0.0)
        first, self._first = self._first, False
        if wait > self._limit and not self._said and not first:
            self._said = True
            _log.warning(
                "%.0f %% of the time goes into waiting for data. Raise data.workers, or prepare "
                "the corpus on a faster disk.",
                100 * wait,
            )


class SaveCheckpoints(Hook):
    """Makes a checkpoint every so many updates and at the end.

    :param asynchronous: lets training go on while a checkpoint is written.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        objective: Objective,
        *,
        every: int,
        max_steps: int,
        corpus: str,
        asynchronous: bool,
    ) -> None:
        self._checkpoints = checkpoints
        self._objective = objective
        self._every = every
        self._max_steps = max_steps
        self._corpus = corpus
        self._asynchronous = asynchronous
        self._begun: int | None = None

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint that was published or continued from."""
        return self._checkpoints.newest

    def continues(self, step: int) -> None:
        """Training goes on from a checkpoint of ``step``, which need not be saved again."""
        self._begun = step

    def step_end(self, trainer: "Trainer") -> None:
        """Begins a checkpoint when it is time, and takes further what is being written."""
        self._checkpoints.advance()
        if trainer.step == self._max_steps:
            self.save(trainer)
            self.finish()
        elif trainer.step % self._every == 0:
            self.save(trainer)

    def save(self, trainer: "Trainer") -> None:
        """Begins a checkpoint of the current step, unless there is one."""
        if self._begun == trainer.step:
            return
        self._begun = trainer.step
        self._checkpoints.begin(
            trainer.step,
            engine=trainer.engine,
            encoder=self._objective.encoder,
            state={**trainer.state.values(), "corpus": self._corpus},
        )
        if not self._asynchronous:
            self.finish()

    def finish(self) -> None:
        """Waits until what was begun is published."""
        self._checkpoints.advance(wait=True)

    def newest_until(self, step: int) -> Path | None:
        """The newest checkpoint of update ``step`` or before, of those that were begun too."""
        self.finish()
        return self._checkpoints.newest_until(step)


class Validate(Hook):
    """Measures the objective on held-out crops, the same ones each time."""

    def __init__(
        self, measure: Callable[[], dict[str, float]], *, every: int, max_steps: int
    ) -> None:
        self._measure = measure
        self._every = every
        self._max_steps = max_steps

    def step_end(self, trainer: "Trainer") -> None:
        """Adds ``valid/…`` to what is logged at this step."""
        if trainer.step % self._every == 0 or trainer.step == self._max_steps:
            trainer.report({f"valid/{key}": value for key, value in self._measure().items()})


def _json_number(value: float) -> float | None:
    # JSON has no NaN and no infinity.
    return value if value - value == 0.0 else None
