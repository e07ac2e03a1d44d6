"""Builds ``index.json`` and ``members.npy`` from the tars, and verifies a corpus against them.

The index says what a reader will find, so it is read back from the finished shards rather than
remembered by the code that wrote them: whatever went wrong on the way to the disk is found here and
not in the third week of training.
"""

import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from etude.data.errors import DataError
from etude.data.files import json_bytes, write_bytes
from etude.data.metadata import licence_of
from etude.data.shards import (
    FORMAT,
    INDEX_NAME,
    MEMBER,
    MEMBERS_NAME,
    Corpus,
    Shard,
    fingerprint,
    open_corpus,
)
from etude.data.tar import Pair, walk_pairs

_STREAMINFO_END = 26
"""Bytes of a FLAC file up to and including its rate, channels, width and length."""

UNKNOWN_LICENCE = "unknown"
"""Stands in the index for the clips without a licence, where others have one."""


@final
@dataclass(frozen=True)
class ShardScan:
    """What a walk over one shard found; ``members`` has neither shard nor track numbers yet."""

    shard: Shard
    members: npt.NDArray[np.void]
    tracks: tuple[str, ...]
    licences: Counter[str | None]
    """Samples of audio per licence in the clips' metadata; None for those without one."""


def scan_shard(path: Path, split: str, sample_rate: int) -> ShardScan:
    """Walks one shard strictly; a :class:`DataError` names the member that is wrong."""
    digest = hashlib.sha256()
    rows: list[tuple[int, ...]] = []
    tracks: list[str] = []
    licences: Counter[str | None] = Counter()
    for pair in walk_pairs(path, digest.update):
        num_samples, track, licence = _check_sample(path, pair, sample_rate)
        audio, metadata = pair.audio, pair.metadata
        rows.append(
            (
                -1,
                -1,
                audio.offset,
                audio.size,
                zlib.crc32(audio.content),
                metadata.offset,
                metadata.size,
                zlib.crc32(metadata.content),
                num_samples,
            )
        )
        tracks.append(track)
        licences[licence] += num_samples
    members = np.array(rows, dtype=MEMBER)
    shard = Shard(
        file=path.name,
        split=split,
        samples=len(rows),
        seconds=int(members["num_samples"].sum()) / sample_rate,
        bytes=path.stat().st_size,
        sha256=digest.hexdigest(),
    )
    return ShardScan(shard, members, tuple(tracks), licences)


def seconds_per_licence(scans: Sequence[ShardScan], sample_rate: int) -> dict[str, float]:
    """Seconds of audio per licence, by name; empty where no clip has one.

    Clips without one count under :data:`UNKNOWN_LICENCE`.
    """
    samples = sum((scan.licences for scan in scans), Counter[str | None]())
    if not any(samples):
        return {}
    named: Counter[str] = Counter()
    for licence, number in samples.items():
        named[licence or UNKNOWN_LICENCE] += number
    return {name: named[name] / sample_rate for name in sorted(named)}


def write_index(
    root: Path, scans: Iterable[ShardScan], *, sample_rate: int, clip_seconds: float
) -> None:
    """Writes ``members.npy`` and last ``index.json``: a corpus that has it is complete."""
    ordered = sorted(scans, key=lambda scan: (scan.shard.split, scan.shard.file))
    shards = tuple(scan.shard for scan in ordered)
    members = np.concatenate([scan.members for scan in ordered])
    members["shard"] = np.repeat(np.arange(len(shards)), [shard.samples for shard in shards])
    numbers: dict[str, int] = {}
    tracks = (track for scan in ordered for track in scan.tracks)
    members["track"] = [numbers.setdefault(track, len(numbers)) for track in tracks]
    buffer = io.BytesIO()
    np.save(buffer, members)
    write_bytes(root / MEMBERS_NAME, buffer.getvalue())
    content: dict[str, Any] = {
        "format": FORMAT,
        "sample_rate": sample_rate,
        "clip_seconds": float(clip_seconds),
        "samples": len(members),
        "tracks": len(numbers),
        "seconds": sum(shard.seconds for shard in shards),
        "fingerprint": fingerprint(sample_rate, shards, members.tobytes()),
        "shards": [asdict(shard) for shard in shards],
    }
    licences = seconds_per_licence(ordered, sample_rate)
    if licences:
        content["licences"] = licences
    write_bytes(root / INDEX_NAME, json_bytes(content))


def verify(root: Path, progress: Callable[[str], None] = lambda message: None) -> Corpus:
    """Reads every byte of a corpus and compares it with its index."""
    corpus = open_corpus(root)
    scans = []
    for shard in corpus.shards:
        scan = scan_shard(root / shard.file, shard.split, corpus.sample_rate)
        if scan.shard != shard:
            raise DataError(
                f"{root / shard.file}: its content (sha256 {scan.shard.sha256[:12]}) is not the "
                f"one in {INDEX_NAME} "
                f"({shard.sha256[:12]}). Copy the shard again from where it was made."
            )
        scans.append(scan)
        progress(f"{shard.file}: {shard.samples} clips, as indexed")
    if seconds_per_licence(scans, corpus.sample_rate) != corpus.licences:
        raise DataError(
            f"{root / INDEX_NAME}: its seconds per licence are not those of the clips. Copy it "
            f"again from where the corpus was made."
        )
    return corpus


def _check_sample(path: Path, pair: Pair, sample_rate: int) -> tuple[int, str, str | None]:
    """Length, track and licence of a sample, after comparing its FLAC header with its JSON."""
    flac = pair.audio.content[:_STREAMINFO_END]
    if len(flac) < _STREAMINFO_END or flac[:4] != b"fLaC":
        raise DataError(
            f"{path}: member {pair.audio.name} is not a FLAC file. Prepare the corpus again."
        )
    packed = int.from_bytes(flac[18:26], "big")
    found = {
        "sample_rate": packed >> 44,
        "channels": (packed >> 41 & 7) + 1,
        "bits": (packed >> 36 & 31) + 1,
        "num_samples": packed & (1 << 36) - 1,
    }
    try:
        metadata = json.loads(pair.metadata.content)
        said = {
            "sample_rate": int(metadata["sample_rate"]),
            "channels": 1,
            "bits": 16,
            "num_samples": int(metadata["num_samples"]),
        }
        track = str(metadata["track"])
        licence = licence_of(metadata.get("metadata"))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: member {pair.metadata.name} is not the JSON of a clip ({error!r}). Prepare "
            f"the corpus again."
        ) from error
    if found != said or found["sample_rate"] != sample_rate:
        raise DataError(
            f"{path}: member {pair.audio.name} is {found}, its JSON says {said} and the corpus "
            f"rate is {sample_rate}. "
            f"Prepare the corpus again."
        )
    return found["num_samples"], track, licence
