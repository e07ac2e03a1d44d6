"""What every reader yields, and how it says that a folder is not what it should be.

A reader turns the folder of one data set into a ``Listing``: recordings with answer, split and
group. It reads tables and no audio; it draws no split, and leaves nothing out without a word.
Whether the files are there and can be heard is for ``audio_files.py`` to say.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from etude.data.errors import DataError, InputError
from etude.probes.splits import SPLITS, Split

Answer = int | frozenset[int] | tuple[float, ...]
"""A class; the tags that hold; a value of each quantity."""


@final
@dataclass(frozen=True)
class Source:
    """Where a data set comes from, and what its folder looks like."""

    name: str
    """As ``--data NAME=FOLDER`` has it."""

    page: str
    """Official page."""

    layout: str
    """What the folder must hold, in words."""


@final
@dataclass(frozen=True)
class Recording:
    """A file and what is known of it."""

    path: Path

    split: Split

    answer: Answer

    group: str
    """What is drawn again in intervals: the track, artist or instrument it belongs to."""


@final
@dataclass(frozen=True)
class Listing:
    """All recordings of one task."""

    names: tuple[str, ...]
    """Classes, tags or quantities, by index."""

    recordings: tuple[Recording, ...]
    """All that the tables name, whether the files are there or not."""

    left_out: tuple[str, ...] = ()
    """What the protocol leaves out, with the rule and how many."""


def wrong(source: Source, folder: Path, problem: str) -> DataError:
    """The error for a folder that is not the data set, or not in its layout."""
    try:
        inside = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    except OSError:
        inside = []
    shown = ", ".join(inside[:8]) or "nothing"
    more = f" and {len(inside) - 8} more" if len(inside) > 8 else ""
    return DataError(
        f"{source.name}: {problem}. {folder} must hold {source.layout}; it holds {shown}{more}. "
        f"The data set: {source.page}; see docs/datasets.md."
    )


def check_folder(source: Source, folder: Path) -> None:
    """:class:`InputError` where there is no folder."""
    if not folder.is_dir():
        raise InputError(
            f"--data {source.name}={folder}: no such folder. It must hold {source.layout}. "
            f"The data set: {source.page}; see docs/datasets.md."
        )


def first_folder(source: Source, folder: Path, choices: Iterable[str]) -> Path:
    """The first of several places that is a folder; ``.`` is the folder itself."""
    tried = list(choices)
    for choice in tried:
        if (folder / choice).is_dir():
            return folder / choice
    raise wrong(source, folder, f"none of the folders {', '.join(tried)} is there")


def first_file(source: Source, folder: Path, choices: Iterable[str]) -> Path:
    """The first of several places that is a file."""
    tried = list(choices)
    for choice in tried:
        if (folder / choice).is_file():
            return folder / choice
    raise wrong(source, folder, f"{' or '.join(tried)} is not there")


def read_lines(path: Path) -> list[str]:
    """Lines of a list, without those that are empty."""
    text = read_text(path)
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_text(path: Path) -> str:
    """A table or list. Names of artists need not be UTF-8, and no answer depends on them.

    :raises DataError: if it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_table(
    source: Source, path: Path, columns: Sequence[str], *, delimiter: str = ","
) -> list[dict[str, str]]:
    """Rows by column name, all stripped.

    :param columns: those that must be there.
    :raises DataError: if one is not, or a row is too short.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    header = [name.strip() for name in next(reader, [])]
    if lacking := [name for name in columns if name not in header]:
        raise DataError(
            f"{source.name}: {path} must have the columns {', '.join(columns)}, but lacks "
            f"{', '.join(lacking)}; its first line is {', '.join(header)[:200] or 'empty'}. "
            f"The data set: {source.page}."
        )
    needed = max(header.index(name) for name in columns) + 1
    rows = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) < needed:
            raise DataError(
                f"{source.name}: {path}, line {reader.line_num}: expected {len(header)} columns, "
                f"but there are {len(cells)}."
            )
        rows.append(dict(zip(header, (cell.strip() for cell in cells), strict=False)))
    return rows


def class_index(source: Source, where: str, name: str, names: Sequence[str]) -> int:
    """The index of a label.

    :raises DataError: if it is none of those known.
    """
    if name not in names:
        raise DataError(
            f"{source.name}: {where}: the label {name!r} is not among {', '.join(names)}."
        )
    return names.index(name)


def number(source: Source, where: str, text: str, kind: Callable[[str], float]) -> float:
    """A number of a table.

    :raises DataError: if it is none, or not finite: ``float`` takes "nan" and "inf" too.
    """
    try:
        value = kind(text)
    except ValueError as error:
        raise DataError(f"{source.name}: {where}: {text!r} is not a number.") from error
    if not math.isfinite(value):
        raise DataError(f"{source.name}: {where}: {text!r} is not a finite number.")
    return value


def listing(
    source: Source,
    folder: Path,
    names: Sequence[str],
    recordings: Iterable[Recording],
    *,
    left_out: Sequence[str] = (),
) -> Listing:
    """Puts a listing together.

    :raises DataError: if a split is empty, or a file has two places.
    """
    found = Listing(tuple(names), tuple(recordings), tuple(left_out))
    for split in SPLITS:
        if not any(recording.split == split for recording in found.recordings):
            raise wrong(source, folder, f"the tables leave nothing for {split}")
    twice = Counter(recording.path for recording in found.recordings)
    if repeated := [str(path) for path, times in twice.items() if times > 1]:
        raise wrong(source, folder, f"{', '.join(repeated[:5])} is named more than once")
    return found
