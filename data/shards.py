"""The reading side of a corpus: a memory-mapped index, clips read from plain tars by offset.

    index.json    shards with their sizes, the format, the fingerprint
    members.npy   one row per clip: shard, places and checksums of its audio and JSON, length
    blocks.npy    checksums of parts of the audio (blocks.py); older folders have none
    *.tar         opened when first read, in whichever process reads

Any clip is found by its row alone, so that the order of training is a pure function of seed and
epoch and never of how clips happen to lie in shards. Nothing here grows with the corpus except the
page cache. A corpus at a URL is read the same way, from local copies of its shards (``remote.py``).
"""

import errno
import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Protocol, final

import numpy as np
import numpy.typing as npt

from etude.data.blocks import BLOCK_BYTES, BLOCKS_NAME, BlockFile, block_checksums, count_blocks
from etude.data.clip_format import EXTENSIONS, PCM16_HEADER, AudioFormat
from etude.data.errors import DataError, InputError
from etude.data.files import NO_ARRAY, file_sha256, read_at
from etude.data.retry import with_retries
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

_AGAIN = "Copy the folder again from its origin, or delete it and run launch/prepare.py again."
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TRIES, _FIRST_WAIT = 4, 0.1  # of a local disk: 0.7 s in all


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


class Store(Protocol):
    """Where a corpus' files are if they are not in its folder."""

    @property
    def url(self) -> str:
        """What the store is opened by."""

    def fetch(self, file: str, *, size: int, sha256: str) -> Path:
        """A local copy of a shard with these bytes; :class:`DataError` if it cannot be had."""

    def fetch_index(self, file: str) -> Path:
        """A local copy of a small file; :class:`InputError` if it cannot be had."""


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
    store: Store | None = None
    """Where the shards come from if they are not in ``root``."""
    licences: dict[str, float] = field(default_factory=dict, hash=False)
    """Seconds of audio per licence that ``--metadata`` named, the longest first; empty where it
    named none."""
    audio_format: AudioFormat = "flac"
    """What the audio members are."""
    blocks_sha256: str | None = None
    """Of ``blocks.npy``; None where there is none."""

    @property
    def extension(self) -> str:
        """Of the audio members' names."""
        return EXTENSIONS[self.audio_format]

    @property
    def sliceable(self) -> bool:
        """Whether ``Split.read_pcm16`` can be asked."""
        return self.audio_format == "pcm16" and self.blocks_sha256 is not None

    @property
    def place(self) -> str:
        """The folder or the URL that it was opened by, for messages."""
        return str(self.root) if self.store is None else self.store.url

    def read(self, file: str, offset: int, length: int, *, size: int, sha256: str) -> bytes:
        """Bytes of a shard, fewer where it ends before; a disk that fails is asked again.

        :param size: of the whole shard, which has ``sha256``.
        :raises OSError: as the system says.
        :raises DataError: if the store does not give the shard.
        """
        length = min(length, size)  # a row of the index can ask for any amount of memory
        if self.store is None:
            path = f"{self.root}/{file}"  # a Path would cost more than to read a block

            def read() -> bytes:
                return read_at(path, offset, length, version=sha256)

            return with_retries(read, tries=_TRIES, first_wait=_FIRST_WAIT)
        for _ in range(_TRIES):
            # Not by a kept descriptor, which would keep the space of an evicted file.
            try:
                with self.store.fetch(file, size=size, sha256=sha256).open("rb") as shard:
                    return os.pread(shard.fileno(), length, offset)
            except FileNotFoundError:  # evicted in between
                continue
        raise FileNotFoundError(errno.ENOENT, "evicted as soon as it came", file)

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

    def clips(self, name: str) -> int:
        """Clips in a split; 0 for a split that is not there."""
        return sum(shard.samples for shard in self.shards if shard.split == name)

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

    @cached_property
    def _first_clips(self) -> npt.NDArray[np.int64]:
        """By shard of the corpus, the first clip of this split that is in it or after it."""
        counts = [s.samples if s.split == self.name else 0 for s in self.corpus.shards]
        return np.cumsum([0, *counts], dtype=np.int64)

    @cached_property
    def _checksums(self) -> npt.NDArray[np.uint32]:
        """Those of all clips of the corpus, memory-mapped."""
        return np.asarray(np.load(self.corpus.root / BLOCKS_NAME, mmap_mode="r"))

    @cached_property
    def _first_blocks(self) -> npt.NDArray[np.int64]:
        """Where the checksums of each clip begin."""
        before = np.load(self.corpus.root / MEMBERS_NAME, mmap_mode="r")
        before = before[: self.corpus.span(self.name).start]
        first = int(count_blocks(before["audio_size"]).sum())
        return first + np.cumsum(np.append(0, count_blocks(self.members["audio_size"])))

    def read_audio_bytes(self, clip: int) -> bytes:
        """The clip's FLAC or WAV file, its checksum verified."""
        return self._read(clip, "audio")

    def open_audio(self, clip: int) -> BlockFile:
        """The clip's FLAC or WAV file for a decoder; what is read of it is verified."""
        size = int(self.members[clip]["audio_size"])
        if self.corpus.blocks_sha256 is not None:
            return BlockFile(size, self._block_reader(clip))
        whole = self.read_audio_bytes(clip)
        return BlockFile(size, lambda first, last: whole[first * BLOCK_BYTES : last * BLOCK_BYTES])

    def read_pcm16(self, clip: int, *, start: int, frames: int) -> npt.NDArray[np.int16]:
        """Samples of the clip, verified, where the corpus is ``sliceable``."""
        begin, end = PCM16_HEADER + 2 * start, PCM16_HEADER + 2 * (start + frames)
        first = begin // BLOCK_BYTES
        data = self._block_reader(clip)(first, count_blocks(end))
        return np.frombuffer(data, "<i2", frames, begin - first * BLOCK_BYTES)

    def read_metadata(self, clip: int) -> dict[str, Any]:
        """The clip's JSON member, its checksum verified."""
        metadata: dict[str, Any] = json.loads(self._read(clip, "json"))
        return metadata

    def place(self, clip: int) -> tuple[str, int]:
        """The clip's shard and its number in it, from 0; nothing is read for it."""
        shard = int(self.members[clip]["shard"])
        return self.corpus.shards[shard].file, clip - int(self._first_clips[shard])

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
            extension = self.corpus.extension if part == "audio" else "json"
            self._damaged(clip, f"member {self.key(clip)}.{extension}")
        return data

    def _block_reader(self, clip: int) -> Callable[[int, int], bytes]:
        """Reads the audio's blocks from one number up to another, which is left out."""
        row = self.members[clip]
        offset, audio_size = int(row["audio_offset"]), int(row["audio_size"])
        place = int(self._first_blocks[clip])
        checksums = self._checksums[place : place + count_blocks(audio_size)].tolist()

        def read(first: int, last: int) -> bytes:
            begin = first * BLOCK_BYTES
            size = min(audio_size, last * BLOCK_BYTES) - begin
            data = self._pread(clip, offset + begin, size, "audio")
            if block_checksums(data) != checksums[first:last]:
                self._damaged(clip, f"member {self.key(clip)}.{self.corpus.extension}")
            return data

        return read

    def _pread(self, clip: int, offset: int, size: int, what: str) -> bytes:
        shard = self.corpus.shards[int(self.members[clip]["shard"])]
        try:
            data = self.corpus.read(shard.file, offset, size, size=shard.bytes, sha256=shard.sha256)
        except OSError as error:
            raise DataError(
                f"{self.corpus.root / shard.file}: cannot read {what} at byte {offset} ({error}). "
                "Check the disk or mount that holds it."
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
    """Opens a folder made by ``launch/prepare.py``; its files must be the indexed ones.

    :raises InputError: if there is no corpus.
    :raises DataError: if its files are not the indexed ones.
    """
    index = root / INDEX_NAME
    if not index.is_file():
        raise InputError(
            f"{root}: no prepared corpus here ({INDEX_NAME} is missing). Make one with "
            f"`python launch/prepare.py SOURCE --out {root}`, or correct data.corpus."
        )
    corpus = parse_index(index.read_bytes(), root)
    _check_shards(corpus)
    check_members(corpus)
    check_blocks(corpus)
    return corpus


def parse_index(text: bytes, root: Path) -> Corpus:
    """The content of ``root``'s ``index.json``.

    :raises DataError: if it is none that we write.
    """
    index = root / INDEX_NAME
    try:
        content = json.loads(text)
        corpus = Corpus(
            root=root,
            sample_rate=int(content["sample_rate"]),
            clip_seconds=float(content["clip_seconds"]),
            fingerprint=str(content["fingerprint"]),
            shards=tuple(_shard(shard) for shard in content["shards"]),
            licences=_licences(content.get("licences", {})),
            # Both are younger than the format; corpora without them are whole.
            audio_format=_audio_format(content.get("audio_format", "flac")),
            blocks_sha256=_sha256(content.get("blocks_sha256")),
        )
        version = content["format"]
        if not _SHA256.fullmatch(corpus.fingerprint):
            raise ValueError(f"{corpus.fingerprint!r} is no sha256")
        for shard in corpus.shards:
            if not _FILE_NAME.fullmatch(shard.file):
                raise ValueError(f"{shard.file!r} is no name of a file in this folder")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{index}: not an index that launch/prepare.py writes ({error!r}). Prepare the "
            f"corpus again."
        ) from error
    if version != FORMAT:
        raise DataError(
            f"{index}: format {version}, but this version reads {FORMAT}. Prepare the corpus again."
        )
    return corpus


