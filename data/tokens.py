"""Tokens of a corpus: integers per frame, in tars beside the audio's, same names, keys and order.

    targets/NAME/index.json        which codec, of which corpus, the shards
    targets/NAME/members.npy       one row per clip, in the order of the corpus' index
    targets/NAME/train-000000.tar  KEY.NAME.npy: uint16 (frames, codebooks), or packed as uint8
                                   (frames, bytes) where the index names ``bits`` (packing.py)

The audio's shards are not touched, so one corpus can carry the tokens of several codecs. A clip's
tokens start at its first sample and hold its whole frames: ``num_samples // hop_samples`` rows.
"""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from etude.data.errors import DataError, InputError
from etude.data.files import NO_ARRAY, json_bytes, published, write_bytes
from etude.data.packing import MAX_BITS, Packing
from etude.data.shards import Corpus, Shard
from etude.data.tar import add_member, walk_members, walk_pairs

FORMAT = 1

_FOLDER = "targets"
_INDEX_NAME = "index.json"
_MEMBERS_NAME = "members.npy"
_MEMBER = np.dtype(
    [("offset", "<i8"), ("size", "<i8"), ("crc32", "<u4"), ("shard", "<i4"), ("frames", "<i8")]
)

Codes = npt.NDArray[np.uint16]
"""(frames, codebooks)."""


@final
@dataclass(frozen=True)
class TokenSettings:
    """What made the tokens."""

    codec: str
    """Kind of codec, such as ``encodec_24khz``."""
    weights_sha256: str
    """Content hash of the codec's weights."""
    sample_rate: int
    """Hertz of the audio that was encoded."""
    hop_samples: int
    """Samples per frame."""
    codebooks: int
    """Integers per frame."""
    codebook_size: int
    """Integers lie in [0, codebook_size)."""

    @property
    def packing(self) -> Packing | None:
        """How these tokens are packed; None where that would save nothing."""
        packing = Packing.of(self.codebooks, self.codebook_size)
        return packing if packing.bits < MAX_BITS else None


@final
@dataclass(frozen=True)
class TokenShard:
    """One sidecar tar, as the index lists it."""

    file: str
    """Its name, which is that of the audio's shard."""
    bytes: int
    sha256: str


@final
@dataclass(frozen=True)
class Tokens:
    """An opened token folder. Small and picklable: it travels to data workers as it is."""

    root: Path
    corpus: Corpus
    name: str
    settings: TokenSettings
    packing: Packing | None
    """How the arrays are packed; None for plain uint16."""
    shards: tuple[TokenShard, ...]

    def split(self, name: str) -> "SplitTokens":
        """The tokens of all clips of ``train`` or ``valid``, rows as in the corpus' split."""
        members = np.load(self.root / _MEMBERS_NAME, mmap_mode="r")[self.corpus.span(name)]
        return SplitTokens(self, name, members)


@final
@dataclass(frozen=True, eq=False)
class SplitTokens:
    """The tokens of one split, by clip number."""

    tokens: Tokens
    name: str
    members: npt.NDArray[np.void]

    def __reduce__(self) -> tuple[Callable[[Tokens, str], "SplitTokens"], tuple[Tokens, str]]:
        # As Split: workers map the file again instead of getting a copy.
        return Tokens.split, (self.tokens, self.name)

    def frames(self, clip: int) -> int:
        """Rows of a clip's array, from the index."""
        return int(self.members[clip]["frames"])

    def place(self, clip: int) -> str:
        """Shard and member of a clip, for messages."""
        path = self._path(clip)
        key = self.tokens.corpus.split(self.name).key(clip)
        return f"{path}: member {member_name(key, self.tokens.name)}"

    def _path(self, clip: int) -> Path:
        return self.tokens.root / self.tokens.shards[int(self.members[clip]["shard"])].file

    def read(self, clip: int, *, start: int = 0, frames: int | None = None) -> Codes:
        """Tokens of a clip, uint16 (frames, codebooks), the checksum of all of them verified.

        :param start: first frame that is wanted.
        :param frames: how many; fewer come where the clip ends, all if it is not given.
        :raises DataError: if the bytes are not those that were indexed, or no such array.
        """
        row = self.members[clip]
        path = self._path(clip)
        shard = self.tokens.shards[int(row["shard"])]
        try:
            data = self.tokens.corpus.read(
                f"{_FOLDER}/{self.tokens.name}/{shard.file}",
                int(row["offset"]),
                int(row["size"]),
                size=shard.bytes,
                sha256=shard.sha256,
            )
        except OSError as error:
            raise DataError(
                f"{path}: cannot read at byte {row['offset']} ({error}). Check the disk or mount "
                "that holds it."
            ) from error
        if len(data) != row["size"] or zlib.crc32(data) != row["crc32"]:
            raise DataError(
                f"{self.place(clip)} is damaged: the bytes are not the ones that were indexed. "
                f"Delete {path} and run launch/encode.py again."
            )
        # Not `place`: it reads a tar header, and this is done for every crop of a run.
        codes = parse_codes(
            data,
            f"{path}: clip {clip} of {self.name!r}",
            packing=self.tokens.packing,
            rows=slice(start, None if frames is None else start + frames),
        )
        if codes.shape[1] != self.tokens.settings.codebooks:
            raise DataError(
                f"{self.place(clip)} has {codes.shape[1]} codebooks, but the index says "
                f"{self.tokens.settings.codebooks}. Delete {self.tokens.root} and encode again."
            )
        return codes


