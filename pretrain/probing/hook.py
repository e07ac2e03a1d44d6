"""Probes while training goes on (section ``probe``, docs/probes_in_training.md).

    due -> the encoder is written -> launch/probe.py starts on it -> training goes on
    … -> it has ended -> one line of metrics for the update it belongs to -> the copy is removed

    RUN/probes/step-00000100/    encoder.* until there is an answer; results.json, layers.png
    RUN/probes/corpus/           rendered tracks, made by the first probe

``metrics.jsonl`` says which probes have had their line: it is cut back with the run, so what has
none when a run continues is begun again, and nothing is told twice.
"""

import logging
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, final

from safetensors import SafetensorError

from etude.models.encoder import Encoder
from etude.models.weights import CONFIG_NAME, WEIGHTS_NAME, save_encoder
from etude.pretrain.config_probe import ProbeConfig
from etude.pretrain.hooks import Hook, MetricsFile
from etude.pretrain.probing.beside import Beside
from etude.pretrain.probing.results import read_values
from etude.pretrain.run_folder import RunFolder, read_metrics, step_folder, step_folders

if TYPE_CHECKING:
    from etude.pretrain.trainer import Trainer

_log = logging.getLogger(__name__)

_COMMAND = Path(__file__).resolve().parents[2] / "launch" / "probe.py"
"""Started by its path: no module of training imports one of probing or of launching."""

_LOG_NAME = "probe.log"
_ANSWERED = "probe/failed"
"""In the line of every probe that has ended, well or not."""

_LOOK_SECONDS = 0.2


