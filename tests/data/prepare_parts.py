"""What the tests of preparing share: a small mixed collection, and ways to look at a corpus."""

import json
from pathlib import Path

import soundfile
from audio_files import RATE, tune, write

from etude.data.prepare_settings import PrepareSettings
from etude.data.shards import Corpus, open_corpus

SETTINGS = PrepareSettings(clip_seconds=4, min_seconds=2, shard_mb=0.5)
QUIET = {"workers": 0, "say": lambda message: None}


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a corpus, except the note of when its sources were written."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != ".prepare.json"
    }


def clips(corpus: Corpus) -> list[tuple[str, dict]]:
    """(split, JSON) of every clip."""
    return [
        (name, corpus.split(name).read_metadata(clip))
        for name in sorted({shard.split for shard in corpus.shards})
        for clip in range(len(corpus.split(name)))
    ]


def split_of(corpus: Corpus) -> dict[str, str]:
    """Source name -> its split."""
    found: dict[str, str] = {}
    for split, metadata in clips(corpus):
        assert found.setdefault(metadata["source"], split) == split
    return found


def tagged(path: Path, seconds: float, *, seed: int, **tags: str) -> Path:
    """Audio with tags inside, in the format of the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    container = path.suffix[1:].upper().replace("OPUS", "OGG")
    subtype = "OPUS" if path.suffix == ".opus" else None
    with soundfile.SoundFile(path, "w", RATE, 1, format=container, subtype=subtype) as file:
        for name, value in tags.items():
            setattr(file, name, value)
        file.write(tune(seconds, seed=seed))
    return path


def collection(folder: Path, count: int = 6) -> Path:
    """Audio of several kinds, one copy, one that is too short, one with labels."""
    kinds = (".flac", ".wav", ".ogg", ".mp3")
    for number in range(count):
        write(folder / f"song {number}{kinds[number % 4]}", tune(5 + 1.5 * number, seed=number))
    (folder / "song 0.json").write_text(json.dumps({"tempo": 120}), encoding="utf-8")
    write(folder / "song 0 again.wav", tune(5, seed=0))
    write(folder / "short.wav", tune(1, seed=90))
    return folder


def edited_index(corpus: Corpus, **changes: object) -> Corpus:
    """Opens the corpus again, with these keys of its index changed."""
    path = corpus.root / "index.json"
    index = json.loads(path.read_bytes())
    path.write_text(json.dumps(index | changes), encoding="utf-8")
    return open_corpus(corpus.root)
