"""What clips' JSON tells: source files, artists and rates, read of one clip per track.

Held-out tracks come first, then those of train in an order of which every beginning is spread over
the split, so that time which runs out costs as little as it can.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

import numpy as np

from etude.data.errors import DataError
from etude.data.inspection.index import EXAMPLES, TRAIN, Leak, clip_name, split_names
from etude.data.inspection.sample import spread
from etude.data.shards import Corpus, Split


@final
@dataclass(frozen=True)
class Damage:
    """A clip that could not be used."""

    clip: str
    problem: str


@final
@dataclass(frozen=True)
class _Track:
    split: Split
    clip: int
    source: str | None
    artist: str | None


@final
@dataclass
class TrackFacts:
    """What the tracks' JSON says."""

    total: Mapping[str, int]
    """Tracks per split."""
    source_rates: dict[str, Counter[int]] = field(default_factory=dict)
    """Tracks per rate of the file they come from (Hz), per split."""
    damages: list[Damage] = field(default_factory=list)
    tracks: dict[str, list[_Track]] = field(default_factory=dict)

    @property
    def read(self) -> dict[str, int]:
        """Tracks whose JSON was read, per split."""
        return {name: len(tracks) for name, tracks in self.tracks.items()}

    def leaks(self) -> list[Leak]:
        """Sources and artists of held-out tracks that train has as well."""
        train = self.tracks[TRAIN] if TRAIN in self.tracks else []
        held_out = [t for name, tracks in self.tracks.items() if name != TRAIN for t in tracks]
        if not train or not held_out:
            return []
        return [
            _leak("source", held_out, {track.source for track in train}),
            _leak("artist", held_out, {track.artist for track in train}),
        ]


def read_tracks(corpus: Corpus, *, seconds: float) -> TrackFacts:
    """Reads the JSON of the first clip of every track, for so long; at least one per split."""
    started = time.monotonic()
    firsts = {
        name: np.unique(corpus.split(name).members["track"], return_index=True)[1]
        for name in split_names(corpus)
    }
    facts = TrackFacts({name: len(first) for name, first in firsts.items()})
    for name in reversed(firsts):
        split = corpus.split(name)
        rates = facts.source_rates.setdefault(name, Counter())
        tracks = facts.tracks.setdefault(name, [])
        for number in spread(len(firsts[name]), len(firsts[name])):
            clip = int(firsts[name][number])
            try:
                metadata = _object(split.read_metadata(clip))
            except (DataError, ValueError) as error:
                facts.damages.append(Damage(clip_name(split, clip), str(error)))
            else:
                rate = metadata.get("source_sample_rate")
                if isinstance(rate, int):
                    rates[rate] += 1
                source, artist = _text(metadata.get("source")), _artist(metadata)
                tracks.append(_Track(split, clip, source, artist))
            if time.monotonic() - started > seconds:
                break
    return facts


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"its JSON is a {type(value).__name__}, not an object")
    return value


def _artist(metadata: dict[str, Any]) -> str | None:
    """From the clip's own tags, or those labels that a user put beside the file."""
    for place in (metadata, metadata.get("metadata"), metadata.get("labels")):
        if isinstance(place, dict) and (artist := _text(place.get("artist"))):
            return artist.casefold()
    return None


def _text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _leak(
    kind: Literal["source", "artist"], held_out: list[_Track], train: set[str | None]
) -> Leak:
    told = [(t, t.source if kind == "source" else t.artist) for t in held_out]
    told = [(track, value) for track, value in told if value is not None]
    found = [(track, value) for track, value in told if value in train]
    names = (f"{clip_name(t.split, t.clip)} ({value})" for t, value in found[:EXAMPLES])
    return Leak(kind, "tracks", len(found), len(told), tuple(names))