def _shard(values: dict[str, Any]) -> Shard:
    shard = Shard(**values)
    # The text "3" has the fingerprint of the number, and would fail later.
    if not all(map(isinstance, astuple(shard), (str, str, int, int | float, int, str))):
        raise TypeError(f"{values} does not describe a shard")
    return shard


def _audio_format(value: Any) -> AudioFormat:
    for known in EXTENSIONS:
        if value == known:
            return known
    raise ValueError(f"audio_format is {value!r}, not one of {', '.join(EXTENSIONS)}")


def _sha256(value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and _SHA256.fullmatch(value)):
        raise ValueError(f"{value!r} is no sha256")
    return value


def _licences(value: Any) -> dict[str, float]:
    """A mapping of names to seconds, the longest first."""
    if not isinstance(value, dict):
        raise TypeError(f"licences are {value!r}, not a mapping of names to seconds")
    for name, seconds in value.items():
        if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
            raise ValueError(f"licence {name!r} has {seconds!r} seconds")
    by_length = sorted(value.items(), key=lambda item: (-item[1], item[0]))
    return {name: float(seconds) for name, seconds in by_length}


def fingerprint(sample_rate: int, shards: tuple[Shard, ...], members: bytes) -> str:
    """sha256 over everything the index says about the audio; not over where or when it was made."""
    digest = hashlib.sha256(f"{FORMAT} {sample_rate}\n".encode())
    for shard in shards:
        digest.update(
            f"{shard.file} {shard.split} {shard.samples} {shard.bytes} {shard.sha256}\n".encode()
        )
    digest.update(members)
    return digest.hexdigest()


