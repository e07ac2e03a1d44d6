"""A table about tracks (``--metadata``): read, checked, and matched to the audio files found.

    a,b,…      CSV with a line of names, or JSONL: one object per line
    file       names the track: its `source`, or its path under a given folder, or its bare name
    the rest   travels into every clip's JSON, under `metadata`

A row that might mean two tracks is an error, a row that means none is noted: a table may cover more
than what was given.
"""

import csv
import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, final

from etude.data.errors import InputError
from etude.data.files import json_bytes
from etude.data.sources import Finding, Scan, Source

FILE_COLUMN = "file"
LICENCE_COLUMN = "licence"
"""Known: seconds per licence are in the index. ``license`` is read as ``licence``."""

UNMATCHED = "unmatched_row"
"""The reason in the report for a row that means no track."""


@final
@dataclass(frozen=True)
class Row:
    """What the table says of one file."""

    line: int
    """In the file, from 1; where the row ends, if it spans several lines."""
    file: str
    values: dict[str, Any]
    """Strings from CSV, any JSON from JSONL."""


@final
@dataclass(frozen=True)
class Table:
    """A metadata file."""

    path: Path
    columns: frozenset[str]
    """All names but ``file``."""
    rows: tuple[Row, ...]


def read_table(path: Path) -> Table:
    """Reads a ``.csv`` or ``.jsonl`` file in UTF-8; :class:`InputError` names the line at fault."""
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {".csv": _csv_rows, ".jsonl": _json_rows}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: --metadata takes a .csv or a .jsonl file.")
    try:
        rows = tuple(_checked(path, row) for row in readers[path.suffix.lower()](path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except csv.Error as error:
        raise InputError(f"{path}: not CSV ({error}).") from error
    if not rows:
        raise InputError(f"{path}: has no rows. Leave --metadata out, or fill the file.")
    return Table(path, frozenset(name for row in rows for name in row.values), rows)


def with_metadata(scan: Scan, table: Table) -> Scan:
    """The scan with each track's row in it; rows without a track are noted."""
    index = _Index(scan.sources)
    taken: dict[str, Row] = {}
    noted: list[Finding] = []
    for row in table.rows:
        found = index.find(row.file)
        if len(found) > 1:
            names = ", ".join(source.name for source in found[:3]) + ", ..." * (len(found) > 3)
            _fault(
                table.path,
                row.line,
                f"{row.file!r} may be any of {len(found)} tracks ({names}). Write the path as "
                f"`source` has it: with the name of the folder given.",
            )
        if not found:
            noted.append(
                Finding(row.file, UNMATCHED, f"line {row.line} of {table.path.name}: no such track")
            )
            continue
        name = found[0].name
        if name in taken:
            _fault(table.path, row.line, f"{name} has a row in line {taken[name].line} already.")
        taken[name] = row
    if not taken:
        example = scan.sources[0].name if scan.sources else "none was found"
        raise InputError(
            f"{table.path}: none of its {len(table.rows)} rows names one of the "
            f"{len(scan.sources)} tracks. The column `{FILE_COLUMN}` must hold a path such as "
            f"{example!r}; line {table.rows[0].line} has {table.rows[0].file!r}."
        )
    sources = tuple(
        dataclasses.replace(source, metadata=taken[source.name].values)
        if source.name in taken
        else source
        for source in scan.sources
    )
    return dataclasses.replace(scan, sources=sources, noted=scan.noted + tuple(noted))


def describe_match(scan: Scan, table: Table) -> str:
    """How many tracks have a row, and how many rows a track, for people."""
    matched = sum(source.metadata is not None for source in scan.sources)
    text = f"{matched} of {len(scan.sources)} tracks have a row in {table.path}"
    strays = len(table.rows) - matched
    if strays:
        first = next(note.file for note in scan.noted if note.reason == UNMATCHED)
        text += f"; {strays} rows name no track, the first is {first!r}"
    return text


def metadata_fingerprint(scan: Scan) -> str | None:
    """Hash of what the rows say of the tracks, whatever their order; None without any."""
    if all(source.metadata is None for source in scan.sources):
        return None
    digest = hashlib.sha256()
    for source in scan.sources:
        digest.update(json_bytes([source.name, source.metadata], indent=None))
    return digest.hexdigest()


def licence_of(metadata: Any) -> str | None:
    """The licence in a clip's ``metadata``; None where there is none."""
    value = metadata.get(LICENCE_COLUMN) if isinstance(metadata, dict) else None
    return value.strip() or None if isinstance(value, str) else None


@final
class _Index:
    """Tracks by what a row may call them, the most exact name first."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._levels: tuple[dict[str, list[Source]], ...] = ({}, {}, {})
        for source in sources:
            path = PurePosixPath(source.name)
            below = PurePosixPath(*path.parts[1:]) if len(path.parts) > 1 else path
            for level, name in zip(self._levels, (path, below, path.name), strict=True):
                level.setdefault(_plain(str(name)), []).append(source)

    def find(self, file: str) -> list[Source]:
        wanted = _plain(str(PurePosixPath(file)))
        for level in self._levels:
            if wanted in level:
                return level[wanted]
        return []


def _plain(name: str) -> str:
    # A Mac writes "e" and its accent as two characters where a table has one.
    return unicodedata.normalize("NFC", name)


def _csv_rows(path: Path) -> Iterator[Row]:
    # surrogateescape: names on a disk need not be valid Unicode, and `file` has to match them.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        names = [name.strip() for name in next(reader, [])]
        if len(set(names)) != len(names) or "" in names:
            _fault(path, 1, "every column needs a name of its own.")
        if FILE_COLUMN not in names:
            _fault(path, 1, f"no column is called `{FILE_COLUMN}`, only {', '.join(names)}.")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(names):
                _fault(path, reader.line_num, f"{len(cells)} cells, but {len(names)} columns.")
            values = dict(zip(names, cells, strict=True))
            yield Row(reader.line_num, values.pop(FILE_COLUMN), values)


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
                json_bytes(values)  # 1e999 reads as infinity, which JSON cannot hold
            except (ValueError, RecursionError) as error:
                _fault(path, number, f"not a line of JSON ({error}).")
            if not isinstance(values, dict) or not isinstance(values.get(FILE_COLUMN), str):
                _fault(path, number, f"not an object with a text called `{FILE_COLUMN}`.")
            yield Row(number, values.pop(FILE_COLUMN), values)


def _checked(path: Path, row: Row) -> Row:
    if not row.file.strip():
        _fault(path, row.line, f"`{FILE_COLUMN}` is empty.")
    values = dict(row.values)
    if "license" in values:
        if LICENCE_COLUMN in values:
            _fault(path, row.line, "both `licence` and `license`: keep one of them.")
        values = {
            LICENCE_COLUMN if name == "license" else name: value for name, value in values.items()
        }
    licence = values.get(LICENCE_COLUMN)
    if licence is not None and not isinstance(licence, str):
        _fault(path, row.line, f"`{LICENCE_COLUMN}` must be a text, but is {licence!r}.")
    try:
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        _fault(path, row.line, "not UTF-8. Save the file as UTF-8.")
    return Row(row.line, row.file, values)


def _fault(path: Path, line: int, what: str) -> NoReturn:
    raise InputError(f"{path}: line {line}: {what}")