def tokens_root(corpus: Corpus, name: str) -> Path:
    """Where the tokens called ``name`` of a corpus lie."""
    return corpus.root / _FOLDER / name


def member_name(key: str, name: str) -> str:
    """The member of a clip: the target's name keeps several kinds apart once they are merged."""
    return f"{key}.{name}.npy"


def parse_codes(
    data: bytes, place: str, *, packing: Packing | None = None, rows: slice = slice(None)
) -> Codes:
    """An ``.npy`` file as codes; nothing in it is executed.

    :param packing: of the array's rows; None for plain uint16.
    :param rows: frames that are wanted: others are not unpacked.
    :raises DataError: if it is no such array.
    """
    try:
        codes: Any = np.load(io.BytesIO(data), allow_pickle=False)
    except NO_ARRAY as error:
        raise DataError(f"{place} is no array ({error}). Encode the corpus again.") from error
    width = None if packing is None else packing.row_bytes
    if (
        not isinstance(codes, np.ndarray)
        or codes.dtype != (np.uint16 if width is None else np.uint8)
        or codes.ndim != 2
        or codes.shape[1] != (width or codes.shape[1])
    ):
        wanted = "uint16 (frames, codebooks)" if width is None else f"uint8 (frames, {width})"
        raise DataError(
            f"{place} must be {wanted}, but is {getattr(codes, 'dtype', '?')} "
            f"{getattr(codes, 'shape', '?')}. Encode the corpus again."
        )
    if packing is None:
        return codes[rows]
    try:
        return packing.unpack(codes[rows])
    except ValueError as error:
        raise DataError(f"{place} is not packed right ({error}). Encode it again.") from error


