"""MTG-Jamendo: tags of full tracks, by category, in the official split 0.

The split files are part of its repository; a track has the tags of its row and no others.
"""

from pathlib import Path

from etude.data.errors import DataError
from etude.probes.datasets.reading import (
    Listing,
    Recording,
    Source,
    check_folder,
    first_folder,
    listing,
    read_text,
    wrong,
)
from etude.probes.splits import Split

SUBSETS = ("genre", "instrument", "moodtheme", "top50tags")

SOURCE = Source(
    "jamendo",
    "https://mtg.github.io/mtg-jamendo-dataset/",
    "mtg-jamendo-dataset/ (a clone of its repository, with data/splits/split-0/; or that clone "
    "itself) and audio-low/ or audio/ with tracks such as audio-low/14/214.low.mp3 or "
    "audio/14/214.mp3",
)

_FILES: dict[Split, str] = {"train": "train", "valid": "validation", "test": "test"}
_HEADER = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]


def read_genre(folder: Path) -> Listing:
    """Tracks with their genres; the group is the artist."""
    return _read(folder, "genre")


def read_instrument(folder: Path) -> Listing:
    """Tracks with their instruments; the group is the artist."""
    return _read(folder, "instrument")


def read_moodtheme(folder: Path) -> Listing:
    """Tracks with their moods and themes; the group is the artist."""
    return _read(folder, "moodtheme")


def read_top50(folder: Path) -> Listing:
    """Tracks with those of the 50 most frequent tags that hold; the group is the artist."""
    return _read(folder, "top50tags")


def _read(folder: Path, subset: str) -> Listing:
    check_folder(SOURCE, folder)
    splits = first_folder(
        SOURCE, folder, ["mtg-jamendo-dataset/data/splits/split-0", "data/splits/split-0"]
    )
    audio = first_folder(SOURCE, folder, ["audio-low", "audio"])
    ending = ".low.mp3" if audio.name == "audio-low" else ".mp3"
    rows: list[tuple[Split, list[str]]] = []
    for split, name in _FILES.items():
        path = splits / f"autotagging_{subset}-{name}.tsv"
        if not path.is_file():
            raise wrong(SOURCE, folder, f"{path.relative_to(folder)} is not there")
        rows += [(split, cells) for cells in _rows(path)]
    tags = sorted({tag for _, cells in rows for tag in cells[5:]})
    index = {tag: number for number, tag in enumerate(tags)}
    return listing(
        SOURCE,
        folder,
        tags,
        (
            Recording(
                audio / (cells[3].removesuffix(".mp3") + ending),
                split,
                frozenset(index[tag] for tag in cells[5:]),
                group=cells[1],
            )
            for split, cells in rows
        ),
    )


def _rows(path: Path) -> list[list[str]]:
    """Cells of each line; every cell from the sixth on is a tag, so that lines differ in length."""
    lines = [line.rstrip("\r\n").split("\t") for line in read_text(path).split("\n") if line]
    if not lines or lines[0] != _HEADER:
        raise DataError(
            f"jamendo: {path} must begin with the columns {', '.join(_HEADER)}, but begins with "
            f"{', '.join(lines[0])[:200] if lines else 'nothing'}."
        )
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) < len(_HEADER) or not all("---" in tag for tag in cells[5:]):
            raise DataError(
                f"jamendo: {path}, line {number}: expected five cells and then tags such as "
                f"genre---rock, but got {cells}."
            )
    return lines[1:]
