"""EmoMusic ("1000 songs"): arousal and valence of 45 s of a song, means over listeners.

Test is the evaluation set of MediaEval 2013. Validation follows jukemir's rule, which MARBLE took
over: a fifth of the development set by the hash of the artist, so that no artist is in both.
"""

import hashlib
from pathlib import Path

from etude.data.errors import DataError
from etude.probes.datasets.reading import (
    Listing,
    Recording,
    Source,
    check_folder,
    first_folder,
    listing,
    number,
    read_table,
    wrong,
)
from etude.probes.splits import Split

QUANTITIES = ("arousal", "valence")

SOURCE = Source(
    "emomusic",
    "https://cvml.unige.ch/databases/emoMusic/",
    "songs_info.csv and static_annotations.csv (or annotations/ with them) and clips_45seconds/ "
    "with 2.mp3, 3.mp3 ...",
)

_SET = "Mediaeval 2013 set"


def read(folder: Path) -> Listing:
    """Songs with arousal and valence as annotated (1 to 9); the group is the artist."""
    check_folder(SOURCE, folder)
    tables = folder / "annotations" if (folder / "annotations").is_dir() else folder
    for name in ("songs_info.csv", "static_annotations.csv"):
        if not (tables / name).is_file():
            raise wrong(SOURCE, folder, f"{(tables / name).relative_to(folder)} is not there")
    audio = first_folder(SOURCE, folder, ["clips_45seconds", "clips_45sec/clips_45seconds"])
    songs = read_table(SOURCE, tables / "songs_info.csv", ["song_id", "Artist", _SET])
    values_path = tables / "static_annotations.csv"
    columns = ["song_id", *(f"mean_{name}" for name in QUANTITIES)]
    values = {row["song_id"]: row for row in read_table(SOURCE, values_path, columns)}
    recordings = []
    for song in songs:
        name = song["song_id"]
        if name not in values:
            raise DataError(
                f"emomusic: song {name} is in songs_info.csv, but {values_path} has no row of it."
            )
        answer = tuple(
            number(SOURCE, f"{values_path}, song {name}", values[name][column], float)
            for column in columns[1:]
        )
        artist = normalised(song["Artist"])
        split = _split(song[_SET], artist, name)
        recordings.append(Recording(audio / f"{name}.mp3", split, answer, group=artist))
    return listing(SOURCE, folder, QUANTITIES, recordings)


def normalised(artist: str) -> str:
    """ASCII letters and single spaces in lower case: what jukemir hashes."""
    kept = [c for c in artist.lower() if c.isascii() and (c.isalpha() or c.isspace())]
    return " ".join("".join(kept).split())


def _split(media_eval: str, artist: str, song: str) -> Split:
    if media_eval == "evaluation":
        return "test"
    if media_eval != "development":
        raise DataError(
            f"emomusic: song {song} must be of the development or evaluation set, but "
            f"songs_info.csv says {media_eval!r}."
        )
    digest = int(hashlib.sha1(artist.encode(), usedforsecurity=False).hexdigest(), 16)
    return "train" if digest % 10 < 8 else "valid"
