"""Stereo files to mono at a corpus' rate: our ways beside bare loops that check nothing.

    OMP_NUM_THREADS=1 python benchmarks/stereo.py [--tracks N] [--rounds N]

Demo music: tracks of four minutes, 44.1 kHz stereo FLAC, to 24 kHz mono. `mono_blocks` is what
`launch/embed.py` hears (soxr VHQ, float32), `pack_track` what `launch/prepare.py` does with a file
(soxr HQ, 16 bit, PCM16 clips in a file). Both check what the container promises, the MD5 of FLAC
and that all samples are finite; bare loops decode, downmix and resample. One process, files in the
page cache, ways in random order within each round, process CPU time, median over rounds.
"""

import argparse
import hashlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import soxr

from etude.data.demo.render import render_track
from etude.data.mono_stream import mono_blocks
from etude.data.prepare_track import TrackSettings, pack_track
from etude.data.sources import Source, scan_sources

RATE, WANTED, SECONDS = 44_100, 24_000, 240
BLOCK = 1 << 18

Way = Callable[[Source], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tracks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        music, work = Path(folder) / "music", Path(folder) / "work"
        work.mkdir()
        render(music, options.tracks)
        sources = scan_sources([music], outside=work).sources
        settings = TrackSettings(WANTED, 30.0, 5.0, audio_format="pcm16")
        pack = partial(pack_track, settings=settings, work=work)
        trusting = replace(settings, flac_md5=False)
        measure(
            {
                "bare loop, VHQ": (partial(bare, quality="VHQ"), sources),
                "bare loop with FLAC's MD5, VHQ": (partial(bare, quality="VHQ", md5=True), sources),
                "mono_blocks, VHQ": (heard, sources),
                "mono_blocks without the MD5, VHQ": (partial(heard, flac_md5=False), sources),
                "bare loop, HQ": (partial(bare, quality="HQ", rounded=True), sources),
                "pack_track, HQ": (lambda source: None if pack(source) else None, sources),
                "pack_track --skip-flac-md5, HQ": (
                    lambda source: None if pack(source, settings=trusting) else None,
                    sources,
                ),
            },
            options.rounds,
        )


def measure(ways: dict[str, tuple[Way, tuple[Source, ...]]], rounds: int) -> None:
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name in random.sample(list(ways), len(ways)):
            way, sources = ways[name]
            start = time.process_time()
            for source in sources:
                way(source)
            if round_:  # the first warms up
                speeds[name].append(SECONDS * len(sources) / (time.process_time() - start))
    print(f"soundfile {soundfile.__version__} (libsndfile {soundfile.__libsndfile_version__}),")
    print(f"soxr {soxr.__version__}, {rounds} rounds")
    print("| way | seconds of audio per CPU second (min - max) | of its bare loop |")
    print("|---|---|---|")
    for name, values in speeds.items():
        if name.startswith("bare loop, "):
            bare_median = statistics.median(values)
        median = statistics.median(values)
        span = f"{median:.0f} ({min(values):.0f} - {max(values):.0f})"
        print(f"| {name} | {span} | {median / bare_median:.2f} |")


def heard(source: Source, *, flac_md5: bool = True) -> None:
    blocks = mono_blocks(source, WANTED, flac_md5=flac_md5)
    assert sum(len(block) for block in blocks) == SECONDS * WANTED


def bare(source: Source, *, quality: str, md5: bool = False, rounded: bool = False) -> None:
    stream = soxr.ResampleStream(RATE, WANTED, 1, dtype="float32", quality=quality)
    digest = hashlib.md5(usedforsecurity=False)
    samples = 0
    with soundfile.SoundFile(source.path) as file:
        for number in range(0, file.frames, BLOCK):
            if md5:
                whole = file.read(BLOCK, dtype="int16")
                digest.update(whole.data)
                frames = whole.astype(np.float32) * np.float32(1 / 32768)
            else:
                frames = file.read(BLOCK, dtype="float32")
            mono = 0.5 * (frames[:, 0] + frames[:, 1])
            last = number + BLOCK >= file.frames
            resampled = stream.resample_chunk(mono, last=last)
            if rounded:
                resampled = np.clip(np.rint(resampled * 32768), -32768, 32767).astype(np.int16)
            samples += len(resampled)
    assert samples == SECONDS * WANTED


def render(music: Path, tracks: int) -> None:
    music.mkdir()
    for index in range(tracks):
        track = render_track(index, seed=0, kind="mix", seconds=SECONDS, sample_rate=RATE)
        path = music / f"{index:03d}.flac"
        soundfile.write(path, np.asarray(track.waveform).T, RATE, subtype="PCM_16")


if __name__ == "__main__":
    main()
