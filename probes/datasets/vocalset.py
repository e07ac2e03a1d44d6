"""VocalSet: vocal technique and singer, in a split that the user gives as lists.

The data set names test singers for technique and no validation part; MARBLE v1 cuts recordings into
3 s, and draws what is missing. Its lists (``train_t.txt`` ...) are what is asked for here, or any
other in that form: nothing is drawn.
"""

import re
from pathlib import Path

from etude.probes.datasets.reading import (
    Listing,
    Recording,
    Source,
    check_folder,
    class_index,
    listing,
    read_lines,
    wrong,
)
from etude.probes.splits import SPLITS

TECHNIQUES = (
    "belt",
    "breathy",
    "inhaled",
    "lip_trill",
    "spoken",
    "straight",
    "trill",
    "trillo",
    "vibrato",
    "vocal_fry",
)
"""Ten of the seventeen: the others say how loud or fast, not how."""

SINGERS = tuple(f"f{n}" for n in range(1, 10)) + tuple(f"m{n}" for n in range(1, 12))

SOURCE = Source(
    "vocalset",
    "https://zenodo.org/records/1193957",
    "{split}_t.txt (technique) and {split}_s.txt (singer) for the splits train, valid and test, "
    "with a path below audio/ (or below the folder itself) in each line, whose folder is the "
    "technique and whose name begins with the singer: belt/f1_arpeggios_belt_c_a_00.wav",
)


def read_technique(folder: Path) -> Listing:
    """Recordings with their technique; the group is the recording that a chunk was cut from."""
    return _read(folder, "t", TECHNIQUES)


def read_singer(folder: Path) -> Listing:
    """Recordings with their singer; the group is the recording that a chunk was cut from."""
    return _read(folder, "s", SINGERS)


def _read(folder: Path, task: str, names: tuple[str, ...]) -> Listing:
    check_folder(SOURCE, folder)
    audio = folder / "audio" if (folder / "audio").is_dir() else folder
    recordings = []
    for split in SPLITS:
        path = folder / f"{split}_{task}.txt"
        if not path.is_file():
            raise wrong(SOURCE, folder, f"the split is not given: {path.name} is not there")
        for line in read_lines(path):
            file = Path(line)
            label = file.parent.name if task == "t" else file.name.split("_")[0]
            answer = class_index(SOURCE, f"{path}, {line}", label, names)
            group = re.sub(r"_\d\d$", "", file.stem)
            recordings.append(Recording(audio / file, split, answer, group))
    return listing(SOURCE, folder, names, recordings)
