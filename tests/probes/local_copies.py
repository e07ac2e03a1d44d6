"""Tiny copies of public data sets: their layouts and tables, with tones for music."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000


def sound(
    path: Path,
    *,
    hertz: float = 440.0,
    also: float = 0.0,
    level: float = 0.2,
    seconds: float = 1.0,
) -> Path:
    """A tone or two in the format of the file's name, with a little noise that the name seeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(list(path.name.encode())).standard_normal(len(time))
    tones = np.sin(2 * np.pi * hertz * time) + np.sin(2 * np.pi * also * time)
    samples = level * (tones + 0.1 * noise)
    soundfile.write(path, samples.astype(np.float32), RATE)
    return path


def gtzan(
    folder: Path, lists: Mapping[str, Sequence[str]], *, hertz: Mapping[str, float] | None = None
) -> Path:
    """``lists`` holds names such as ``blues.00000`` for train, valid and test."""
    for split, names in lists.items():
        lines = [f"{name.split('.')[0]}/{name}.wav\n" for name in names]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}_filtered.txt").write_text("".join(lines))
        for name in names:
            pitch = 440.0 if hertz is None else hertz[name]
            sound(folder / "genres" / name.split(".")[0] / f"{name}.wav", hertz=pitch)
    return folder


def nsynth(folder: Path) -> Path:
    notes = {
        "train": [("bass_acoustic_000", "bass", 40), ("vocal_synthetic_001", "vocal", 127)],
        "valid": [("synth_lead_synthetic_000", "synth_lead", 0)],
        "test": [("flute_acoustic_002", "flute", 69), ("flute_acoustic_002", "flute", 70)],
    }
    for split, members in notes.items():
        part = folder / f"nsynth-{split}"
        table = {}
        for instrument, family, pitch in members:
            note = f"{instrument}-{pitch:03d}-100"
            table[note] = {
                "instrument_str": instrument,
                "instrument_family_str": family,
                "pitch": pitch,
                "velocity": 100,
                "sample_rate": RATE,
            }
            sound(part / "audio" / f"{note}.wav", seconds=4.0)
        (part / "examples.json").write_text(json.dumps(table))
    return folder


def magnatagatune(folder: Path, rows: Sequence[tuple[str, Mapping[str, int]]]) -> Path:
    """``rows`` holds mp3_path and tags; the table has more tags than the 50 that are asked for."""
    names = list(dict.fromkeys(tag for _, tags in rows for tag in tags))
    names += [f"rare {number}" for number in range(52 - len(names))]
    lines = [["clip_id", *names, "mp3_path"]]
    for number, (path, tags) in enumerate(rows):
        lines.append([str(number), *(str(tags.get(name, 0)) for name in names), path])
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join("\t".join(f'"{cell}"' for cell in line) for line in lines)
    (folder / "annotations_final.csv").write_text(text + "\n")
    return folder


def jamendo(folder: Path, rows: Mapping[str, Sequence[str]], *, subset: str = "genre") -> Path:
    """``rows`` holds lines of each split file, without the header."""
    splits = folder / "mtg-jamendo-dataset" / "data" / "splits" / "split-0"
    splits.mkdir(parents=True, exist_ok=True)
    for split, lines in rows.items():
        header = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n"
        path = splits / f"autotagging_{subset}-{split}.tsv"
        path.write_text(header + "".join(f"{line}\n" for line in lines))
        for line in lines:
            name = line.split("\t")[3].removesuffix(".mp3") + ".low.mp3"
            sound(folder / "audio-low" / name, seconds=float(line.split("\t")[4]))
    return folder


def vocalset(folder: Path, lists: Mapping[str, Sequence[str]], *, task: str) -> Path:
    for split, lines in lists.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}_{task}.txt").write_text("".join(f"{line}\n" for line in lines))
        for line in lines:
            sound(folder / "audio" / line, seconds=3.0)
    return folder


def emomusic(folder: Path, songs: Sequence[tuple[str, str, float, float]]) -> Path:
    """``songs`` holds artist, MediaEval's set, mean arousal and mean valence of songs 2, 3 ..."""
    (folder / "clips_45seconds").mkdir(parents=True, exist_ok=True)
    info = ["song_id,file_name,Artist,Song title,start of the segment (min.sec),Mediaeval 2013 set"]
    static = ["song_id,mean_arousal,std_arousal,mean_valence,std_valence"]
    for number, (artist, media_eval, arousal, valence) in enumerate(songs, start=2):
        info.append(f'{number},{number}.mp3,"\t{artist}",\tA title,1.05,{media_eval}')
        static.append(f"{number},{arousal},1.0,{valence},1.2")
    (folder / "songs_info.csv").write_text("\n".join(info) + "\n")
    (folder / "static_annotations.csv").write_text("\n".join(static) + "\n")
    return folder


def giantsteps(
    folder: Path, trained: Sequence[tuple[str, str, str, str]], tested: Mapping[str, str]
) -> Path:
    """``trained`` holds id, key, confidence and artists; ``tested`` the key of each id."""
    part = folder / "giantsteps-mtg-key-dataset-fd7b8c5"
    (part / "annotations").mkdir(parents=True)
    annotations = ["ID\tMANUAL KEY\tC", *(f"{name}\t{key}\t{c}" for name, key, c, _ in trained)]
    metadata = [
        "ID\tARTIST\tSONG TITLE",
        *(f"{name}\t{who}\tA song" for name, _, _, who in trained),
    ]
    (part / "annotations" / "annotations.txt").write_text("\n".join(annotations) + "\n")
    (part / "annotations" / "beatport_metadata.txt").write_text("\n".join(metadata) + "\n")
    for name, *_ in trained:
        sound(part / "audio" / f"{name}.LOFI.mp3")
    part = folder / "giantsteps-key-dataset"
    (part / "annotations" / "key").mkdir(parents=True)
    for name, key in tested.items():
        (part / "annotations" / "key" / f"{name}.LOFI.key").write_text(f"{key}\n")
        sound(part / "audio" / f"{name}.LOFI.mp3")
    return folder
