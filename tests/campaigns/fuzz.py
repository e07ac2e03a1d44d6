"""Readers are given mutated files for a while: each must answer, soon, or refuse in its own words.

    python tests/campaigns/fuzz.py [--seconds 600] [--seed S]

Mutations of real files: bytes flipped, cut, doubled, moved, numbers made odd, words of other files
put in. Readers: configurations, a corpus' index and members, shards, a checkpoint's manifest,
k-means files, containers of audio. A mistake is an exception that is not the project's own, more
than two seconds for one file, or more than 512 MB for a reader. What was found stays as a test
beside its reader. Blind mutation, not guided by coverage.
"""

import argparse
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from etude.data.containers.headers import read_promise
from etude.data.durations import header_seconds
from etude.data.errors import DataError, InputError
from etude.data.index import scan_shard
from etude.data.shards import check_blocks, check_members, parse_index
from etude.pretrain.checkpoint import find_damage
from etude.pretrain.config_file import load_config
from etude.pretrain.distributed import complete_environment
from etude.pretrain.errors import ConfigError
from etude.pretrain.quantizer import load_quantizer, save_quantizer

sys.path[:0] = [str(Path(__file__).parents[1])]
from campaigns.checkpoint_faults import Saver  # noqa: E402
from campaigns.tiny_runs import ROOT, make_corpus  # noqa: E402
from training_parts import small_quantizer  # noqa: E402

OURS = (ConfigError, DataError, InputError)
MOST_SECONDS, MOST_MEGABYTES = 2.0, 512.0
LARGEST = 1 << 18
"""Bytes of a file that are mutated: more would only be slower."""
ODD = (b"-1", b"0", b"1e999", b"NaN", b"null", b"[]", b"{}", b"18446744073709551616", b'"', b"\x00")


@dataclass(frozen=True)
class Case:
    """A file that is mutated where a reader finds it."""

    name: str
    path: Path
    read: Callable[[], object]
    seed: bytes


@dataclass
class Tally:
    """What a campaign saw."""

    read: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    mistakes: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    complete_environment()
    with tempfile.TemporaryDirectory() as name:
        tally = fuzz(make_cases(Path(name)), options.seconds, random.Random(options.seed))
    for name in sorted(tally.read | tally.refused):
        print(f"{name}: {tally.read[name]} read, {tally.refused[name]} refused")
    for mistake in tally.mistakes:
        print(mistake)
    files = tally.read.total() + tally.refused.total()
    print(f"{files} files, the slowest {tally.slowest:.2f} s, {len(tally.mistakes)} mistakes")
    return 1 if tally.mistakes else 0


def fuzz(cases: list[Case], seconds: float, generator: random.Random) -> Tally:
    tally = Tally()
    words = [case.seed[:LARGEST] for case in cases]
    end = time.monotonic() + seconds
    memory = peak_megabytes()
    while time.monotonic() < end and len(tally.mistakes) < 20:
        case = generator.choice(cases)
        content = case.seed
        for _ in range(generator.choice([1, 1, 2, 4, 16])):
            content = mutated(content, words, generator)
        case.path.write_bytes(content)
        began = time.monotonic()
        try:
            case.read()
            tally.read[case.name] += 1
        except OURS:
            tally.refused[case.name] += 1
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            kept = case.path.with_name(f"mistake-{len(tally.mistakes)}")
            tally.mistakes.append(f"{case.name}: {error!r} for {content[:200]!r} ({kept.name})")
        took = time.monotonic() - began
        tally.slowest = max(tally.slowest, took)
        if took > MOST_SECONDS:
            tally.mistakes.append(f"{case.name}: {took:.1f} s for {content[:200]!r}")
        if peak_megabytes() > memory + MOST_MEGABYTES:
            tally.mistakes.append(f"{case.name}: {peak_megabytes() - memory:.0f} MB more")
            memory = peak_megabytes()
    return tally


def mutated(content: bytes, words: list[bytes], generator: random.Random) -> bytes:
    """``content`` changed in one place."""
    at = (
        generator.randrange(len(content) + 1)
        if generator.random() < 0.5
        else near_start(content, generator)
    )
    size = generator.choice([1, 1, 2, 4, 8, 64, 512])
    piece = content[at : at + size]
    match generator.randrange(7):
        case 0:  # a bit
            byte = bytes([(piece[0] if piece else 0) ^ 1 << generator.randrange(8)])
            return content[:at] + byte + content[at + 1 :]
        case 1:  # cut short
            return content[:at]
        case 2:  # a piece is gone
            return content[:at] + content[at + size :]
        case 3:  # twice
            return content[:at] + piece + content[at:]
        case 4:  # something odd
            odd = generator.choice(ODD)
            return content[:at] + odd + content[at + generator.choice([0, len(odd)]) :]
        case 5:  # of another file
            other = generator.choice(words)
            start = generator.randrange(len(other) + 1)
            return content[:at] + other[start : start + size] + content[at + size :]
        case _:  # random bytes
            return content[:at] + generator.randbytes(size) + content[at + size :]


def near_start(content: bytes, generator: random.Random) -> int:
    """Headers are where most is decided."""
    return generator.randrange(min(len(content), 1024) + 1)


def make_cases(folder: Path) -> list[Case]:
    corpus = make_corpus(folder)
    opened = parse_index((corpus / "index.json").read_bytes(), corpus)
    shard = folder / "shard.tar"
    shutil.copyfile(corpus / opened.shards[-1].file, shard)
    config = folder / "quickstart.yaml"
    shutil.copyfile(ROOT / "configs" / "quickstart.yaml", config)
    centroids = folder / "kmeans.safetensors"
    save_quantizer(small_quantizer(), centroids, report={})
    checkpoint = Saver(folder).save(folder / "checkpoints", 10)
    cases = [
        case("configuration", config, lambda: load_config(config, [])),
        case(
            "index.json",
            corpus / "index.json",
            lambda: parse_index((corpus / "index.json").read_bytes(), corpus),
        ),
        case("members.npy", corpus / "members.npy", lambda: check_members(opened)),
        case("blocks.npy", corpus / "blocks.npy", lambda: check_blocks(opened)),
        case("shard", shard, lambda: scan_shard(shard, "train", 16_000)),
        case("k-means file", centroids, lambda: load_quantizer(centroids)),
        case("manifest.json", checkpoint / "manifest.json", lambda: find_damage(checkpoint)),
    ]
    kinds = {path.suffix: path for path in sorted((folder / "music").rglob("*.*"))}
    for suffix, music in kinds.items():
        if suffix != ".json":
            cases.append(case(f"audio {suffix}", music, lambda music=music: headers(music)))
    return cases


def case(name: str, path: Path, read: Callable[[], object]) -> Case:
    return Case(name, path, read, path.read_bytes()[:LARGEST])


def headers(music: Path) -> None:
    header_seconds(music)
    with music.open("rb") as file:
        read_promise(file, music.stat().st_size)


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
