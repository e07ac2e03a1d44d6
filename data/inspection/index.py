"""What the index alone tells of a corpus: exact, over all clips, without reading any audio.

amounts    hours, clips, tracks, shards and lengths of a split
copies     clips whose audio is the same to the byte: equal checksum, size and length
leaks      tracks, and audio, that are in train and held out as well
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import numpy.typing as npt

from etude.data.errors import DataError
from etude.data.shards import Corpus, Split

TRAIN = "train"

EXAMPLES = 5
"""Clips that are named for each oddity."""


@final
@dataclass(frozen=True)
class SplitAmounts:
    """One split by the index."""

    name: str
    clips: int
    tracks: int
    shards: int
    hours: float
    bytes: int
    seconds: npt.NDArray[np.float64]
    """Length of every clip."""


@final
@dataclass(frozen=True)
class Copies:
    """Clips with the same audio."""

    groups: int
    """Different recordings that occur more than once."""
    extra_clips: int
    """Clips that could go without loss: all of each group but one."""
    groups_across_tracks: int
    """Of the groups, those found in several tracks: the others repeat within one."""
    examples: tuple[tuple[str, ...], ...]
    """Names of the clips of the largest groups, the first few of each."""


@final
@dataclass(frozen=True)
class Leak:
    """Something that train has and that is held out as well."""

    kind: Literal["track", "audio", "source", "artist"]
    basis: Literal["index", "tracks"]
    """All clips by the index, or those tracks whose JSON was read."""
    found: int
    held_out: int
    """Of so many held-out clips (index) or tracks (JSON) that could be compared."""
    examples: tuple[str, ...]


def split_names(corpus: Corpus) -> list[str]:
    """The splits of a corpus, ``train`` first."""
    names = dict.fromkeys(shard.split for shard in corpus.shards)
    return sorted(names, key=lambda name: (name != TRAIN, name))


def amounts(corpus: Corpus, name: str) -> SplitAmounts:
    """Counts a split."""
    split = corpus.split(name)
    shards = [shard for shard in corpus.shards if shard.split == name]
    return SplitAmounts(
        name=name,
        clips=len(split),
        tracks=len(np.unique(split.members["track"])),
        shards=len(shards),
        hours=corpus.seconds(name) / 3600,
        bytes=sum(shard.bytes for shard in shards),
        seconds=split.num_samples / corpus.sample_rate,
    )


def copies(corpus: Corpus) -> Copies:
    """Looks for clips whose FLAC files have equal checksum, size and length."""
    everything = _everything(corpus)
    _, group_of, sizes = np.unique(everything.audio, return_inverse=True, return_counts=True)
    pairs = np.unique(np.stack([group_of, everything.track], axis=1), axis=0)
    tracks = np.bincount(pairs[:, 0], minlength=len(sizes))
    repeated = sizes > 1
    largest = [int(group) for group in np.argsort(-sizes, kind="stable") if repeated[group]]
    return Copies(
        groups=int(repeated.sum()),
        extra_clips=int((sizes - 1).sum()),
        groups_across_tracks=int((repeated & (tracks > 1)).sum()),
        examples=tuple(
            tuple(everything.name(row) for row in np.flatnonzero(group_of == group)[:EXAMPLES])
            for group in largest[:EXAMPLES]
        ),
    )


def index_leaks(corpus: Corpus) -> list[Leak]:
    """Tracks and audio in train and held out; empty where the corpus has only one of the two."""
    everything = _everything(corpus)
    train = everything.split == TRAIN
    if train.all() or not train.any():
        return []
    leaks = []
    kinds: list[tuple[Literal["track", "audio"], npt.NDArray[np.int64]]] = [
        ("track", everything.track),
        ("audio", everything.audio),
    ]
    for kind, values in kinds:
        leaked = np.flatnonzero(~train & np.isin(values, values[train]))
        names = tuple(everything.name(row) for row in leaked[:EXAMPLES])
        leaks.append(Leak(kind, "index", len(leaked), int((~train).sum()), names))
    return leaks


def clip_name(split: Split, clip: int) -> str:
    """A clip for people: its key, or its number where the key cannot be read."""
    try:
        return f"{split.name}: {split.key(clip)}"
    except DataError:
        return f"{split.name}: clip {clip}"


@final
@dataclass(frozen=True)
class _Everything:
    """All clips of all splits, side by side."""

    corpus: Corpus
    split: npt.NDArray[np.str_]
    clip: npt.NDArray[np.int64]
    track: npt.NDArray[np.int64]
    audio: npt.NDArray[np.int64]
    """A number per content: equal where checksum, size and length are."""

    def name(self, row: int) -> str:
        return clip_name(self.corpus.split(str(self.split[row])), int(self.clip[row]))


def _everything(corpus: Corpus) -> _Everything:
    names = split_names(corpus)
    splits = [corpus.split(name) for name in names]
    lengths = [len(split) for split in splits]

    def column(name: str) -> npt.NDArray[np.int64]:
        return np.concatenate([split.members[name] for split in splits]).astype(np.int64)

    return _Everything(
        corpus,
        split=np.repeat(names, lengths),
        clip=np.concatenate([np.arange(length) for length in lengths]),
        track=column("track"),
        audio=_number(column("audio_crc32"), column("audio_size"), column("num_samples")),
    )


def _number(*columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Numbers rows of columns by content."""
    keys: Sequence[npt.NDArray[np.int64]] = columns
    order = np.lexsort(keys)
    changes = np.zeros(len(order), dtype=np.int64)
    for column in keys:
        ordered = column[order]
        changes[1:] |= ordered[1:] != ordered[:-1]
    numbers = np.empty_like(order)
    numbers[order] = np.cumsum(changes)
    return numbers
