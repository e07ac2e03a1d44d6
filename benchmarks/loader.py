"""Crops per CPU second: our loader beside a bare libsndfile loop and what people do instead.

    OMP_NUM_THREADS=1 python benchmarks/loader.py [--tracks N] [--crops N] [--rounds N]

Demo music: tracks of four minutes at 24 kHz, as FLAC files and packed in clips of 30 s, as FLAC and
as PCM16. Crops of 5 s, the same for all ways but webdataset's. One process, nothing in parallel,
files in the page cache, ways in random order within each round, process CPU time, median over
rounds.
"""

import argparse
import io
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile
import webdataset

from etude.data.clip_format import EXTENSIONS, AudioFormat
from etude.data.demo.render import render_track
from etude.data.pipeline import training_batches
from etude.data.plan import BatchShare, CropPlan
from etude.data.prepare import PrepareSettings, prepare
from etude.data.shards import Corpus, Split

RATE, HOP, CROP = 24_000, 320, 120_000
TRACK_SECONDS = 240
MICRO_BATCH = 8

Way = Callable[[int], int]
"""Makes about so many crops and returns how many."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tracks", type=int, default=6)
    parser.add_argument("--crops", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        music = render(Path(folder), options.tracks)
        flac, pcm16 = (packed(Path(folder), music, kind) for kind in EXTENSIONS)
        measure(ways(flac, pcm16, music), options.crops, options.rounds)


def packed(folder: Path, music: Path, kind: AudioFormat) -> Corpus:
    settings = PrepareSettings(sample_rate=RATE, valid_fraction=0.0, shard_mb=16, audio_format=kind)
    corpus = prepare([music], folder / kind, settings, workers=0, say=lambda _: None)
    assert corpus is not None
    return corpus


def measure(ways: dict[str, Way], crops: int, rounds: int) -> None:
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name in random.sample(list(ways), len(ways)):
            start = time.process_time()
            made = ways[name](crops)
            if round_:  # the first warms up
                speeds[name].append(made / (time.process_time() - start))
    ours = statistics.median(speeds[next(iter(ways))])
    print(f"soundfile {soundfile.__version__} (libsndfile {soundfile.__libsndfile_version__}),")
    print(f"webdataset {webdataset.__version__}, {crops} crops of 5 s, {rounds} rounds")
    print("| way | crops per CPU second (min - max) | our loader is |")
    print("|---|---|---|")
    for name, values in speeds.items():
        median = statistics.median(values)
        span = f"{median:.1f} ({min(values):.1f} - {max(values):.1f})"
        print(f"| {name} | {span} | {ours / median:.2f} x |")


def planned(corpus: Corpus) -> CropPlan:
    return CropPlan(corpus.split("train"), crop_samples=CROP, hop_samples=HOP, seed=0)


def ways(flac: Corpus, pcm16: Corpus, music: Path) -> dict[str, Way]:
    split = flac.split("train")
    plan, sliced = planned(flac), planned(pcm16)
    whole = planned(replace(flac, blocks_sha256=None))
    files = sorted(music.glob("*.flac"))
    # What the bare loops decode is in memory before.
    audio = [split.read_audio_bytes(clip) for clip in range(len(split))]
    return {
        "our loader: crops out of shards": lambda crops: ours(plan, crops),
        "our loader: PCM16 shards": lambda crops: ours(sliced, crops),
        "our loader: FLAC shards of before there were blocks.npy": lambda crops: ours(whole, crops),
        "bare loop: libsndfile decodes the same crops": lambda crops: bare_crops(
            plan, audio, crops
        ),
        "bare loop: libsndfile decodes the whole clips": lambda crops: bare_clips(
            plan, audio, crops
        ),
        "whole track decoded for each crop": lambda crops: whole_tracks(plan, files, crops),
        "webdataset, whole clip decoded": lambda crops: stock(split, crops),
    }


def ours(plan: CropPlan, crops: int) -> int:
    share = BatchShare(MICRO_BATCH, MICRO_BATCH, 0, 1)
    batches = training_batches(plan, share, first_update=0, workers=0, pin_memory=False)
    return sum(len(batch.waveform) for batch in islice(batches, crops // MICRO_BATCH))


def bare_crops(plan: CropPlan, audio: list[bytes], crops: int) -> int:
    for position in range(crops):
        crop = plan.crop(position)
        with soundfile.SoundFile(io.BytesIO(audio[crop.clip])) as file:
            file.seek(crop.start)
            assert len(file.read(CROP, dtype="float32")) == CROP
    return crops


def bare_clips(plan: CropPlan, audio: list[bytes], crops: int) -> int:
    for position in range(crops):
        crop = plan.crop(position)
        samples, _ = soundfile.read(io.BytesIO(audio[crop.clip]), dtype="float32")
        assert len(samples[crop.start :][:CROP]) == CROP
    return crops


def whole_tracks(plan: CropPlan, files: list[Path], crops: int) -> int:
    """As fairseq's ``FileAudioDataset`` did: read the file, cut a crop out of it."""
    fewer = max(1, crops // 16)  # each costs as much as many of the others
    for position in range(fewer):
        track = plan.split.members[plan.crop(position).clip]["track"]
        samples, _ = soundfile.read(files[track], dtype="float32")
        assert len(samples[:CROP]) == CROP
    return fewer


def stock(split: Split, crops: int) -> int:
    """webdataset as its documentation has it: shuffle, decode the clip, cut, batch."""
    shards = [str(split.corpus.root / shard.file) for shard in split.corpus.shards]

    def cut(sample: dict[str, bytes]) -> np.ndarray:
        samples, _ = soundfile.read(io.BytesIO(sample["flac"]), dtype="float32")
        start = random.randrange(len(samples) - CROP + 1)
        return samples[start : start + CROP]

    data = webdataset.WebDataset(shards, shardshuffle=100, repeat=True).shuffle(1000).map(cut)
    batches = data.batched(MICRO_BATCH, collation_fn=np.stack)
    return sum(len(batch) for batch in islice(batches, crops // MICRO_BATCH))


def render(folder: Path, tracks: int) -> Path:
    music = folder / "music"
    music.mkdir()
    for index in range(tracks):
        rendered = render_track(index, seed=0, kind="mix", seconds=TRACK_SECONDS, sample_rate=RATE)
        mono = np.asarray(rendered.waveform).mean(axis=0, dtype=np.float32)
        soundfile.write(music / f"{index:03d}.flac", mono, RATE, subtype="PCM_16")
    return music


if __name__ == "__main__":
    main()
