"""NSynth: family of the instrument and pitch of single notes of 4 s, in its own split.

MARBLE v1 asks both: 11 families, and pitch as one of 128 MIDI numbers.
"""

import json
from pathlib import Path

from etude.data.errors import DataError
from etude.probes.datasets.reading import (
    Answer,
    Listing,
    Recording,
    Source,
    check_folder,
    class_index,
    listing,
    read_text,
    wrong,
)
from etude.probes.splits import SPLITS

FAMILIES = (
    "bass",
    "brass",
    "flute",
    "guitar",
    "keyboard",
    "mallet",
    "organ",
    "reed",
    "string",
    "synth_lead",
    "vocal",
)

PITCHES = tuple(str(pitch) for pitch in range(128))
"""MIDI numbers."""

SOURCE = Source(
    "nsynth",
    "https://magenta.tensorflow.org/datasets/nsynth",
    "nsynth-train/, nsynth-valid/ and nsynth-test/, each with examples.json and audio/*.wav (the "
    "json/wav archives)",
)


def read_family(folder: Path) -> Listing:
    """Notes with the family of their instrument; the group is the instrument."""
    return _read(folder, "instrument_family_str", FAMILIES)


def read_pitch(folder: Path) -> Listing:
    """Notes with their pitch; the group is the instrument."""
    return _read(folder, "pitch", PITCHES)


def _read(folder: Path, key: str, names: tuple[str, ...]) -> Listing:
    check_folder(SOURCE, folder)
    recordings = []
    for split in SPLITS:
        part = folder / f"nsynth-{split}"
        path = part / "examples.json"
        if not path.is_file():
            raise wrong(SOURCE, folder, f"{path.relative_to(folder)} is not there")
        try:
            notes = dict(json.loads(read_text(path)))
        except (ValueError, TypeError) as error:
            raise DataError(f"nsynth: {path} is no JSON object of notes: {error}.") from error
        for note, facts in notes.items():
            where = f"{path}, {note}"
            try:
                answer: Answer = class_index(SOURCE, where, str(facts[key]), names)
                group = str(facts["instrument_str"])
            except (KeyError, TypeError) as error:
                raise DataError(
                    f"nsynth: {where} must have {key} and instrument_str, but is {facts!r:.200}."
                ) from error
            recordings.append(Recording(part / "audio" / f"{note}.wav", split, answer, group))
    return listing(SOURCE, folder, names, recordings)
