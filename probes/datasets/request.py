"""What a command line asks of data sets: ``--data NAME=FOLDER`` and names of tasks. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from etude.data.errors import InputError
from etude.probes.datasets.catalogue import DATASET_NAMES, DATASET_TASKS
from etude.probes.datasets.reading import check_folder


def parse_folders(texts: Sequence[str]) -> dict[str, Path]:
    """Folders by name of the data set, of ``NAME=FOLDER`` each.

    :raises InputError: for another form, an unknown name, or a name that comes twice.
    """
    folders: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not (equals and folder) or name not in DATASET_NAMES:
            raise InputError(
                f"--data must be NAME=FOLDER with one of the names {', '.join(DATASET_NAMES)}, but "
                f"is {text!r}."
            )
        if name in folders:
            raise InputError(f"--data {name} is given twice: {folders[name]} and {folder}.")
        folders[name] = Path(folder)
    return folders


def tasks_of(folders: Mapping[str, Path]) -> list[str]:
    """All tasks of the data sets given."""
    return [name for name, task in DATASET_TASKS.items() if task.source.name in folders]


def by_dataset(tasks: Sequence[str], folders: Mapping[str, Path]) -> dict[str, list[str]]:
    """Tasks that are asked, by data set.

    :param tasks: names in ``DATASET_TASKS``.
    :raises InputError: if a task's data set is not given, a data set is given for no task, or a
        folder is not there.
    """
    asked: dict[str, list[str]] = {}
    for name in tasks:
        asked.setdefault(DATASET_TASKS[name].source.name, []).append(name)
    for dataset, names in asked.items():
        if dataset not in folders:
            raise InputError(
                f"{', '.join(names)} needs a local copy: give --data {dataset}=FOLDER, see "
                "docs/datasets.md."
            )
    for dataset, folder in folders.items():
        if dataset not in asked:
            could = ", ".join(tasks_of({dataset: folder}))
            raise InputError(f"--data {dataset} is given, but --tasks names none of {could}.")
    for dataset, names in asked.items():
        check_folder(DATASET_TASKS[names[0]].source, folders[dataset])
    return asked
