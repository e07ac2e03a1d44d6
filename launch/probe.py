"""Probes frozen features: ``python launch/probe.py MODEL [MODEL...] --out DIR``.

Asks every layer of each model for key, instrument and pitch of tracks rendered for probing, or for
what ``--tasks`` says, beside the same encoder untrained and hand-made features; with ``--data`` for
genre, key, tags ... of local copies of public data sets (``docs/datasets.md``). Writes
``DIR/results.json`` and ``DIR/layers.png``; rendered tracks and features stay in ``DIR/corpus``, or
in ``--cache`` where several probes share them. What it means: ``docs/probing.md``.
"""

import argparse
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from etude.data.errors import InputError
from etude.launch import cli
from etude.probes.datasets.catalogue import DATASET_NAMES, DATASET_TASKS
from etude.probes.datasets.request import by_dataset, parse_folders, tasks_of
from etude.probes.tasks import DEFAULT_TASKS, TASK_NAMES

if TYPE_CHECKING:
    from etude.probes.heads import HeadName
    from etude.probes.lineup import ReferenceName

# As in ``probes.heads`` and ``probes.lineup``, which import torch.
_HEADS: "tuple[HeadName, ...]" = ("linear", "mlp")
_REFERENCES: "tuple[ReferenceName, ...]" = ("untrained", "log-mel", "chroma", "mfcc")

_Name = TypeVar("_Name", bound=str)

_SECONDS = 15.0

_WHAT_IT_IS = "tasks on rendered tracks: diagnostics, not a benchmark (docs/probing.md)"


def main() -> int:
    """Parses the command line and probes."""
    arguments = _parser().parse_args()
    cli.interrupt_on(signal.SIGTERM)  # the processes that render end, and leave nothing half done
    folders = parse_folders(arguments.data)
    tasks = _dataset_tasks(arguments, folders) if folders else _rendered_tasks(arguments)
    heads = _names("--heads", arguments.heads, _HEADS)
    references: tuple[ReferenceName, ...] = ()
    if arguments.references != "none":
        references = _names("--references", arguments.references, _REFERENCES)
    if arguments.seeds < 1:
        raise InputError(f"--seeds must be at least 1, but is {arguments.seeds}.")
    # Imported late: --help and the processes that render need no torch.
    from etude.probes.datasets.run import probe_datasets
    from etude.probes.heads import HeadOptions
    from etude.probes.run import run_probe

    options = HeadOptions(heads, arguments.seeds, arguments.weighted_sum)
    if folders:
        results = probe_datasets(
            arguments.models,
            folders=folders,
            tasks=tasks,
            out=arguments.out,
            seed=arguments.seed,
            cache=arguments.cache,
            heads=options,
            references=references,
        )
        for text in filter(None, (results.table(), results.further_table())):
            print(f"\n{text}")
        print(f"\n{arguments.out}")
        return 0
    results = run_probe(
        arguments.models,
        out=arguments.out,
        tasks=[name for name in TASK_NAMES if name in tasks],
        tracks=arguments.tracks,
        seconds=_SECONDS if arguments.seconds is None else arguments.seconds,
        seed=arguments.seed,
        cache=arguments.cache,
        heads=options,
        references=references,
    )
    print(f"\n{results.table()}\n\n{_WHAT_IT_IS}\n{arguments.out}")
    return 0


def _rendered_tasks(arguments: argparse.Namespace) -> Sequence[str]:
    """Tasks on rendered tracks.

    :raises InputError: for a task of a data set, of which no copy is given.
    """
    if arguments.tasks is None:
        return DEFAULT_TASKS
    if known := [
        name.strip() for name in arguments.tasks.split(",") if name.strip() in DATASET_TASKS
    ]:
        by_dataset(known, {})
    return _names("--tasks", arguments.tasks, TASK_NAMES)


def _dataset_tasks(arguments: argparse.Namespace, folders: Mapping[str, Path]) -> Sequence[str]:
    """Tasks of the data sets given; all of them where none is named.

    :raises InputError: if tasks and data sets do not fit, or for an option of rendered tracks.
    """
    for option in ("tracks", "seconds"):
        if getattr(arguments, option) is not None:
            raise InputError(f"--{option} is for rendered tracks; with --data there are none.")
    if arguments.tasks in (None, "all"):
        tasks: Sequence[str] = tasks_of(folders)
    else:
        tasks = _names("--tasks", arguments.tasks, tuple(DATASET_TASKS))
    by_dataset(tasks, folders)
    return tasks


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/probe.py",
        description="Probes of every layer of frozen models, beside the untrained encoder and "
        "hand-made features, on tracks rendered for it (diagnostics, not a benchmark) or on public "
        "data sets.",
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
        "--tasks",
        help=f"all, or among {', '.join(TASK_NAMES)} (default: {', '.join(DEFAULT_TASKS)}); with "
        f"--data among {', '.join(DATASET_TASKS)} (default: all of the data sets given)",
    )
    parser.add_argument(
        "--data",
        metavar="NAME=FOLDER",
        action="append",
        default=[],
        help="local copy of a public data set to ask about, instead of rendered tracks; may come "
        f"several times: {', '.join(DATASET_NAMES)} (docs/datasets.md)",
    )
    parser.add_argument(
        "--heads",
        default="linear",
        help="linear, mlp or both; the first is compared and drawn (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="random starts of an mlp (default: %(default)s)"
    )
    parser.add_argument(
        "--weighted-sum",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fit the learned weighted sum of all layers beside single ones (default: yes)",
    )
    parser.add_argument(
        "--references",
        default=",".join(_REFERENCES),
        help="what to compare with, or none (default: %(default)s)",
    )
    parser.add_argument(
        "--tracks", type=int, help="tracks of each kind (default: 192 mixes, 144 solos)"
    )
    parser.add_argument("--seconds", type=float, help=f"length of a track (default: {_SECONDS:g})")
    parser.add_argument(
        "--seed", type=int, default=0, help="tracks, splits, fresh weights (default: %(default)s)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        help="folder of rendered tracks and features to share (default: OUT/corpus)",
    )
    return parser


def _names(option: str, text: str, known: Sequence[_Name]) -> tuple[_Name, ...]:
    """Names out of a comma-separated list, in its order; ``all`` is all of them.

    :raises InputError: for one that is not known, or none.
    """
    asked = [part.strip() for part in text.split(",")]
    if asked == ["all"]:
        return tuple(known)
    if unknown := [name for name in asked if name not in known]:
        raise InputError(
            f"{option} must be among {', '.join(known)}, separated by commas, but names "
            f"{', '.join(unknown) or 'none'}."
        )
    return tuple(sorted((name for name in known if name in asked), key=asked.index))


if __name__ == "__main__":
    cli.run(main)
