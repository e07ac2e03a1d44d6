"""Finds a user's audio files: recursively, by extension and by the first bytes of the file."""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from etude.data.containers.headers import AUDIO_EXTENSIONS, recognised
from etude.data.errors import InputError


@final
@dataclass(frozen=True)
class Finding:
    """A line of the report: why a file was skipped, or what is worth knowing about it."""

    file: str
    reason: str
    detail: str


@final
@dataclass(frozen=True)
class Source:
    """One audio file to pack."""

    path: Path
    name: str
    """Path from the folder that was given, with that folder's name: the identity of the track,
    the same on another disk."""
    size: int
    mtime_ns: int
    labels: Path | None
    """A JSON file of the same stem beside it."""
    labels_size: int = 0
    labels_mtime_ns: int = 0
    metadata: dict[str, Any] | None = field(default=None, hash=False)
    """Its row in ``--metadata``, without the name of the file (metadata.py)."""

    @property
    def id(self) -> str:
        """Short hash of the name, for keys and temporary files."""
        return hashlib.sha256(self.name.encode("utf-8", "surrogateescape")).hexdigest()[:12]


@final
@dataclass(frozen=True)
class Scan:
    """All that was found in the places given."""

    sources: tuple[Source, ...]
    skipped: tuple[Finding, ...]
    other_files: int
    """Files that do not look like audio; label files are not counted."""
    noted: tuple[Finding, ...] = ()
    """Rows of ``--metadata`` that name no track."""

    def fingerprint(self) -> str:
        """Names, sizes and times of all sources."""
        digest = hashlib.sha256()
        for source in self.sources:
            stamp = (source.size, source.mtime_ns, source.labels_size, source.labels_mtime_ns)
            digest.update(source.name.encode("utf-8", "surrogateescape"))
            digest.update(f"\n{stamp}\n".encode())
        return digest.hexdigest()


def scan_sources(roots: Sequence[Path], *, outside: Path) -> Scan:
    """Everything under ``roots`` in the order of names; what is in ``outside`` is left alone.

    Names that begin with a dot are ignored: ``._song.flac`` is a Mac's resource fork, not a song.
    """
    named: dict[Path, str] = {}
    for root in roots:
        if not root.exists():
            raise InputError(
                f"{root}: no such file or folder. Give a folder with music, or audio files."
            )
        resolved = root.resolve()
        if resolved not in named:
            same = sum(other.name == resolved.name for other in named)
            named[resolved] = resolved.name + (f"~{same + 1}" if same else "")
    skipped: list[Finding] = []
    sources: list[Source] = []
    others: list[Path] = []
    label_files: set[Path] = set()
    for root, name in named.items():
        for path in _files(root, outside.resolve(), skipped):
            relative = path.relative_to(root)
            full_name = name if path == root else f"{name}/{relative.as_posix()}"
            try:
                source = _source(path, full_name)
            except OSError as error:
                skipped.append(Finding(full_name, "unreadable", error.strerror or str(error)))
                continue
            if source is None:
                others.append(path)
            else:
                sources.append(source)
                if source.labels is not None:
                    label_files.add(source.labels)
    sources.sort(key=lambda source: source.name)
    counted = sum(path not in label_files for path in others)
    return Scan(tuple(sources), tuple(skipped), counted)


def _files(root: Path, outside: Path, skipped: list[Finding]) -> Iterator[Path]:
    if not root.is_dir():
        yield root
        return

    def unreadable(error: OSError) -> None:
        skipped.append(Finding(str(error.filename), "unreadable", error.strerror or str(error)))

    visited: set[tuple[int, int]] = set()
    for folder, names, files in os.walk(root, onerror=unreadable, followlinks=True):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in visited:  # a link that leads back into the tree
            names.clear()
            continue
        visited.add((here.st_dev, here.st_ino))
        names[:] = sorted(
            name
            for name in names
            if not name.startswith(".") and (Path(folder) / name).resolve() != outside
        )
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(folder) / name


def _source(path: Path, name: str) -> Source | None:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        return None
    if path.suffix.lower() not in AUDIO_EXTENSIONS:
        with path.open("rb") as file:
            if not recognised(file.read(12)):
                return None
    labels = path.with_suffix(".json")
    if labels.is_file():
        beside = labels.stat()
        return Source(
            path,
            name,
            found.st_size,
            found.st_mtime_ns,
            labels,
            beside.st_size,
            beside.st_mtime_ns,
        )
    return Source(path, name, found.st_size, found.st_mtime_ns, None)
