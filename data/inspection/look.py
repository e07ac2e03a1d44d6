"""A corpus looked at: what ``launch/inspect.py`` shows, without opinions on how.

    index     amounts, copies, tracks and audio on both sides of the split: all clips
    tracks    sources, artists, rates: JSON of a clip per track, for a quarter of the time
    clips     level, spectrum, bandwidth, silence, labels: a sample, for what time is left

Damaged clips are passed over, counted and named.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import final

from etude.data.audio import Samples, decode
from etude.data.errors import DataError
from etude.data.inspection.audio import ClipMeasures, SpectrumGrid, measure
from etude.data.inspection.index import (
    Copies,
    Leak,
    SplitAmounts,
    amounts,
    clip_name,
    copies,
    index_leaks,
    split_names,
)
from etude.data.inspection.labels import LabelUsage, Listener
from etude.data.inspection.sample import spread
from etude.data.inspection.tracks import Damage, TrackFacts, read_tracks
from etude.data.shards import Corpus, Split

_TRACKS_SHARE = 0.25
"""Of the time, for reading tracks' JSON."""


@final
@dataclass(frozen=True)
class SplitSample:
    """The clips of a split that were looked at."""

    name: str
    chosen: int
    """Clips that were to be looked at; fewer were if time ran out."""
    clips: tuple[str, ...]
    """Names of those that were measured."""
    measures: tuple[ClipMeasures, ...]
    damaged: int
    """Clips that could not be measured."""

    @property
    def looked_at(self) -> int:
        """Clips that were opened."""
        return len(self.measures) + self.damaged


@final
@dataclass(frozen=True)
class Inspection:
    """Everything that was found."""

    corpus: Corpus
    grid: SpectrumGrid
    splits: tuple[SplitAmounts, ...]
    samples: tuple[SplitSample, ...]
    """In the order of ``splits``."""
    tracks: TrackFacts
    copies: Copies
    leaks: tuple[Leak, ...]
    labels: tuple[LabelUsage, ...]
    damages: tuple[Damage, ...]
    seconds: float
    """The time that looking was given."""

    @property
    def out_of_time(self) -> bool:
        """Whether clips were left out for it."""
        return any(sample.looked_at < sample.chosen for sample in self.samples)


def inspect_corpus(
    corpus: Corpus,
    *,
    clips: int,
    seconds: float,
    listeners: Sequence[Listener] = (),
    advance: Callable[[], None] = lambda: None,
) -> Inspection:
    """Looks at a corpus.

    :param clips: of each split, at most.
    :param seconds: for reading; at least one clip of each split is looked at.
    :param listeners: count labels of the clips as they are heard.
    :param advance: is called after every clip.
    """
    started = time.monotonic()
    names = split_names(corpus)
    facts = read_tracks(corpus, seconds=_TRACKS_SHARE * seconds)
    grid = SpectrumGrid(corpus.sample_rate)
    rows = {name: _Rows(corpus.split(name), grid, listeners) for name in names}
    chosen = {name: spread(len(rows[name].split), clips) for name in names}
    # Side by side, so that time which runs out is missing in all splits.
    for turn in zip_longest(*chosen.values()):
        for name, clip in zip(names, turn, strict=True):
            if clip is not None:
                rows[name].look(clip)
                advance()
        if time.monotonic() - started > seconds:
            break
    heard = [damage for name in names for damage in rows[name].damages]
    return Inspection(
        corpus=corpus,
        grid=grid,
        splits=tuple(amounts(corpus, name) for name in names),
        samples=tuple(rows[name].sample(len(chosen[name])) for name in names),
        tracks=facts,
        copies=copies(corpus),
        leaks=(*index_leaks(corpus), *facts.leaks()),
        labels=tuple(usage for listener in listeners for usage in listener.usage()),
        damages=tuple(dict.fromkeys([*heard, *facts.damages])),
        seconds=seconds,
    )


@final
class _Rows:
    """One split while its clips are looked at."""

    def __init__(self, split: Split, grid: SpectrumGrid, listeners: Sequence[Listener]) -> None:
        self.split = split
        self.damages: list[Damage] = []
        self._grid = grid
        self._listeners = listeners
        self._measured: dict[int, ClipMeasures] = {}
        self._damaged = 0

    def look(self, clip: int) -> None:
        try:
            samples = self._read(clip)
        except DataError as error:
            self._damaged += 1
            self._note(clip, error)
            return
        self._measured[clip] = measure(samples, self._grid)
        for listener in self._listeners:
            try:
                listener.hear(self.split, clip, samples)
            except DataError as error:
                self._note(clip, error)

    def sample(self, chosen: int) -> SplitSample:
        ordered = sorted(self._measured)
        return SplitSample(
            name=self.split.name,
            chosen=chosen,
            clips=tuple(self._name(clip) for clip in ordered),
            measures=tuple(self._measured[clip] for clip in ordered),
            damaged=self._damaged,
        )

    def _read(self, clip: int) -> Samples:
        samples, rate = decode(self.split.read_audio_bytes(clip))
        if rate != self._grid.sample_rate or not len(samples):
            raise DataError(
                f"{len(samples)} samples at {rate} Hz, in a corpus of {self._grid.sample_rate} Hz."
            )
        return samples

    def _name(self, clip: int) -> str:
        return clip_name(self.split, clip)

    def _note(self, clip: int, error: DataError) -> None:
        self.damages.append(Damage(self._name(clip), str(error)))
