"""Builds ``index.json`` and the arrays beside it from the tars; verifies a corpus against them.

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

from etude.data.blocks import BLOCKS_NAME, block_checksums
from etude.data.clip_format import EXTENSIONS, PCM16_HEADER, AudioFormat, pcm16_header
from etude.data.errors import DataError
from etude.data.files import file_sha256, json_bytes, write_bytes
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
    blocks: npt.NDArray[np.uint32]
    """Checksums of the blocks of all audio members."""
    tracks: tuple[str, ...]
    licences: Counter[str | None]
    """Samples of audio per licence in the clips' metadata; None for those without one."""


def scan_shard(
    path: Path, split: str, sample_rate: int, audio_format: AudioFormat = "flac"
) -> ShardScan:
    """Walks one shard strictly; a :class:`DataError` names the member that is wrong."""
    digest = hashlib.sha256()
    rows: list[tuple[int, ...]] = []
    blocks: list[int] = []
    tracks: list[str] = []
    licences: Counter[str | None] = Counter()
    pairs = walk_pairs(path, digest.update, audio_extension=EXTENSIONS[audio_format])
    for pair in pairs:
        num_samples, track, licence = _check_sample(path, pair, sample_rate, audio_format)
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
        blocks += block_checksums(audio.content)
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
    checksums = np.array(blocks, dtype=np.uint32)
    return ShardScan(shard, members, checksums, tuple(tracks), licences)


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
    root: Path,
    scans: Iterable[ShardScan],
    *,
    sample_rate: int,
    clip_seconds: float,
    audio_format: AudioFormat = "flac",
) -> None:
    """Writes the arrays and last ``index.json``: a corpus that has it is complete."""
    ordered = sorted(scans, key=lambda scan: (scan.shard.split, scan.shard.file))
    shards = tuple(scan.shard for scan in ordered)
    members = np.concatenate([scan.members for scan in ordered])
    members["shard"] = np.repeat(np.arange(len(shards)), [shard.samples for shard in shards])
    numbers: dict[str, int] = {}
    tracks = (track for scan in ordered for track in scan.tracks)
    members["track"] = [numbers.setdefault(track, len(numbers)) for track in tracks]
    _write_array(root / MEMBERS_NAME, members)
    _write_array(root / BLOCKS_NAME, np.concatenate([scan.blocks for scan in ordered]))
    content: dict[str, Any] = {
        "format": FORMAT,
        "sample_rate": sample_rate,
        "audio_format": audio_format,
        "clip_seconds": float(clip_seconds),
        "samples": len(members),
        "tracks": len(numbers),
        "seconds": sum(shard.seconds for shard in shards),
        "fingerprint": fingerprint(sample_rate, shards, members.tobytes()),
        "blocks_sha256": file_sha256(root / BLOCKS_NAME),
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
        scan = scan_shard(root / shard.file, shard.split, corpus.sample_rate, corpus.audio_format)
        if scan.shard != shard:
            raise DataError(
                f"{root / shard.file}: its content (sha256 {scan.shard.sha256[:12]}) is not the "
                f"one in {INDEX_NAME} "
                f"({shard.sha256[:12]}). Copy the shard again from where it was made."
            )
        scans.append(scan)
        progress(f"{shard.file}: {shard.samples} clips, as indexed")
    if corpus.blocks_sha256 is not None:
        blocks = np.concatenate([scan.blocks for scan in scans])
        if not np.array_equal(blocks, np.load(root / BLOCKS_NAME)):
            raise DataError(
                f"{root / BLOCKS_NAME}: its checksums are not those of the clips. Copy it again "
                f"from where the corpus was made."
            )
    if seconds_per_licence(scans, corpus.sample_rate) != corpus.licences:
        raise DataError(
            f"{root / INDEX_NAME}: its seconds per licence are not those of the clips. Copy it "
            f"again from where the corpus was made."
        )
    return corpus


def _write_array(path: Path, array: npt.NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(path, buffer.getvalue())


def _flac_header(content: bytes) -> dict[str, int] | None:
    head = content[:_STREAMINFO_END]
    if len(head) < _STREAMINFO_END or head[:4] != b"fLaC":
        return None
    packed = int.from_bytes(head[18:26], "big")
    return {
        "sample_rate": packed >> 44,
        "channels": (packed >> 41 & 7) + 1,
        "bits": (packed >> 36 & 31) + 1,
        "num_samples": packed & (1 << 36) - 1,
    }


def _pcm16_header(content: bytes) -> dict[str, int] | None:
    num_samples, odd = divmod(len(content) - PCM16_HEADER, 2)
    sample_rate = int.from_bytes(content[24:28], "little")
    if num_samples < 0 or odd or sample_rate >= 1 << 31:
        return None
    # Samples are found by their number alone, so nothing but samples may follow, and all of them.
    if content[:PCM16_HEADER] != pcm16_header(num_samples, sample_rate):
        return None
    return {"sample_rate": sample_rate, "channels": 1, "bits": 16, "num_samples": num_samples}


def _check_sample(
    path: Path, pair: Pair, sample_rate: int, audio_format: AudioFormat
) -> tuple[int, str, str | None]:
    """Length, track and licence of a sample, after comparing its audio's header with its JSON."""
    read_header = _flac_header if audio_format == "flac" else _pcm16_header
    found = read_header(pair.audio.content)
    if found is None:
        kind = "a FLAC file" if audio_format == "flac" else "a WAV file of 16-bit mono PCM alone"
        raise DataError(
            f"{path}: member {pair.audio.name} is not {kind}. Prepare the corpus again."
        )
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