def _check_shards(corpus: Corpus) -> None:
    for shard in corpus.shards:
        path = corpus.root / shard.file
        if not path.is_file():
            raise DataError(
                f"{path}: this shard is in {INDEX_NAME} but not in the folder. {_AGAIN}"
            )
        size = path.stat().st_size
        if size != shard.bytes:
            raise DataError(f"{path}: {size} bytes, but {INDEX_NAME} says {shard.bytes}. {_AGAIN}")


def check_members(corpus: Corpus) -> None:
    """Checks that ``members.npy`` in ``corpus.root`` is the one of its index.

    :raises DataError: if it is missing, unreadable or another one.
    """
    path = corpus.root / MEMBERS_NAME
    if not path.is_file():
        raise DataError(f"{path}: missing, although {INDEX_NAME} is there. {_AGAIN}")
    try:
        members = np.lib.format.open_memmap(path, mode="r")
    except NO_ARRAY as error:
        raise DataError(f"{path}: cannot be read ({error}). {_AGAIN}") from error
    if members.dtype != MEMBER or members.ndim != 1:
        raise DataError(f"{path}: not rows of a clip index. {_AGAIN}")
    counts = [shard.samples for shard in corpus.shards]
    if min(counts, default=0) < 0 or sum(counts) != len(members):
        raise DataError(f"{path}: not one row for each clip of {INDEX_NAME}. {_AGAIN}")
    if (members["shard"] != np.repeat(np.arange(len(counts)), counts)).any():
        raise DataError(f"{path}: its rows are not in the order of {INDEX_NAME}. {_AGAIN}")
    if fingerprint(corpus.sample_rate, corpus.shards, members.tobytes()) != corpus.fingerprint:
        raise DataError(
            f"{path}: does not belong to the {INDEX_NAME} beside it (fingerprints differ). {_AGAIN}"
        )


def check_blocks(corpus: Corpus) -> None:
    """Checks that ``blocks.npy`` in ``corpus.root``, if there is to be one, is that of its index.

    :raises DataError: if it is missing, unreadable or another one.
    """
    if corpus.blocks_sha256 is None:
        return
    path = corpus.root / BLOCKS_NAME
    if not path.is_file():
        raise DataError(f"{path}: missing, although {INDEX_NAME} names it. {_AGAIN}")
    try:
        if file_sha256(path) != corpus.blocks_sha256:
            raise DataError(f"{path}: not the one of the {INDEX_NAME} beside it. {_AGAIN}")
        checksums = np.lib.format.open_memmap(path, mode="r")
    except NO_ARRAY as error:
        raise DataError(f"{path}: cannot be read ({error}). {_AGAIN}") from error
    sizes = np.load(corpus.root / MEMBERS_NAME, mmap_mode="r")["audio_size"]
    blocks = int(count_blocks(sizes).sum())
    if checksums.dtype != np.uint32 or checksums.shape != (blocks,):
        raise DataError(f"{path}: not the checksums of {MEMBERS_NAME}. {_AGAIN}")