@final
class Probes(Hook):
    """Probes the encoder every so many updates, on the main rank, one probe at a time.

    A probe that is due while another runs is skipped, counted and shown; one that fails, too.
    Training waits for nothing but the encoder to be written: its bytes at the disk's speed.

    :param beat: is called while the end of the run waits for a probe.
    :param stopping: whether the run was asked to stop meanwhile.
    """

    def __init__(
        self,
        config: ProbeConfig,
        folder: RunFolder,
        encoder: Encoder,
        metrics: MetricsFile,
        *,
        beat: Callable[[], None],
        stopping: Callable[[], bool],
    ) -> None:
        self._config = config
        self._folder = folder.probes
        self._lines = folder.metrics
        self._encoder = encoder
        self._metrics = metrics
        self._beat = beat
        self._stopping = stopping
        self._running: tuple[int, Beside] | None = None
        self._failed = 0
        self._skipped = 0

    def start(self, trainer: "Trainer") -> None:
        """Begins again what an earlier process of this run left unanswered."""
        answered = set()
        for line in read_metrics(self._lines):
            self._failed = int(line.get("probe/failed", self._failed))
            self._skipped = int(line.get("probe/skipped", self._skipped))
            if _ANSWERED in line:
                answered.add(line["step"])
        self._sweep()
        for step, folder in step_folders(self._folder).items():
            if step in answered:
                _drop_encoder(folder)
            elif (folder / WEIGHTS_NAME).is_file() and self._running is None:
                _log.info("beginning the probe of update %d again", step)
                self._begin(step, folder)

    def step_end(self, trainer: "Trainer") -> None:
        """Begins a probe when it is time."""
        if trainer.step % self._config.every_steps:
            return
        self._collect()
        if self._running is not None:
            self._skip(trainer.step)
            return
        folder = step_folder(self._folder, trainer.step)
        began = time.perf_counter()
        try:
            self._save(folder)
        except (OSError, RuntimeError, SafetensorError) as error:  # as the disk says it
            self._fail(trainer.step, f"the encoder could not be written ({error})")
            return
        self._metrics.write(trainer.step, {"probe/stall_seconds": time.perf_counter() - began})
        self._begin(trainer.step, folder)

    def logged(self, trainer: "Trainer", values: object) -> None:
        """Tells of a probe that has ended."""
        self._collect()

    def complete(self, trainer: "Trainer") -> None:
        """Waits for the last probe, but not for ever."""
        self._collect()
        if self._running is None:
            return
        step, limit = self._running[0], self._config.wait_seconds
        _log.info("waiting up to %g s (probe.wait_seconds) for the probe of update %d", limit, step)
        until = time.monotonic() + limit
        while self._running is not None and time.monotonic() < until and not self._stopping():
            self._beat()
            time.sleep(_LOOK_SECONDS)
            self._collect()
        if self._running is not None:
            _log.warning(
                "the probe of update %d is not done and is ended; the same command again begins it "
                "anew.",
                step,
            )

    def close(self, trainer: "Trainer") -> None:
        """Ends what runs; its encoder stays, to be probed when the run continues."""
        if self._running is not None:
            self._running[1].end()
            self._running = None

    def _save(self, folder: Path) -> None:
        draft = folder.with_suffix(".tmp")
        try:
            draft.mkdir(parents=True)
            save_encoder(self._encoder, draft)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _begin(self, step: int, folder: Path) -> None:
        config = self._config
        words = ["--out", folder, "--seconds", config.seconds, "--seed", config.seed]
        words += ["--cache", config.cache or self._folder / "corpus"]
        if config.tasks is not None:
            words += ["--tasks", ",".join(config.tasks)]
        if config.tracks is not None:
            words += ["--tracks", config.tracks]
        environment = {} if config.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
        try:
            probe = Beside(
                [sys.executable, str(_COMMAND), str(folder), *map(str, words)],
                cores=config.threads,
                environment=environment,
                said=folder / _LOG_NAME,
            )
        except OSError as error:  # no memory for a process, no room for its log
            self._fail(step, f"it could not be started ({error})")
            _drop_encoder(folder)
        else:
            self._running = step, probe

    def _collect(self) -> None:
        if self._running is None:
            return
        step, probe = self._running
        status = probe.status()
        if status is None:
            return
        self._running = None
        folder = step_folder(self._folder, step)
        try:
            if status:
                raise ValueError(f"status {status}")
            values = read_values(folder)
        except ValueError as error:
            self._fail(step, f"{error}: {probe.last_words()}")
        else:
            self._answer(step, {**values, "seconds": probe.seconds})
            _log.info("probe of update %d: %s", step, _shown(values))
        _drop_encoder(folder)

    def _fail(self, step: int, reason: str) -> None:
        self._failed += 1
        _log.warning("the probe of update %d failed, training goes on: %s", step, reason)
        self._answer(step, {})

    def _skip(self, step: int) -> None:
        assert self._running is not None
        self._skipped += 1
        _log.warning(
            "no probe of update %d: that of update %d still runs, for %.0f s now. Raise "
            "probe.every_steps or probe.threads, or lower probe.tracks.",
            step,
            self._running[0],
            self._running[1].seconds,
        )
        self._metrics.write(step, {"probe/skipped": self._skipped})

    def _answer(self, step: int, values: dict[str, float]) -> None:
        counts = {"failed": self._failed, "skipped": self._skipped}
        self._metrics.write(
            step, {f"probe/{key}": value for key, value in (values | counts).items()}
        )

    def _sweep(self) -> None:
        """Removes what processes that were killed have begun to write, in this run's own folder."""
        for path in (*self._folder.glob("step-*.tmp"), *self._folder.glob("corpus/*.part-*")):
            shutil.rmtree(path)


def _drop_encoder(folder: Path) -> None:
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        (folder / name).unlink(missing_ok=True)


def _shown(values: dict[str, float]) -> str:
    tests = {key: value for key, value in values.items() if f"{key}_low" in values}
    return ", ".join(
        f"{key.replace('/test_', ' ')} {value:.3f} "
        f"[{values[key + '_low']:.3f}, {values[key + '_high']:.3f}]"
        for key, value in tests.items()
    )
