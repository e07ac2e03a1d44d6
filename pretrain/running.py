"""One run: it continues where its folder stopped, trains, and goes back where it must."""

import logging
import os
import sys
from functools import partial
from pathlib import Path

from etude.pretrain.assemble import build_engine, build_objective, build_trainer
from etude.pretrain.checkpoint import Checkpoints, step_of
from etude.pretrain.compiling import compile_regions
from etude.pretrain.config import Config
from etude.pretrain.distributed import World, barrier, same_on_all
from etude.pretrain.engine import Engine
from etude.pretrain.errors import ConfigError, DivergedError, NumericsError, PreemptedError
from etude.pretrain.hooks import SaveCheckpoints
from etude.pretrain.inputs import Inputs
from etude.pretrain.run_folder import RunFolder, cut_lines, drop_folders
from etude.pretrain.run_state import RunState
from etude.pretrain.step_graph import graph_steps
from etude.pretrain.stop import StopRequest
from etude.pretrain.trainer import Trainer
from etude.pretrain.watchdog import Watchdog

_log = logging.getLogger(__name__)


def train(
    config: Config, inputs: Inputs, world: World, folder: RunFolder, watchdog: Watchdog
) -> Trainer:
    """Trains to the end of the run, continuing where its folder stopped; returns the trainer."""
    checkpoints = Checkpoints(folder.checkpoints, keep=config.checkpoint.keep, world=world)
    found = checkpoints.newest_valid()
    objective = build_objective(config, inputs)
    if config.train.compiles_on(world.device.type):
        compile_regions(objective, world.device)
    if config.train.records_on(world.device.type):
        graph_steps(objective, world.device)
    saver = SaveCheckpoints(
        checkpoints,
        objective,
        every=config.checkpoint.every_steps,
        max_steps=config.train.max_steps,
        corpus=inputs.fingerprint,
        asynchronous=config.checkpoint.asynchronous,
    )
    leave = partial(_leave, folder, world, None if found is None else found[0])
    with StopRequest(world.device, leave=leave, is_last=True) as stop:
        engine = build_engine(objective, config, world, inputs.share)
        _agree(inputs, world)
        stop.met()
        state = RunState()
        if found is not None:
            path, content = found
            if content["corpus"] != inputs.fingerprint:
                places = ", ".join(corpus.place for corpus in inputs.corpora)
                raise ConfigError(
                    f"{path} was trained on another corpus than {places} is now: its order could "
                    "not go on. Choose another run.dir."
                )
            checkpoints.load_engine(path, engine)
            state = RunState.of(content)
            saver.continues(state.step)
        while True:
            _cut(folder, state.step, world)
            if world.is_main:
                how = "continuing" if state.step else "starting"
                _log.info("%s at update %d", how, state.step)
            trainer = build_trainer(
                config,
                inputs,
                world,
                folder,
                state=state,
                engine=engine,
                objective=objective,
                saver=saver,
                stop=stop,
                watchdog=watchdog,
            )
            try:
                trainer.fit()
                return trainer
            except DivergedError as error:
                saver.finish()
                state = _go_back(error, trainer.state, config, checkpoints, engine)
                saver.continues(state.step)


def _agree(inputs: Inputs, world: World) -> None:
    """Ranks whose devices differ could have chosen differently.

    :raises ConfigError: on all of them.
    """
    chosen = inputs.share.micro_batch
    if not same_on_all(chosen, world.device):
        raise ConfigError(
            "train.micro_batch: auto comes to different numbers on different ranks, whose devices "
            f"have different memory: {chosen} on rank {world.rank} ({inputs.choice}). Give "
            "train.micro_batch, or perf.device_gbytes."
        )


def _leave(folder: RunFolder, world: World, checkpoint: Path | None) -> None:
    """Ends the process while its main thread waits for ranks that are not coming."""
    if world.is_main:
        reason = "interrupted before the first update: nothing to save"
        print(f"error: {reason}; run the same command again.", file=sys.stderr, flush=True)
        step = 0 if checkpoint is None else step_of(checkpoint)
        folder.write_exit(code=75, reason=reason, step=step, rank=0, checkpoint=checkpoint)
    os._exit(PreemptedError.exit_status)


def _go_back(
    error: DivergedError,
    state: RunState,
    config: Config,
    checkpoints: Checkpoints,
    engine: Engine,
) -> RunState:
    """Loads the newest checkpoint from before the trouble; returns the state to go on with.

    The order goes on after the data of the trouble. All of it follows from what every rank knows:
    all do the same, and a run that is killed meanwhile and started again comes to the same point.

    :raises NumericsError: if there is none, or the run went back often enough.
    """
    limit = config.train.max_rollbacks
    if state.rollbacks >= limit:
        raise NumericsError(
            f"{error} The run has gone back {state.rollbacks} times already "
            f"(train.max_rollbacks is {limit})."
        ) from error
    found = checkpoints.newest_valid(until=error.first)
    if found is None:
        raise NumericsError(
            f"{error} There is no checkpoint from before to go back to; checkpoint.every_steps is "
            f"{config.checkpoint.every_steps}."
        ) from error
    path, content = found
    barrier()  # all have found the same before any is deleted
    old = RunState.of(content)
    checkpoints.drop_after(old.step)
    checkpoints.load_engine(path, engine)
    after = state.went_back(old)
    _log.warning(
        "%s Going back to %s and passing over the data of %d updates.",
        error,
        path,
        after.passed_over - old.passed_over,
    )
    return after


def _cut(folder: RunFolder, step: int, world: World) -> None:
    """What was written after ``step`` comes again."""
    if world.is_main:
        cut_lines(folder.metrics, step)
        cut_lines(folder.incidents, step)
        drop_folders(folder.probes, step)
        drop_folders(folder.looks, step)
