"""A run from its config to its exit: the world, the folder, the log, and how it ended."""

import logging
import sys
from pathlib import Path

import torch
from torch import distributed as dist

from etude.pretrain.checkpoint import find_damage, published, step_of
from etude.pretrain.compile_locks import describe_locks, stale_locks
from etude.pretrain.config import Config
from etude.pretrain.distributed import World, complete_environment, current_world
from etude.pretrain.dry_run import describe_run
from etude.pretrain.errors import CollapseError, LostRankError
from etude.pretrain.inputs import Inputs, check_inputs
from etude.pretrain.label_check import check_labels
from etude.pretrain.run_folder import RunFolder
from etude.pretrain.running import train
from etude.pretrain.stop import ignore_signals
from etude.pretrain.trainer import Trainer
from etude.pretrain.watchdog import Watchdog

_log = logging.getLogger("etude")


def dry_run(config: Config) -> int:
    """Checks and describes the run without starting it."""
    world, inputs, folder = _prepare(config)
    folder.check_config(config)
    if world.is_main:
        for line in describe_run(config, inputs, folder, world.device):
            print(line)
    return 0


def train_run(config: Config) -> int:
    """Trains, and leaves ``EXIT.json`` whatever happens."""
    world, inputs, folder = _prepare(config)
    folder.check_config(config)
    if world.is_main:
        folder.lock()
        folder.start(config)
    _start_log(folder.log, world)
    for note in inputs.notes:
        _log.warning("%s", note)
    if locks := stale_locks():
        _log.warning("%s.", describe_locks(locks))
    code, reason, step = 1, "failed", 0
    rank = world.rank
    collapse: CollapseError | None = None
    try:
        share = inputs.share
        _log.info(
            "micro-batch: %d x %d crops (%s)", share.micro_batches, share.micro_batch, inputs.choice
        )
        for line in check_labels(config, inputs):
            _log.info("labels: %s", line)
        with Watchdog(
            folder, rank=world.rank, ranks=world.size, limit=config.train.hang_seconds
        ) as watchdog:
            trainer = _watched(config, inputs, world, folder, watchdog)
        code, reason, step = 0, "done", trainer.step
    except KeyboardInterrupt:
        code, reason = 75, "interrupted before the first update: nothing to save"
        raise
    except Exception as error:
        code, reason = getattr(error, "exit_status", 1), str(error) or type(error).__name__
        collapse = error if isinstance(error, CollapseError) else None
        rank = error.rank if isinstance(error, LostRankError) else world.rank
        raise
    finally:
        ignore_signals()  # a launcher signals all ranks as soon as one of them is gone
        if world.is_main or rank == 0:  # if rank 0 is lost, another has to say so
            newest = (
                _newest_checkpoint(folder, trusted=code in (0, 75))
                if collapse is None
                else collapse.checkpoint
            )
            folder.write_exit(
                code=code,
                reason=reason,
                step=step or (0 if newest is None else step_of(newest)),
                rank=rank,
                checkpoint=newest,
            )
        if dist.is_initialized() and code in (0, 75):
            dist.destroy_process_group()
    if world.is_main:
        print(f"done: {step} updates, run folder {folder.path}", flush=True)
    return 0


def _watched(
    config: Config, inputs: Inputs, world: World, folder: RunFolder, watchdog: Watchdog
) -> Trainer:
    """Trains; where a collective broke because another rank is gone, that is the error."""
    try:
        return train(config, inputs, world, folder, watchdog)
    except Exception as error:
        if world.size > 1 and not hasattr(error, "exit_status"):
            if (lost := watchdog.lost_rank()) is not None:
                raise LostRankError(f"{lost[1]}.", rank=lost[0]) from error
        watchdog.failed(str(error) or type(error).__name__)
        raise


def _prepare(config: Config) -> tuple[World, Inputs, RunFolder]:
    complete_environment()
    world = current_world()
    inputs = check_inputs(config, rank=world.rank, ranks=world.size, device=world.device.type)
    return world, inputs, RunFolder(config.run.dir)


def _start_log(path: Path, world: World) -> None:
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if world.is_main:
        handlers.append(logging.FileHandler(path))
    logging.basicConfig(
        level=logging.INFO if world.is_main else logging.WARNING,
        format=f"%(asctime)s rank {world.rank} %(levelname)s %(message)s",
        handlers=handlers,
        force=True,
    )
    # Others' details would bury ours.
    for name in ("DeepSpeed", "torch", "fairseq2", "numba", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    torch.set_float32_matmul_precision("high")


def _newest_checkpoint(folder: RunFolder, *, trusted: bool) -> Path | None:
    found = published(folder.checkpoints)
    return next((path for path in found if trusted or find_damage(path) is None), None)
