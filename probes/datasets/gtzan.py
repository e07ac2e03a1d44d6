"""GTZAN: genre of 30 s, in the fault-filtered split.

Bob Sturm found that GTZAN repeats recordings and artists; the split of Kereliuk, Sturm and Larsen
("Deep Learning and Music Adversaries", 2015) has no artist in two parts: 443, 197 and 290 tracks.
Its lists are taken from the folder, as MARBLE v1 has them, or from ``torchaudio.datasets``, which
ships the same 930 names.
"""

from pathlib import Path

from etude.data.errors import DataError
from etude.probes.datasets.reading import (
    Listing,
    Recording,
    Source,
    check_folder,
    class_index,
    first_folder,
    listing,
    read_lines,
    wrong,
)
from etude.probes.splits import SPLITS, Split

GENRES = (
    "blues",
    "classical",
    "country",
    "disco",
    "hiphop",
    "jazz",
    "metal",
    "pop",
    "reggae",
    "rock",
)

SOURCE = Source(
    "gtzan",
    "http://marsyas.info/downloads/datasets.html",
    "genres/ (or Data/genres_original/, genres_original/) with a folder per genre, such as "
    "genres/blues/blues.00000.wav (or .au), and, if they are to replace those that torchaudio "
    "ships, train_filtered.txt, valid_filtered.txt and test_filtered.txt with lines such as "
    "blues/blues.00029.wav",
)


def read(folder: Path) -> Listing:
    """Tracks with their genre; the group is the track."""
    check_folder(SOURCE, folder)
    audio = first_folder(
        SOURCE, folder, ["genres", "genres_original", "Data/genres_original", "Data/genres"]
    )
    suffixes = {path.suffix for path in audio.glob("*/*.0*")} & {".wav", ".au"}
    if not suffixes:
        raise wrong(SOURCE, folder, f"{audio} holds no GENRE/GENRE.NNNNN.wav or .au")
    suffix = max(suffixes)  # .wav where there are both
    return listing(
        SOURCE,
        folder,
        GENRES,
        (
            Recording(
                (audio / _genre(name) / name).with_name(name + suffix),
                split,
                GENRES.index(_genre(name)),
                group=name,
            )
            for split, names in _lists(folder).items()
            for name in names
        ),
    )


def _genre(name: str) -> str:
    return name.split(".")[0]


def _lists(folder: Path) -> dict[Split, list[str]]:
    """Names such as ``blues.00029`` for each split."""
    paths = {split: folder / f"{split}_filtered.txt" for split in SPLITS}
    there = [split for split in SPLITS if paths[split].is_file()]
    if not there:
        # Late: whoever only lists tasks needs no torch.
        from torchaudio.datasets import gtzan

        return {
            "train": list(gtzan.filtered_train),
            "valid": list(gtzan.filtered_valid),
            "test": list(gtzan.filtered_test),
        }
    if len(there) < len(SPLITS):
        lacking = ", ".join(path.name for path in paths.values() if not path.is_file())
        raise wrong(SOURCE, folder, f"{paths[there[0]].name} is there, but {lacking} is not")
    return {
        split: [_stem(paths[split], line) for line in read_lines(paths[split])] for split in SPLITS
    }


def _stem(path: Path, line: str) -> str:
    name = Path(line).name
    stem = name.removesuffix(".wav").removesuffix(".au")
    if not (stem.count(".") == 1 and stem.split(".")[1].isdigit()):
        raise DataError(
            f"gtzan: {path} has the line {line!r}, but each must name a track, such as "
            "blues/blues.00029.wav."
        )
    class_index(SOURCE, f"{path}, {line}", _genre(stem), GENRES)
    return stem
