"""A corpus at a URL: its files come to a local folder as they are needed, and go when it is full.

Whole shards, read once and in sequence, checked against the index' sha256 as they arrive. The
processes of a node share the folder: one of them fetches a file, the others wait for it. What was
evicted is fetched again when it is needed, so the folder's size decides the traffic and never what
is heard.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, final

import aiohttp
import fsspec

from etude.data.blocks import BLOCKS_NAME
from etude.data.errors import DataError, InputError
from etude.data.files import file_sha256, write_bytes
from etude.data.retry import with_retries
from etude.data.shards import (
    INDEX_NAME,
    MEMBERS_NAME,
    Corpus,
    check_blocks,
    check_members,
    parse_index,
)

Result = TypeVar("Result")

_TRIES = 5
_FIRST_WAIT = 0.5
_STALL_SECONDS = 60.0
"""A web server that sends nothing for so long has failed."""
_GIVEN_UP_SECONDS = 60.0
"""After all tries failed, a file is not asked for again for so long."""

_given_up: dict[str, tuple[float, str]] = {}


@final
@dataclass(frozen=True)
class Cache:
    """Where files of remote corpora are kept on this node."""

    folder: Path
    limit_bytes: int
    """Largest size of the shards of one corpus together, beside those that are being fetched."""


@final
@dataclass(frozen=True)
class Remote:
    """A folder at a URL. Small and picklable: it travels to data workers as it is."""

    url: str
    folder: Path
    """Its local files."""
    limit_bytes: int

    def fetch(self, file: str, *, size: int, sha256: str) -> Path:
        """The local copy of a shard, fetched if it is not there.

        :raises DataError: if the store does not give it, or gives other bytes.
        """
        path = self.folder / file
        if _is_there(path, size):
            return path
        url = f"{self.url}/{file}"
        if url in _given_up and time.monotonic() - _given_up[url][0] < _GIVEN_UP_SECONDS:
            raise DataError(_given_up[url][1])
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if _is_there(path, size):  # another process was faster
                return path
            draft = path.with_name(f"{path.name}.part")
            try:
                _retried(lambda: _download(url, draft, size, sha256))
                with _locked(self.folder / "room"):  # others publish into it too
                    self._make_room(size)
                    draft.replace(path)
            except (OSError, aiohttp.ClientError) as failure:
                what = f"{url}: cannot be fetched ({failure}). Check the store and the way to it."
                _given_up[url] = (time.monotonic(), what)
                raise DataError(what) from failure
            finally:
                draft.unlink(missing_ok=True)
        return path

    def fetch_index(self, file: str) -> Path:
        """A small file as a local one; fetched anew each time, for it may have changed.

        :raises InputError: if there is none, or the store cannot be reached.
        """
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            write_bytes(path, _read(f"{self.url}/{file}"))
        return path

    def _make_room(self, size: int) -> None:
        """Removes the files that were not used for longest, until ``size`` more bytes may come."""
        shards = []
        for path in self.folder.rglob("*.tar"):
            try:
                found = path.stat()
            except FileNotFoundError:  # another process made room too
                continue
            shards.append((found.st_mtime_ns, found.st_size, path))
        held = sum(bytes_ for _, bytes_, _ in shards)
        for _, bytes_, path in sorted(shards):
            if held + size <= self.limit_bytes:
                break
            path.unlink(missing_ok=True)
            held -= bytes_


def open_remote(url: str, cache: Cache) -> Corpus:
    """The corpus at ``url``: its index is fetched now, a shard when it is first read.

    :raises InputError: if there is none, or the store cannot be reached.
    :raises DataError: if its index is damaged.
    """
    found = parse_index(_read(f"{url}/{INDEX_NAME}"), Path(url))
    # By content: a corpus that was made anew at this URL shares nothing with the old one.
    folder = cache.folder / found.fingerprint[:16]
    folder.mkdir(parents=True, exist_ok=True)
    corpus = replace(found, root=folder, store=Remote(url, folder, cache.limit_bytes))
    _have(corpus, MEMBERS_NAME, check_members)
    if corpus.blocks_sha256 is not None:
        _have(corpus, BLOCKS_NAME, check_blocks)
    return corpus


def _have(corpus: Corpus, name: str, check: Callable[[Corpus], None]) -> None:
    """Fetches an array of the index unless it is there."""
    path = corpus.root / name
    with _locked(path):
        if not path.is_file():
            write_bytes(path, _read(f"{corpus.place}/{name}"))
        try:
            check(corpus)
        except DataError:
            path.unlink()
            raise


def _read(url: str) -> bytes:
    def read() -> bytes:
        system, name = _opened(url)
        content: bytes = system.cat_file(name)
        return content

    try:
        return _retried(read)
    except (OSError, aiohttp.ClientError, ImportError) as error:
        raise InputError(f"{url}: cannot be read ({error}). Correct data.corpus.") from error


def _opened(url: str) -> tuple[Any, str]:
    """The store of a URL, and the file's name there."""
    options = {}
    if url.startswith(("http://", "https://")):
        # By default a file may take five minutes: a stalled one would, and a large one needs more.
        patience = aiohttp.ClientTimeout(sock_connect=_STALL_SECONDS, sock_read=_STALL_SECONDS)
        options["client_kwargs"] = {"timeout": patience}
    system, name = fsspec.core.url_to_fs(url, **options)
    return system, str(name)


def _retried(action: Callable[[], Result]) -> Result:
    flaky = (OSError, aiohttp.ClientError)
    return with_retries(action, tries=_TRIES, first_wait=_FIRST_WAIT, flaky=flaky)


def _download(url: str, path: Path, size: int, sha256: str) -> None:
    system, name = _opened(url)
    system.get_file(name, str(path))
    found = (path.stat().st_size, file_sha256(path))
    if found != (size, sha256):
        raise OSError(
            f"{found[0]} bytes with sha256 {found[1][:12]}, but the index says {size} and "
            f"{sha256[:12]}"
        )


def _is_there(path: Path, size: int) -> bool:
    try:
        if path.stat().st_size != size:
            return False
        os.utime(path)  # used now
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process per file at a time."""
    with path.with_name(f".{path.name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
