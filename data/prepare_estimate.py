"""How much audio there is and how much disk it will take, before the work begins.

The headers of about 200 files, the same ones each time, tell the seconds per byte of every kind of
file; sizes are known of all. A corpus is 16-bit mono: its size follows from the seconds.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from etude.data.durations import header_seconds
from etude.data.prepare_settings import PrepareSettings
from etude.data.prepare_start import WORK_NAME
from etude.data.sources import Source

_SAMPLE = 200
_FEWEST = 4
"""Files of the rarest kind that are looked at."""

_BYTES_PER_SECOND = 20_000.0
"""Of files whose headers tell nothing (wma, aac, ape): 160 kbit/s."""

FLAC_RATIO = 0.62
"""Bytes of the corpus' FLAC over those of its 16-bit samples: 0.58 (24 kHz) and 0.63 (16 kHz) for
the demo corpus. Recorded music lies around it, quiet and solo music far below."""


@final
@dataclass(frozen=True)
class Estimate:
    """What a corpus will be about like."""

    seconds: float
    """Of audio in all sources, skipped ones included."""
    corpus_bytes: float
    peak_bytes: float
    """While shards are written beside the work files that are released as they are done."""


def estimate(sources: Sequence[Source], settings: PrepareSettings, *, ranks: int = 1) -> Estimate:
    """From sizes and a sample of headers; each of ``ranks`` writes a shard at the same time."""
    seconds = estimate_seconds(sources)
    ratio = FLAC_RATIO if settings.audio_format == "flac" else 1.0
    corpus = seconds * settings.sample_rate * 2 * ratio
    return Estimate(seconds, corpus, corpus + min(ranks * settings.shard_mb * 1e6, corpus))


def estimate_seconds(sources: Sequence[Source]) -> float:
    """Seconds of audio in all these files."""
    total = sum(source.size for source in sources)
    kinds: dict[str, list[Source]] = {}
    for source in sources:
        if source.size:
            kinds.setdefault(source.path.suffix.lower(), []).append(source)
    seconds = 0.0
    for files in kinds.values():
        size = sum(source.size for source in files)
        looked_at = min(len(files), max(_FEWEST, round(_SAMPLE * size / total)))
        known_bytes = known_seconds = 0.0
        for number in range(looked_at):
            source = files[number * len(files) // looked_at]
            length = header_seconds(source.path)
            if length is not None:
                known_bytes += source.size
                known_seconds += length
        rate = known_bytes / known_seconds if known_seconds else _BYTES_PER_SECOND
        seconds += size / rate
    return seconds


def describe_estimate(expected: Estimate, out: Path) -> str:
    """One line; a second one that warns if the disk will not do."""
    free = shutil.disk_usage(out).free
    line = (
        f"about {_hours(expected.seconds)} of audio, {_size(expected.corpus_bytes)} for the "
        f"corpus; {_size(free)} free in {out}"
    )
    if free + _held(out) < expected.peak_bytes:
        line += (
            f"\nwarning: this will probably not fit: it takes about {_size(expected.peak_bytes)} "
            f"while shards are written. Make room or give another --out; should the disk run "
            f"full, the same command continues once there is room."
        )
    return line


def _held(out: Path) -> int:
    """Bytes that an interrupted run has already put there."""
    files = [*out.glob("*.tar"), *(out / WORK_NAME).glob("*.clips")]
    return sum(file.stat().st_size for file in files)


def _hours(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.0f} h" if seconds >= 36000 else f"{seconds / 3600:.1f} h"


def _size(size: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 1e6:.0f} MB"
