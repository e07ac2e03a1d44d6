"""Probes frozen features: ``python launch/probe.py MODEL [MODEL...] --out DIR``.

Asks every layer of each model for key, instrument and pitch of tracks rendered for probing, beside
the same encoder untrained and log-mel. Writes ``DIR/results.json`` and ``DIR/layers.png``; the
rendered tracks stay in ``DIR/corpus``, or in ``--cache`` where several probes share them.
"""

import argparse
from pathlib import Path

from etude.data.errors import InputError
from etude.launch import cli
from etude.probes.tasks import TASK_NAMES, TaskName


def main() -> int:
    """Parses the command line and probes."""
    arguments = _parser().parse_args()
    tasks = _tasks(arguments.tasks)
    # Imported late: --help and the processes that render need no torch.
    from etude.probes.run import run_probe

    results = run_probe(
        arguments.models,
        out=arguments.out,
        tasks=tasks,
        tracks=arguments.tracks,
        seconds=arguments.seconds,
        seed=arguments.seed,
        cache=arguments.cache,
    )
    print(f"\n{results.table()}\n\n{arguments.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/probe.py",
        description="Linear probes of key, instrument and pitch on every layer of frozen models, "
        "beside the untrained encoder and log-mel.",
    )
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        type=Path,
        help="checkpoint, run folder (its newest checkpoint) or Hugging Face folder",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument(
        "--tasks", default=",".join(TASK_NAMES), help="comma-separated (default: %(default)s)"
    )
    parser.add_argument(
        "--tracks", type=int, help="tracks of each kind (default: 192 mixes, 144 solos)"
    )
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="length of a track (default: %(default)g)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="tracks, splits, fresh weights (default: %(default)s)"
    )
    parser.add_argument(
        "--cache", type=Path, help="folder of rendered tracks to share (default: OUT/corpus)"
    )
    return parser


def _tasks(text: str) -> list[TaskName]:
    asked = text.split(",")
    if unknown := [name for name in asked if name not in TASK_NAMES]:
        raise InputError(
            f"--tasks must be among {', '.join(TASK_NAMES)}, separated by commas, but names "
            f"{', '.join(unknown) or 'none'}."
        )
    return [name for name in TASK_NAMES if name in asked]


if __name__ == "__main__":
    cli.run(main)
