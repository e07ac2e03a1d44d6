"""The reading side of a corpus: a memory-mapped index, clips read from plain tars by offset.

    index.json    shards with their sizes, the format, the fingerprint
    members.npy   one row per clip: shard, places and checksums of its audio and JSON, length
    *.tar         opened when first read, in whichever process reads

Any clip costs one `pread`, so that the order of training is a pure function of seed and epoch and
never of how clips happen to lie in shards. Nothing here grows with the corpus except the page
cache.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, final

import numpy as np
import numpy.typing as npt

from etude.data.errors import DataError, InputError
from etude.data.files import read_at
from etude.data.tar import BLOCK, header_name

FORMAT = 1
"""Version of the folder's layout; readers refuse what they do not know."""

INDEX_NAME = "index.json"
MEMBERS_NAME = "members.npy"

MEMBER = np.dtype(
    [
        ("shard", "<i4"),  # row in index.json's list of shards
        ("track", "<i4"),  # clips with the same number come from the same file
        ("audio_offset", "<i8"),
        ("audio_size", "<i8"),
        ("audio_crc32", "<u4"),
        ("json_offset", "<i8"),
        ("json_size", "<i8"),
        ("json_crc32", "<u4"),
        ("num_samples", "<i8"),
    ]
)
"""One clip in ``members.npy``; offsets and sizes in bytes, ``num_samples`` at the corpus rate."""


@final
@dataclass(frozen=True)
class Shard:
    """One tar of a corpus, as ``index.json`` lists it."""

    file: str
    split: str
    samples: int
    """Clips in this shard."""
    seconds: float
    bytes: int
    sha256: str


@final
@dataclass(frozen=True)
class Corpus:
    """A prepared corpus folder. Small and picklable: it travels to data workers as it is."""

    root: Path
    sample_rate: int
    """Hertz, the same for every clip."""
    clip_seconds: float
    """Nominal length of a clip; the last one of a track may be shorter or somewhat longer."""
    fingerprint: str
    """sha256 over the index: folders with the same fingerprint hold the same shards."""
    shards: tuple[Shard, ...]

    def split(self, name: str) -> "Split":
        """All clips of ``train`` or ``valid``, in index order."""
        members = np.load(self.root / MEMBERS_NAME, mmap_mode="r")
        return Split(self, name, members[self.span(name)])

    def span(self, name: str) -> slice:
        """Rows of a split among those of all clips, in index order.

        A slice, because write_index puts the shards of a split side by side: what is cut out of a
        memory map by it stays one.
        """
        ends = np.cumsum([0, *(shard.samples for shard in self.shards)])
        rows = [i for i, shard in enumerate(self.shards) if shard.split == name]
        if not rows:
            known = sorted({shard.split for shard in self.shards})
            raise InputError(
                f"{self.root}: no split {name!r} in this corpus, only {', '.join(known)}. "
                f"Prepare it again with "
                f"another --valid-fraction, or ask for one of these."
            )
        return slice(int(ends[rows[0]]), int(ends[rows[-1] + 1]))

    def shard_rows(self) -> Iterator[tuple[Shard, range]]:
        """Every shard with the clip numbers it has in its split."""
        ends: dict[str, int] = {}
        for shard in self.shards:
            first = ends.get(shard.split, 0)
            ends[shard.split] = first + shard.samples
            yield shard, range(first, ends[shard.split])

    def seconds(self, name: str) -> float:
        """Audio in a split; 0 for a split that is not there."""
        return sum(shard.seconds for shard in self.shards if shard.split == name)


