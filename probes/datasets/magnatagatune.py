"""MagnaTagATune: the 50 most frequent of 188 tags, of clips of 29 s, split by folder 12 : 1 : 3.

The split, the tags and that clips without any of the 50 stay in are MARBLE v1's.
"""

import re
from pathlib import Path

import numpy as np

from etude.data.errors import DataError
from etude.probes.datasets.reading import (
    Listing,
    Recording,
    Source,
    check_folder,
    first_file,
    first_folder,
    listing,
    read_table,
)
from etude.probes.splits import Split

TOP_TAGS = 50

SOURCE = Source(
    "magnatagatune",
    "https://mirg.city.ac.uk/codeapps/the-magnatagatune-dataset",
    "annotations_final.csv and mp3/ with the folders 0 to 9 and a to f (or those folders "
    "themselves)",
)

_FOLDERS = "0123456789abcdef"
_ALL_TAGS_BUT = ("clip_id", "mp3_path")


def read(folder: Path) -> Listing:
    """Clips with their tags; the group is the track that a clip was cut from."""
    check_folder(SOURCE, folder)
    path = first_file(SOURCE, folder, ["annotations_final.csv"])
    audio = folder / "mp3"
    if not audio.is_dir():
        audio = first_folder(SOURCE, folder, ["0"]).parent
    rows = read_table(SOURCE, path, _ALL_TAGS_BUT, delimiter="\t")
    if not rows:
        raise DataError(f"magnatagatune: {path} holds no clip.")
    tags = [name for name in rows[0] if name not in _ALL_TAGS_BUT]
    if len(tags) < TOP_TAGS:
        raise DataError(
            f"magnatagatune: {path} has {len(tags)} tags, but {TOP_TAGS} are asked for."
        )
    holds_NC = np.array([[_holds(path, row, tag) for tag in tags] for row in rows])
    # Of equals the one that stands first in the table.
    top = np.argsort(-holds_NC.sum(axis=0), kind="stable")[:TOP_TAGS]
    return listing(
        SOURCE,
        folder,
        [tags[column] for column in top],
        (
            Recording(
                audio / row["mp3_path"],
                _split(path, row["mp3_path"]),
                frozenset(np.flatnonzero(holds_C[top]).tolist()),
                group=re.sub(r"-\d+-\d+$", "", Path(row["mp3_path"]).stem),
            )
            for row, holds_C in zip(rows, holds_NC, strict=True)
        ),
        left_out=[f"{len(tags) - TOP_TAGS} tags that are not among the {TOP_TAGS} most frequent"],
    )


def _holds(path: Path, row: dict[str, str], tag: str) -> bool:
    if row.get(tag) not in ("0", "1"):
        raise DataError(
            f"magnatagatune: {path}, clip {row['clip_id']}: the tag {tag!r} must be 0 or 1, but is "
            f"{row.get(tag)!r}."
        )
    return row[tag] == "1"


def _split(path: Path, name: str) -> Split:
    parts = name.split("/")
    if len(parts) != 2 or parts[0] not in _FOLDERS:
        raise DataError(
            f"magnatagatune: {path}: mp3_path must be a folder 0 to f and a file, but is {name!r}."
        )
    number = _FOLDERS.index(parts[0])
    return "train" if number < 12 else "valid" if number == 12 else "test"