def write_token_shard(
    path: Path,
    name: str,
    samples: Iterable[tuple[str, Codes]],
    *,
    packing: Packing | None = None,
) -> None:
    """Writes one sidecar tar, whole or not at all; equal tokens give equal bytes."""
    with (
        published(path) as out,
        tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for key, codes in samples:
            stored = codes if packing is None else packing.pack(codes)
            add_member(tar, member_name(key, name), _array_file(stored))


def write_token_index(
    corpus: Corpus, name: str, settings: TokenSettings, *, packing: Packing | None = None
) -> Tokens:
    """Walks all sidecar tars strictly and writes their index: the folder is complete with it.

    :param packing: what the tars were written with: ``settings.packing``, or None.
    :raises DataError: if a tar is damaged or its keys are not the audio's.
    """
    root = tokens_root(corpus, name)
    rows: list[tuple[int, ...]] = []
    shards: list[dict[str, Any]] = []
    for number, (shard, keys) in enumerate(shard_keys(corpus)):
        path = root / shard.file
        digest = hashlib.sha256()
        count = 0
        for member in walk_members(path, digest.update):
            wanted = member_name(keys[count], name) if count < len(keys) else None
            if member.name != wanted:
                raise DataError(
                    f"{path}: member {member.name!r} where {wanted or 'the end'} should be: the "
                    f"tokens are not in the order of {shard.file}. Delete {path} and encode again."
                )
            place = f"{path}: member {member.name}"
            frames = len(parse_codes(member.content, place, packing=packing))
            checksum = zlib.crc32(member.content)
            rows.append((member.offset, member.size, checksum, number, frames))
            count += 1
        if count != len(keys):
            raise DataError(
                f"{path}: {count} members, but {shard.file} has {len(keys)} clips. Delete {path} "
                "and encode again."
            )
        size = path.stat().st_size
        shards.append({"file": shard.file, "bytes": size, "sha256": digest.hexdigest()})
    members = np.array(rows, dtype=_MEMBER)
    write_bytes(root / _MEMBERS_NAME, _array_file(members))
    content = {
        "format": FORMAT,
        "name": name,
        "corpus": corpus.fingerprint,
        **layout_values(settings, packing),
        "frame_rate": settings.sample_rate / settings.hop_samples,
        "shards": shards,
    }
    content["fingerprint"] = _fingerprint(content, members.tobytes())
    write_bytes(root / _INDEX_NAME, json_bytes(content))
    return open_tokens(corpus, name)


def merge_shard(tokens: Tokens, file: str, out: Path) -> None:
    """Writes one shard with audio, JSON and tokens together, for readers that want one tar.

    Its tokens are plain uint16, whether the sidecar's are packed or not.
    """
    corpus = tokens.corpus
    added = {
        member.name: member.content
        if tokens.packing is None
        else _array_file(parse_codes(member.content, member.name, packing=tokens.packing))
        for member in walk_members(tokens.root / file)
    }
    with (
        published(out / file) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for pair in walk_pairs(corpus.root / file, audio_extension=corpus.extension):
            name = member_name(pair.key, tokens.name)
            for part, content in (
                (pair.audio.name, pair.audio.content),
                (pair.metadata.name, pair.metadata.content),
                (name, added[name]),
            ):
                add_member(tar, part, content)


def shard_keys(corpus: Corpus) -> Iterator[tuple[Shard, list[str]]]:
    """Every audio shard of a corpus with the keys of its clips, in the index' order."""
    for shard, rows in corpus.shard_rows():
        split = corpus.split(shard.split)
        yield shard, [split.key(clip) for clip in rows]


def open_tokens(corpus: Corpus, name: str) -> Tokens:
    """Opens the tokens ``name`` of a corpus.

    :raises InputError: if there are none.
    :raises DataError: if they belong to another corpus or their files are not the indexed ones.
    """
    root = tokens_root(corpus, name)
    index = root / _INDEX_NAME
    if corpus.store is not None:
        for file in (_INDEX_NAME, _MEMBERS_NAME):
            corpus.store.fetch_index(f"{_FOLDER}/{name}/{file}")
    if not index.is_file():
        begun = f" ({root} was begun but is not finished)" if root.is_dir() else ""
        raise InputError(
            f"{corpus.root} has no tokens {name!r}{begun}. Make them with `python "
            f"launch/encode.py {corpus.root} --codec {name} --weights FILE`."
        )
    again = f"Delete {root} and encode again."
    text = index.read_bytes()
    try:
        content = json.loads(text)
        settings = TokenSettings(
            codec=str(content["codec"]),
            weights_sha256=str(content["weights_sha256"]),
            sample_rate=int(content["sample_rate"]),
            hop_samples=int(content["hop_samples"]),
            codebooks=int(content["codebooks"]),
            codebook_size=int(content["codebook_size"]),
        )
        shards = tuple(
            TokenShard(str(shard["file"]), int(shard["bytes"]), str(shard["sha256"]))
            for shard in content["shards"]
        )
        bits = int(content.get("bits", MAX_BITS))
        version, made_for = content["format"], str(content["corpus"])
        fingerprint = str(content.pop("fingerprint"))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{index}: not an index that launch/encode.py writes ({error!r}). {again}"
        ) from error
    if version != FORMAT:
        raise DataError(f"{index}: format {version}, but this version reads {FORMAT}. {again}")
    if made_for != corpus.fingerprint:
        raise DataError(
            f"{index}: made for another corpus ({made_for[:12]}) than {corpus.root} is now "
            f"({corpus.fingerprint[:12]}). {again}"
        )
    packing = None if bits == MAX_BITS else settings.packing
    if bits != (MAX_BITS if packing is None else packing.bits):
        raise DataError(
            f"{index}: {bits} bits per code, but codes below {settings.codebook_size} are stored "
            f"in {MAX_BITS} or in as few as they need. {again}"
        )
    if [shard.file for shard in shards] != [shard.file for shard in corpus.shards]:
        raise DataError(f"{index}: its shards are not named as the corpus' are. {again}")
    for shard in shards if corpus.store is None else ():
        path = root / shard.file
        found = path.stat().st_size if path.is_file() else None
        if found != shard.bytes:
            have = "missing" if found is None else f"{found} bytes instead of {shard.bytes}"
            raise DataError(f"{path}: {have}. Delete {index} and {path}, and encode again.")
    try:
        members = np.lib.format.open_memmap(root / _MEMBERS_NAME, mode="r")
    except NO_ARRAY as error:
        raise DataError(f"{root / _MEMBERS_NAME}: cannot be read ({error}). {again}") from error
    counts = [shard.samples for shard in corpus.shards]
    if members.dtype != _MEMBER or members.shape != (sum(counts),):
        raise DataError(f"{root / _MEMBERS_NAME}: not one row per clip of the corpus. {again}")
    if (members["shard"] != np.repeat(np.arange(len(counts)), counts)).any():
        raise DataError(f"{root / _MEMBERS_NAME}: not in the order of the corpus. {again}")
    if _fingerprint(content, members.tobytes()) != fingerprint:
        # A row too many bits off would give a clip the tokens of another.
        raise DataError(f"{index}: not the one that was made with {_MEMBERS_NAME}. {again}")
    return Tokens(root, corpus, name, settings, packing, shards)


def layout_values(settings: TokenSettings, packing: Packing | None) -> dict[str, Any]:
    """What the index says of tokens: ``bits`` only of packed ones, or plain ones, which had no
    such field, would get another fingerprint."""
    return asdict(settings) | ({} if packing is None else {"bits": packing.bits})


def _array_file(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _fingerprint(content: dict[str, Any], members: bytes) -> str:
    """sha256 over all that the index says of the tokens."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    digest.update(members)
    return digest.hexdigest()
