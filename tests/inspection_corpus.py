"""A corpus made by hand, clip by clip, for what launch/prepare.py would never write."""

import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from audio_files import RATE, Samples

from etude.data.audio import encode, quantise
from etude.data.files import json_bytes
from etude.data.index import scan_shard, write_index
from etude.data.shards import Corpus, open_corpus
from etude.data.tar import add_member


@dataclass(frozen=True)
class Clip:
    key: str
    samples: Samples
    track: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def write_corpus(root: Path, shards: Mapping[str, Sequence[Clip]]) -> Corpus:
    """Shards by name; ``valid-…`` is held out."""
    root.mkdir(parents=True)
    scans = []
    for name, clips in shards.items():
        path = root / f"{name}.tar"
        with tarfile.open(path, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for clip in clips:
                facts = {
                    "track": clip.track or clip.key,
                    "source": f"{clip.track or clip.key}.flac",
                    "sample_rate": RATE,
                    "num_samples": len(clip.samples),
                    **clip.metadata,
                }
                audio = encode(quantise(clip.samples)[0], RATE)
                add_member(tar, f"{clip.key}.flac", audio)
                add_member(tar, f"{clip.key}.json", json_bytes(facts))
        scans.append(scan_shard(path, name.partition("-")[0], RATE))
    write_index(root, scans, sample_rate=RATE, clip_seconds=3.0)
    return open_corpus(root)


def damage(corpus: Corpus, split: str, clip: int, part: str = "audio") -> None:
    """Flips a bit in the middle of a member."""
    row = corpus.split(split).members[clip]
    path = corpus.root / corpus.shards[int(row["shard"])].file
    data = bytearray(path.read_bytes())
    data[int(row[f"{part}_offset"]) + int(row[f"{part}_size"]) // 2] ^= 1
    path.write_bytes(data)


def low_passed(samples: Samples, hertz: float) -> Samples:
    """Nothing at all above ``hertz``."""
    spectrum = np.fft.rfft(samples)
    spectrum[np.fft.rfftfreq(len(samples), 1 / RATE) > hertz] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def white(seconds: float, *, seed: int = 0, level: float = 0.1) -> Samples:
    """Noise with energy at every frequency."""
    random = np.random.default_rng(seed)
    return (level * random.standard_normal(round(seconds * RATE))).astype(np.float32)
