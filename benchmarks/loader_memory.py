"""What the loader keeps: memory over many reads, and time and memory of opening a large index.

    OMP_NUM_THREADS=1 python benchmarks/loader_memory.py CORPUS [--reads N] [--clips N]

Reads crops of half a second of CORPUS through the whole loader in this process. The large index is
made on the spot: random rows, and shards that are empty files of the right size.
"""

import argparse
import gc
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np

from etude.data.files import json_bytes
from etude.data.pipeline import training_batches
from etude.data.plan import BatchShare, CropPlan
from etude.data.shards import FORMAT, MEMBER, Shard, fingerprint, open_corpus

RATE, HOP = 24_000, 320
CLIPS_PER_SHARD, CLIP_BYTES = 250, 800_000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--reads", type=int, default=100_000)
    parser.add_argument("--clips", type=int, default=1_000_000)
    options = parser.parse_args()
    print("| reads | resident MB |")
    print("|---|---|")
    alone(reads, options.corpus, options.reads)
    with tempfile.TemporaryDirectory() as folder:
        make_index(Path(folder), options.clips)
        alone(start, Path(folder))


def alone(work: Callable[..., None], *arguments: object) -> None:
    """Runs in a process of its own, so that nothing else is counted."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def reads(root: Path, count: int) -> None:
    corpus = open_corpus(root)
    plan = CropPlan(
        corpus.split("train"), crop_samples=corpus.sample_rate // 2, hop_samples=HOP, seed=0
    )
    batches = training_batches(
        plan, BatchShare(10, 10, 0, 1), first_update=0, workers=0, pin_memory=False
    )
    print(f"| 0 | {resident():.1f} |", flush=True)
    for done in range(count // 10, count + 1, count // 10):
        for _ in islice(batches, count // 100):
            pass
        gc.collect()
        print(f"| {done:,} | {resident():.1f} |", flush=True)


def start(root: Path) -> None:
    before, clock = resident(), time.perf_counter()
    corpus = open_corpus(root)
    opened = time.perf_counter()
    plan = CropPlan(corpus.split("train"), crop_samples=5 * RATE, hop_samples=HOP, seed=0)
    plan.crop(0)
    ready = time.perf_counter()
    print(
        f"index of {len(plan.clips):,} clips in {len(corpus.shards):,} shards: opened and verified "
        f"in {opened - clock:.2f} s, first crop planned in {ready - opened:.2f} s, "
        f"{resident() - before:.0f} MB"
    )


def make_index(root: Path, clips: int) -> None:
    members = np.zeros(clips, MEMBER)
    random = np.random.default_rng(0)
    rows = np.arange(clips)
    members["shard"] = rows // CLIPS_PER_SHARD
    members["track"] = rows // 8
    members["audio_offset"] = rows % CLIPS_PER_SHARD * CLIP_BYTES
    members["audio_size"] = random.integers(CLIP_BYTES // 2, CLIP_BYTES, clips)
    members["audio_crc32"] = random.integers(0, 1 << 32, clips)
    members["num_samples"] = 30 * RATE
    shards = []
    for first in range(0, clips, CLIPS_PER_SHARD):
        file = f"train-{len(shards):06d}.tar"
        count, size = min(CLIPS_PER_SHARD, clips - first), CLIPS_PER_SHARD * CLIP_BYTES
        with (root / file).open("wb") as shard:
            shard.truncate(size)
        shards.append(Shard(file, "train", count, 30.0 * count, size, f"{len(shards):064x}"))
    np.save(root / "members.npy", members)
    content = {
        "format": FORMAT,
        "sample_rate": RATE,
        "clip_seconds": 30.0,
        "fingerprint": fingerprint(RATE, tuple(shards), members.tobytes()),
        "shards": [asdict(shard) for shard in shards],
    }
    (root / "index.json").write_bytes(json_bytes(content))


def resident() -> float:
    """This process' resident memory in 10^6 bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    main()
