"""A local copy of a data set becomes a source of audio and tasks about it.

    tables -> listings -> which files can be heard -> clips -> examples

Tasks of one data set share the source, so that a clip is encoded once for all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from etude.data.errors import DataError
from etude.probes.datasets.audio_files import FileSource, Survey, cut, survey
from etude.probes.datasets.catalogue import DATASET_TASKS, DatasetTask
from etude.probes.datasets.reading import Listing, Recording
from etude.probes.splits import SPLITS, Split
from etude.probes.task_types import WHOLE_CLIP, Clip, Example, ProbeTask

MOST_UNUSABLE = 0.05
"""Share of a split's files that may be missing or broken; beyond, a score is another data set's."""

_NAMED = 5
"""Files that a message names; all of them are in the results."""


@final
@dataclass(frozen=True)
class OpenDataset:
    """What a probe needs of a data set, and what it should tell of it."""

    source: FileSource

    tasks: tuple[ProbeTask, ...]

    unusable: Mapping[str, str]
    """Why files are not heard, by path."""

    left_out: tuple[str, ...]
    """What a task's protocol leaves out, with the rule and how many."""

    remarks: tuple[str, ...]
    """Classes and tags that a part of the split lacks, so that a score does not speak of them."""

    def report(self) -> str:
        """A few lines to print."""
        lines = [f"{self.source.name}: {len(self.source.paths)} files"]
        for task in self.tasks:
            counts = (f"{len(_tracks(task, split))} {split}" for split in SPLITS)
            lines.append(f"{task.name}: {', '.join(counts)}")
        if self.unusable:
            named = [f"{path} ({reason})" for path, reason in self.unusable.items()]
            lines.append(f"{len(named)} files are missing or broken: {_some(named)}")
        lines += [f"left out by the protocol: {text}" for text in self.left_out]
        lines += self.remarks
        return "\n  ".join(lines)


def open_dataset(folder: Path, names: Sequence[str], *, memory: Path | None = None) -> OpenDataset:
    """Reads a data set.

    :param folder: its local copy.
    :param names: tasks in ``DATASET_TASKS``, all of one data set.
    :param memory: a file of what became of each audio file, see ``audio_files.survey``.
    :raises InputError: if there is no such folder.
    :raises DataError: if it is not the data set, or too many files are missing or broken.
    """
    asked = {name: DATASET_TASKS[name] for name in names}
    dataset = next(iter(asked.values())).source.name
    assert all(task.source.name == dataset for task in asked.values()), "of one data set"
    listings = {name: task.read(folder) for name, task in asked.items()}
    paths = {recording.path for found in listings.values() for recording in found.recordings}
    known = survey(paths, name=dataset, memory=memory)
    for name, found in listings.items():
        _check(name, asked[name], folder, found, known)
    audible = sorted(known.seconds)
    tracks = {path: number for number, path in enumerate(audible)}
    tasks = tuple(
        _task(name, asked[name], found, tracks, known) for name, found in listings.items()
    )
    for task in tasks:
        _check_tags(task, folder)
    left_out = dict.fromkeys(text for found in listings.values() for text in found.left_out)
    return OpenDataset(
        FileSource(dataset, audible, known.stamps),
        tasks,
        {str(path): reason for path, reason in known.unusable.items()},
        tuple(left_out),
        tuple(remark for task in tasks for remark in _remarks(task)),
    )


def _check(name: str, task: DatasetTask, folder: Path, found: Listing, known: Survey) -> None:
    for split in SPLITS:
        asked = [recording for recording in found.recordings if recording.split == split]
        lost = [
            f"{recording.path} ({known.unusable[recording.path]})"
            for recording in asked
            if recording.path in known.unusable
        ]
        if len(lost) > MOST_UNUSABLE * len(asked):
            raise DataError(
                f"{name}: {len(lost)} of the {len(asked)} files for {split} are missing or broken: "
                f"{_some(lost)}. At most {MOST_UNUSABLE:.0%} may be, or the score would be that of "
                f"another data set. {folder} must hold {task.source.layout}. The data set: "
                f"{task.source.page}; see docs/datasets.md."
            )


def _task(
    name: str, task: DatasetTask, found: Listing, tracks: Mapping[Path, int], known: Survey
) -> ProbeTask:
    examples = []
    groups: dict[str, int] = {}
    for recording in found.recordings:
        if recording.path not in tracks:
            continue  # counted in `unusable`
        truth = _truth(recording, len(found.names))
        clips = cut(
            known.seconds[recording.path],
            clip_seconds=task.clip_seconds,
            most_seconds=task.most_seconds,
        )
        examples += [
            Example(
                Clip(task.source.name, tracks[recording.path], start, seconds),
                WHOLE_CLIP,
                truth,
                recording.split,
                groups.setdefault(recording.group, len(groups)),
            )
            for start, seconds in clips
        ]
    return ProbeTask(
        name, task.answer, found.names, tuple(examples), task.metrics, mean_over_track=True
    )


def _truth(recording: Recording, outputs: int) -> int | tuple[float, ...]:
    if isinstance(recording.answer, frozenset):
        return tuple(float(output in recording.answer) for output in range(outputs))
    return recording.answer


def _check_tags(task: ProbeTask, folder: Path) -> None:
    """A score on tags needs one that holds for some of a part and not for others."""
    if task.answer != "multilabel":
        return
    for split in ("valid", "test"):
        values_NC = task.values[task.rows(split)]
        if not (values_NC.min(axis=0) < values_NC.max(axis=0)).any():
            raise DataError(
                f"{task.name}: no tag both holds for some of {split} and does not for others, so "
                f"that nothing can be scored. {folder} must hold the whole data set."
            )


def _tracks(task: ProbeTask, split: Split) -> set[int]:
    return {example.clip.track for example in task.examples if example.split == split}


def _remarks(task: ProbeTask) -> list[str]:
    """What is lacking in the training and in the test."""
    if task.answer == "classes":
        has = {split: set(task.labels[task.rows(split)].tolist()) for split in SPLITS}
        one_sided: set[int] = set()
    elif task.answer == "multilabel":
        test = task.values[task.rows("test")]
        one_sided = set(np.flatnonzero(test.all(axis=0)).tolist())
        has = {
            split: set(np.flatnonzero(task.values[task.rows(split)].any(axis=0)).tolist())
            for split in SPLITS
        }
    else:
        return []

    def told(numbers: set[int], what: str) -> list[str]:
        names = [task.outputs[number] for number in sorted(numbers)]
        return [f"{task.name}: {len(names)} {what}: {_some(names)}"] if names else []

    every = set(range(len(task.outputs)))
    means = ", and take no part in the means" if task.answer == "multilabel" else ""
    return [
        *told(every - has["test"], f"of {len(every)} have no example in the test{means}"),
        *told(one_sided, f"of {len(every)} hold for all of the test{means}"),
        *told(has["test"] - has["train"], "in the test have no example in training"),
    ]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
