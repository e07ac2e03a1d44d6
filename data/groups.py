"""Which tracks are held out together (``--group-by``): those of one artist, one album, or one
value of any column of ``--metadata``.

A model that has heard an artist's other songs knows the voice and the studio, so that clips of that
artist in valid would measure memory. The value comes from the track's row in ``--metadata``, or
else from the tags inside the file.
"""

import importlib
import unicodedata
from pathlib import Path
from typing import Any

import soundfile

from etude.data.audio import pyav_installed
from etude.data.errors import InputError
from etude.data.metadata import Table
from etude.data.sources import Source

NO_GROUPS = "none"
"""``--group-by none``: every track is held out alone."""

_TAGS = ("artist", "album")
"""What the tags of all formats have."""


def check_group_by(group_by: str, table: Table | None) -> None:
    """:class:`InputError` for a column that neither the table nor tags can have."""
    columns = frozenset() if table is None else table.columns
    if group_by in (NO_GROUPS, *_TAGS) or group_by in columns:
        return
    known = ", ".join(sorted({NO_GROUPS, *_TAGS, *columns}))
    raise InputError(
        f"--group-by must be one of {known}, but is {group_by!r}: tags give artist and album, "
        f"other columns come from --metadata."
    )


def tag_of(source: Source, group_by: str) -> str | None:
    """The file's own tag, where it is needed because its row does not say."""
    if group_by not in _TAGS or _in_row(source, group_by) is not None:
        return None
    return _read_tag(source.path, group_by)


def group_of(source: Source, group_by: str, tag: str | None) -> str:
    """The name of the track's group, equal for spellings that differ in case or in spaces.

    Empty for a track that stands alone.
    """
    value = tag if tag is not None else _in_row(source, group_by)
    return " ".join(unicodedata.normalize("NFKC", value or "").casefold().split())


def _in_row(source: Source, group_by: str) -> str | None:
    value: Any = None if source.metadata is None else source.metadata.get(group_by)
    if value is None or isinstance(value, dict | list):
        return None
    return str(value) if str(value).strip() else None


def _read_tag(path: Path, name: str) -> str | None:
    """None where the file has no such tag, or no decoder that would show it."""
    try:
        # By descriptor: from the name x.raw soundfile would conclude that there is no header.
        with path.open("rb") as raw, soundfile.SoundFile(raw.fileno(), closefd=False) as file:
            value = str(getattr(file, name))
    except (soundfile.LibsndfileError, OSError):
        value = _container_tag(path, name)
    return value.strip() or None


def _container_tag(path: Path, name: str) -> str:
    if not pyav_installed():
        return ""
    av = importlib.import_module("av")
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
    except (av.FFmpegError, OSError):
        return ""
    return str(tags.get(name, ""))
