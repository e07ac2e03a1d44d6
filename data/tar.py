"""A strict walk over a shard: headers checked, members inside the file, the end present.

Ordinary readers are lenient: a shard cut at a member boundary, or with a flipped bit in a header,
reads as a shorter shard and nobody notices that samples are gone. The walk below runs once, when
the index is built, and refuses all of it.

    blocks of 512 bytes -> headers (checksum, kind, name, size) -> members
    -> pairs KEY.flac (or KEY.wav) + KEY.json -> two zero blocks
"""

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn, final

from etude.data.errors import DataError

BLOCK = 512
"""Bytes of a tar block; headers are one block, members are padded to whole blocks."""

_ZERO_BLOCK = bytes(BLOCK)
_CHECKSUM = re.compile(rb"[0-7]{6}\0 ")
_OCTAL = re.compile(rb" *[0-7]+[ \0]*")
_REGULAR = (b"0", b"\0")
_PAX_LIMIT = 1 << 20
_MEMBER_LIMIT = 1 << 30
"""Bytes of a member, which is held in memory: an hour of audio has 200 MB."""


@final
@dataclass(frozen=True)
class Member:
    """One file inside a tar."""

    name: str
    offset: int
    """Byte offset of the first byte of content."""
    size: int
    """Bytes of content."""
    content: bytes


@final
@dataclass(frozen=True)
class Pair:
    """One sample: its audio member and its metadata member."""

    key: str
    audio: Member
    metadata: Member


def header_name(header: bytes) -> str:
    """The member name in a header block, its ustar prefix included."""
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:262] == b"ustar" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8")


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file without times or owners, so that equal content gives equal bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o444
    tar.addfile(member, io.BytesIO(content))


def walk_members(path: Path, observe: Callable[[bytes], object] = len) -> Iterator[Member]:
    """Yields the members of a tar in order; :class:`DataError` at the first thing wrong.

    ``observe`` sees every byte of the file once and in order (a running hash); it is complete when
    the walk is.
    """
    with path.open("rb") as file:
        yield from _Walk(path, file, observe).members()


def walk_pairs(
    path: Path, observe: Callable[[bytes], object] = len, *, audio_extension: str = "flac"
) -> Iterator[Pair]:
    """Yields a shard's samples: adjacent ``KEY.flac`` and ``KEY.json``, every key once.

    :param audio_extension: what stands in the place of ``flac``.
    """
    seen: set[str] = set()
    audio: Member | None = None
    for member in walk_members(path, observe):
        key, _, extension = member.name.partition(".")
        if audio is None:
            if extension != audio_extension or not key or key.startswith("/"):
                _refuse(
                    path,
                    member.offset,
                    f"member {member.name!r} where a KEY.{audio_extension} should begin a sample",
                )
            if key in seen:
                _refuse(path, member.offset, f"a second sample with the key {key!r}")
            seen.add(key)
            audio = member
        else:
            if member.name != f"{audio.name.partition('.')[0]}.json":
                _refuse(
                    path,
                    member.offset,
                    f"member {member.name!r} where the JSON of {audio.name!r} should be",
                )
            yield Pair(key, audio, member)
            audio = None
    if audio is not None:
        _refuse(path, audio.offset, f"member {audio.name!r} has no JSON after it")


def _refuse(path: Path, offset: int, what: str) -> NoReturn:
    raise DataError(
        f"{path}: damaged shard, at byte {offset}: {what}. Copy the shard again from where it "
        f"was made, or delete "
        f"the folder and run launch/prepare.py again."
    )


@final
class _Walk:
    """The state of one walk: where we are, and who wants to see the bytes."""

    def __init__(self, path: Path, file: BinaryIO, observe: Callable[[bytes], object]) -> None:
        self.path = path
        self.file = file
        self.observe = observe
        self.offset = 0
        self.total = path.stat().st_size

    def members(self) -> Iterator[Member]:
        if self.total % BLOCK:
            _refuse(
                self.path, self.total, f"the file ends inside a block of {BLOCK} bytes, it was cut"
            )
        pax_name: str | None = None
        while True:
            at = self.offset
            header = self._read(BLOCK, "a header, or the two zero blocks that end a tar,")
            if header == _ZERO_BLOCK:
                break
            kind, size = self._check(header, at)
            padded = -(-size // BLOCK) * BLOCK
            if size > _MEMBER_LIMIT:
                _refuse(self.path, at, f"a member of {size} bytes; no clip has more than 2^30")
            if at + BLOCK + padded > self.total:
                _refuse(self.path, at, f"a member of {size} bytes reaches past the end of the file")
            if kind == b"x":
                if size > _PAX_LIMIT:
                    _refuse(self.path, at, f"an extended header of {size} bytes")
                pax_name = self._pax_name(self._read(padded, "an extended header")[:size], at)
                continue
            if kind not in _REGULAR:
                _refuse(
                    self.path,
                    at,
                    f"a member of kind {kind!r}; only plain files belong into a shard",
                )
            name = pax_name or self._name(header, at)
            pax_name = None
            content = self._read(padded, name)
            if any(content[size:]):
                _refuse(self.path, at, f"the padding after {name!r} is not zero")
            yield Member(name, at + BLOCK, size, content[:size])
        if pax_name is not None:
            _refuse(self.path, self.offset, "an extended header with no member after it")
        if self._read(BLOCK, "the second zero block that ends a tar") != _ZERO_BLOCK:
            _refuse(self.path, self.offset - BLOCK, "one zero block where a tar ends with two")
        while self.offset < self.total:
            at = self.offset
            if any(self._read(min(1 << 16, self.total - at), "padding")):
                _refuse(self.path, at, "data after the end of the tar")

    def _read(self, count: int, what: str) -> bytes:
        data = self.file.read(count)
        if len(data) < count:
            _refuse(self.path, self.offset, f"the file ends where {what} should be, it was cut")
        self.offset += count
        self.observe(data)
        return data

    def _check(self, header: bytes, at: int) -> tuple[bytes, int]:
        field = header[148:156]
        if not _CHECKSUM.fullmatch(field):
            _refuse(self.path, at, "no tar header here: its checksum is not a number")
        expected = int(field[:6], 8)
        if sum(header[:148]) + 8 * 32 + sum(header[156:]) != expected:
            _refuse(self.path, at, "the header's checksum does not match its content")
        if not _OCTAL.fullmatch(header[124:136]):
            _refuse(self.path, at, "the header's size is not an octal number")
        return header[156:157], int(header[124:136].strip(b" \0"), 8)

    def _name(self, header: bytes, at: int) -> str:
        try:
            return header_name(header)
        except UnicodeDecodeError:
            _refuse(self.path, at, "the member's name is not UTF-8")

    def _pax_name(self, records: bytes, at: int) -> str | None:
        """The ``path`` record of an extended header; records are ``LENGTH KEYWORD=VALUE\\n``."""
        name: str | None = None
        while records:
            digits, space, _ = records.partition(b" ")
            length = int(digits) if space and digits.isdigit() else 0
            record = records[len(digits) + 1 : length]
            if length > len(records) or not record.endswith(b"\n") or b"=" not in record:
                _refuse(self.path, at, "an extended header that cannot be read")
            keyword, _, value = record[:-1].partition(b"=")
            if keyword == b"path":
                try:
                    name = value.decode("utf-8")
                except UnicodeDecodeError:
                    _refuse(self.path, at, "the member's name is not UTF-8")
            records = records[length:]
        return name