@final
@dataclass(frozen=True, eq=False)
class Split:
    """All clips of one split, in index order; clip numbers run from 0."""

    corpus: Corpus
    name: str
    members: npt.NDArray[np.void]
    """Structured rows of dtype ``MEMBER``, memory-mapped."""

    def __len__(self) -> int:
        return len(self.members)

    def __reduce__(self) -> tuple[Callable[[Corpus, str], "Split"], tuple[Corpus, str]]:
        # A pickled memory map would be a copy of the whole index: spawned workers map the
        # file again instead.
        return Corpus.split, (self.corpus, self.name)

    @cached_property
    def num_samples(self) -> npt.NDArray[np.int64]:
        """Samples per clip at the corpus rate."""
        return self.members["num_samples"].astype(np.int64)

    def read_audio_bytes(self, clip: int) -> bytes:
        """The clip's FLAC file, its checksum verified."""
        return self._read(clip, "audio")

    def read_metadata(self, clip: int) -> dict[str, Any]:
        """The clip's JSON member, its checksum verified."""
        metadata: dict[str, Any] = json.loads(self._read(clip, "json"))
        return metadata

    def key(self, clip: int) -> str:
        """The clip's key in its shard, read from the tar header."""
        row = self.members[clip]
        header = self._pread(clip, int(row["audio_offset"]) - BLOCK, BLOCK, "the header of a clip")
        try:
            return header_name(header).partition(".")[0]
        except UnicodeDecodeError:
            self._damaged(clip, "the header of a clip")

    def _read(self, clip: int, part: str) -> bytes:
        row = self.members[clip]
        data = self._pread(clip, int(row[f"{part}_offset"]), int(row[f"{part}_size"]), part)
        if zlib.crc32(data) != row[f"{part}_crc32"]:
            key = self.key(clip)
            extension = "flac" if part == "audio" else "json"
            self._damaged(clip, f"member {key}.{extension}")
        return data

    def _pread(self, clip: int, offset: int, size: int, what: str) -> bytes:
        shard = self.corpus.shards[int(self.members[clip]["shard"])]
        path = self.corpus.root / shard.file
        try:
            data = read_at(path, offset, size, version=self.corpus.fingerprint)
        except OSError as error:
            raise DataError(
                f"{path}: cannot read {what} at byte {offset} ({error}). Check the disk or mount "
                f"that holds it."
            ) from error
        if len(data) != size:
            self._damaged(clip, f"{what} at byte {offset} (the file ends before it does)")
        return data

    def _damaged(self, clip: int, what: str) -> NoReturn:
        path = self.corpus.root / self.corpus.shards[int(self.members[clip]["shard"])].file
        raise DataError(
            f"{path}: {what} is damaged (clip {clip} of {self.name!r}): the bytes are not the "
            f"ones that were indexed. "
            f"Copy the shard again from where it was made, or delete the folder and run "
            f"launch/prepare.py again."
        )


def open_corpus(root: Path) -> Corpus:
    """Opens a folder made by ``launch/prepare.py``; its files must be the indexed ones."""
    index = root / INDEX_NAME
    if not index.is_file():
        raise InputError(
            f"{root}: no prepared corpus here ({INDEX_NAME} is missing). Make one with "
            f"`python launch/prepare.py SOURCE --out {root}`, or correct data.corpus."
        )
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        corpus = Corpus(
            root=root,
            sample_rate=int(content["sample_rate"]),
            clip_seconds=float(content["clip_seconds"]),
            fingerprint=str(content["fingerprint"]),
            shards=tuple(Shard(**shard) for shard in content["shards"]),
        )
        version = content["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{index}: not an index that launch/prepare.py writes ({error!r}). Prepare the "
            f"corpus again."
        ) from error
    if version != FORMAT:
        raise DataError(
            f"{index}: format {version}, but this version reads {FORMAT}. Prepare the corpus again."
        )
    _check_folder(corpus)
    return corpus


def fingerprint(sample_rate: int, shards: tuple[Shard, ...], members: bytes) -> str:
    """sha256 over everything the index says about the audio; not over where or when it was made."""
    digest = hashlib.sha256(f"{FORMAT} {sample_rate}\n".encode())
    for shard in shards:
        digest.update(
            f"{shard.file} {shard.split} {shard.samples} {shard.bytes} {shard.sha256}\n".encode()
        )
    digest.update(members)
    return digest.hexdigest()


def _check_folder(corpus: Corpus) -> None:
    again = "Copy the folder again from its origin, or delete it and run launch/prepare.py again."
    for shard in corpus.shards:
        path = corpus.root / shard.file
        if not path.is_file():
            raise DataError(f"{path}: this shard is in {INDEX_NAME} but not in the folder. {again}")
        size = path.stat().st_size
        if size != shard.bytes:
            raise DataError(f"{path}: {size} bytes, but {INDEX_NAME} says {shard.bytes}. {again}")
    path = corpus.root / MEMBERS_NAME
    if not path.is_file():
        raise DataError(f"{path}: missing, although {INDEX_NAME} is there. {again}")
    try:
        members = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error}). {again}") from error
    if members.dtype != MEMBER or members.ndim != 1:
        raise DataError(f"{path}: not rows of a clip index. {again}")
    if fingerprint(corpus.sample_rate, corpus.shards, members.tobytes()) != corpus.fingerprint:
        raise DataError(
            f"{path}: does not belong to the {INDEX_NAME} beside it (fingerprints differ). {again}"
        )
