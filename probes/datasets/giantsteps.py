"""GiantSteps: the key of two minutes of electronic dance music.

Training and validation are the MTG-keys data set without what Korzeniowski and Widmer (2018) leave
out: tracks of uncertain or of several keys. Validation follows jukemir's rule, which MARBLE took
over: 16 of 116 by the hash of the artist, with all who worked with one of those. The test is the
GiantSteps key data set.
"""

import hashlib
from pathlib import Path

from etude.data.errors import DataError
from etude.probes.datasets.reading import (
    Listing,
    Recording,
    Source,
    check_folder,
    class_index,
    listing,
    read_table,
    read_text,
    wrong,
)
from etude.probes.splits import Split

TONICS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")

KEYS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in TONICS)
"""The 24 keys, by mode and then by tonic: what ``metrics.key_score`` expects."""

SOURCE = Source(
    "giantsteps",
    "https://github.com/GiantSteps/giantsteps-key-dataset and "
    "https://github.com/GiantSteps/giantsteps-mtg-key-dataset",
    "giantsteps-mtg-key-dataset/ and giantsteps-key-dataset/ (a commit after the name may stay), "
    "each with audio/ID.LOFI.mp3 and its annotations/",
)

_SHARPS = {"C#": "Db", "D#": "Eb", "F#": "Gb", "G#": "Ab", "A#": "Bb"}
_CERTAIN = "2"
_TRAIN_SHARES, _VALID_SHARES = 100, 16


def read(folder: Path) -> Listing:
    """Tracks with their key; the group is the artists in training, the track in the test."""
    check_folder(SOURCE, folder)
    mtg = _part(folder, "giantsteps-mtg-key-dataset")
    key = _part(folder, "giantsteps-key-dataset")
    trained, left_out = _training(folder, mtg)
    return listing(SOURCE, folder, KEYS, [*trained, *_test(folder, key)], left_out=left_out)


def key_index(where: str, text: str) -> int:
    """Index in ``KEYS`` of ``F# minor``, ``Gb minor`` or ``f# minor``.

    :raises DataError: if it is no key.
    """
    tonic, _, mode = text.strip().partition(" ")
    tonic = tonic[:1].upper() + tonic[1:].lower()
    name = f"{_SHARPS.get(tonic, tonic)} {mode.strip().lower()}"
    return class_index(SOURCE, where, name, KEYS)


def _part(folder: Path, name: str) -> Path:
    found = sorted(path for path in folder.glob(f"{name}*") if path.is_dir())
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise wrong(SOURCE, folder, f"one folder {name} is needed, but there is {names}")
    return found[0]


def _training(folder: Path, part: Path) -> tuple[list[Recording], list[str]]:
    annotations, metadata = (
        part / "annotations" / name for name in ("annotations.txt", "beatport_metadata.txt")
    )
    for path in (annotations, metadata):
        if not path.is_file():
            raise wrong(SOURCE, folder, f"{path.relative_to(folder)} is not there")
    artists = {
        row["ID"]: [name.strip() for name in row["ARTIST"].split(",")]
        for row in read_table(SOURCE, metadata, ["ID", "ARTIST"], delimiter="\t")
    }
    splits = split_artists(list(artists.values()))
    recordings, uncertain, several = [], 0, 0
    for row in read_table(SOURCE, annotations, ["ID", "MANUAL KEY", "C"], delimiter="\t"):
        name, key = row["ID"], row["MANUAL KEY"]
        if row["C"] != _CERTAIN:
            uncertain += 1
        elif "/" in key:
            several += 1
        elif name not in artists:
            raise DataError(f"giantsteps: track {name} of {annotations} is not in {metadata}.")
        else:
            recordings.append(
                Recording(
                    part / "audio" / f"{name}.LOFI.mp3",
                    "valid" if "valid" in {splits[who] for who in artists[name]} else "train",
                    key_index(f"{annotations}, track {name}", key),
                    group=", ".join(artists[name]),
                )
            )
    left_out = [
        f"{count} tracks of MTG-keys {why}"
        for count, why in (
            (uncertain, "whose key is not certain (C is not 2)"),
            (several, "with several keys"),
        )
        if count
    ]
    return recordings, left_out


def _test(folder: Path, part: Path) -> list[Recording]:
    paths = sorted((part / "annotations" / "key").glob("*.key"))
    if not paths:
        raise wrong(SOURCE, folder, f"{part.name}/annotations/key/ holds no ID.LOFI.key")
    return [
        Recording(
            part / "audio" / f"{path.stem}.mp3",
            "test",
            key_index(str(path), read_text(path)),
            group=path.stem,
        )
        for path in paths
    ]


def split_artists(tracks: list[list[str]]) -> dict[str, Split]:
    """Train or valid for each artist.

    :param tracks: the artists of each track, in the order of the table.
    """
    splits: dict[str, Split] = {}
    for name in (name for artists in tracks for name in artists):
        digest = hashlib.sha1(name.lower().encode(), usedforsecurity=False).hexdigest()
        share = int(digest, 16) % (_TRAIN_SHARES + _VALID_SHARES)
        splits[name] = "train" if share < _TRAIN_SHARES else "valid"
    # Who worked with an artist of the validation belongs there too, and who worked with those: two
    # passes in the order of the table, as jukemir and MARBLE have it, so that the split is theirs.
    for _ in range(2):
        for artists in tracks:
            if any(splits[name] == "valid" for name in artists):
                splits.update(dict.fromkeys(artists, "valid"))
    return splits
