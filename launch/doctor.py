"""Looks at machines before they train:  python launch/doctor.py [CONFIG] [key.path=value ...]

Runs the same under `torchrun`, `srun` and `deepspeed`, with the ranks that training would have.
Versions, GPUs, disk, shared memory, a collective between all ranks with the slowest named, time per
update against data. Trains on copies that are thrown away; what it writes, it removes.
"""

import argparse
import logging
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from etude.launch.cli import STOPS, end_on, interrupt_on, run
from etude.pretrain.launchers import follow_launchers

if TYPE_CHECKING:
    from etude.pretrain.config import Config


def main() -> int:
    """Reads the config, goes through all checks, prints what was found."""
    arguments = _parse()
    end_on(*STOPS)
    follow_launchers()
    from etude.launch.run_config import load_run_config

    config = None
    if arguments.config is not None:
        config = load_run_config(arguments.config, arguments.overrides)
    # Heavy imports only now: a misspelt key is told in a second.
    try:
        import_module("etude.pretrain.doctor.examine")
    except (ImportError, OSError) as error:
        return _cannot_import(error)
    interrupt_on(*STOPS)  # what was written is removed
    return _examine(config, seconds=arguments.seconds, timeout=arguments.timeout)


def _cannot_import(error: Exception) -> int:
    """Training would not get further either; what is installed tells why."""
    from etude.pretrain.doctor.rows import exit_status, failed, lines_of, verdict
    from etude.pretrain.doctor.versions import check_versions, own_python, own_requirements

    rows = [
        check_versions(own_requirements(), own_python()),
        failed("imports", f"{type(error).__name__}: {error}", "`make install`, in a new folder"),
    ]
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        print("\n".join([*(line for row in rows for line in lines_of(row)), verdict(rows)]))
    return exit_status(rows)


def _examine(config: "Config | None", *, seconds: float, timeout: float) -> int:
    from etude.pretrain.distributed import complete_environment, rank_from_environment
    from etude.pretrain.doctor.examine import examine
    from etude.pretrain.doctor.meeting import end_collectives, join
    from etude.pretrain.doctor.rows import LOST_RANK, Row, exit_status, failed, lines_of, verdict
    from etude.pretrain.errors import LostRankError

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    complete_environment()
    rank, size, local_rank = rank_from_environment()
    try:
        meeting = join(rank=rank, size=size, local_rank=local_rank, timeout=timeout)
    except LostRankError as error:
        if local_rank < 2:  # once per node; on rank 0's, local rank 0 is the one that is missing
            print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_status

    rows: list[Row] = []

    def say(row: Row) -> None:
        rows.append(row)
        if rank == 0:
            print("\n".join(lines_of(row)), flush=True)

    def leave(stage: str) -> None:
        if rank:  # rank 0 speaks first
            time.sleep(2.0)
        advice = "see which rank's node is slow or unreachable; NCCL_DEBUG=INFO tells more"
        say(failed(stage, "did not end in time on this rank", advice, status=LOST_RANK))
        if rank == 0:
            print(verdict(rows), flush=True)
        os._exit(LOST_RANK)

    for row in examine(config, meeting, seconds=seconds, leave=leave):
        say(row)
    if rank == 0:
        print(verdict(rows), flush=True)
    status = meeting.end(exit_status(rows))
    if status == 0:  # else they may hang in what has failed
        end_collectives()
    return status


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="Exit status 0: nothing failed; else that of the first failure, as in "
        "docs/training.md (2 environment or settings, 3 data, 4 numerics, 76 a rank that is not "
        "there).",
    )
    parser.add_argument(
        "config", type=Path, nargs="?", help="YAML file of the run; without it, machines alone"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="settings that replace the file's"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="how long loading and training are tried together, about (default: %(default)g)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        help="how long ranks wait for each other (default: %(default)g s)",
    )
    # The deepspeed launcher adds it; the environment already says so.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()
    for name in ("seconds", "timeout"):
        if getattr(arguments, name) <= 0:
            parser.error(f"--{name} must be above 0, but is {getattr(arguments, name):g}.")
    return arguments


if __name__ == "__main__":
    run(main)
