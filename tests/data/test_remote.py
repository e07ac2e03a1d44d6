"""A corpus at a URL: the same batches as from a folder, from a store that may fail."""

import http.server
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from test_pipeline import CROP, HOP, tensors

from etude.data.batch import AudioBatch
from etude.data.errors import DataError, InputError
from etude.data.pipeline import training_batches
from etude.data.place import is_url
from etude.data.plan import BatchShare, CropPlan
from etude.data.remote import Cache, open_remote
from etude.data.shards import Corpus, open_corpus
from etude.data.tokens import (
    TokenSettings,
    open_tokens,
    shard_keys,
    tokens_root,
    write_token_index,
    write_token_shard,
)

SHARE = BatchShare(global_batch=6, micro_batch=3, rank=0, ranks=1)


class Store(http.server.ThreadingHTTPServer):
    """A web server over a folder, which counts, and fails where it is told to."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.asked: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        """How often a file is still to fail, by half of its bytes or an error in turn."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/corpus"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        name = self.path.removeprefix("/corpus/")
        path = self.server.root / name
        self.server.asked[name] += 1
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.server.failures[name] -= 1
        failing = self.server.failures[name] >= 0
        if failing and self.server.failures[name] % 2:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if failing else content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def store(small_corpus: Corpus, tmp_path: Path) -> Iterator[Store]:
    shutil.copytree(small_corpus.root, tmp_path / "store")
    with Store(tmp_path / "store") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the waits between tries, and without the memory of what failed."""
    monkeypatch.setattr("etude.data.remote._FIRST_WAIT", 0.001)
    monkeypatch.setattr("etude.data.remote._given_up", {})


def opened(store: Store, tmp_path: Path, *, limit: int = 1 << 30) -> Corpus:
    return open_remote(store.url, Cache(tmp_path / "cache", limit))


def take(
    corpus: Corpus, *, workers: int = 0, batches: int = 14, blocks: int = 2
) -> list[AudioBatch]:
    plan = CropPlan(
        corpus.split("train"), crop_samples=CROP, hop_samples=HOP, seed=7, block_shards=blocks
    )
    stream = training_batches(plan, SHARE, first_update=0, workers=workers, pin_memory=False)
    with closing(stream) as endless:  # type: ignore[type-var]
        return list(islice(endless, batches))


def same(one: list[AudioBatch], other: list[AudioBatch]) -> bool:
    pairs = [
        (a, b)
        for first, second in zip(one, other, strict=True)
        for a, b in zip(tensors(first), tensors(second), strict=True)
    ]
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder(
    store: Store, small_corpus: Corpus, tmp_path: Path, workers: int
) -> None:
    assert same(take(opened(store, tmp_path), workers=workers), take(small_corpus))
    shards = {shard.file for shard in small_corpus.shards if shard.split == "train"}
    assert {name for name in store.asked if name.endswith(".tar")} == shards
    assert all(store.asked[name] == 1 for name in shards)  # however many processes want it


def test_what_is_in_the_cache_is_not_fetched_again(store: Store, tmp_path: Path) -> None:
    first = take(opened(store, tmp_path))
    store.asked.clear()
    assert same(take(opened(store, tmp_path)), first)
    assert set(store.asked) == {"index.json"}


def test_a_cache_with_room_for_one_shard_gives_the_same_batches(
    store: Store, small_corpus: Corpus, tmp_path: Path
) -> None:
    largest = max(shard.bytes for shard in small_corpus.shards)
    corpus = opened(store, tmp_path, limit=largest)
    assert same(take(corpus, workers=2), take(small_corpus))
    held = [path.stat().st_size for path in corpus.root.glob("*.tar")]
    assert held and sum(held) <= largest


def test_a_store_that_fails_now_and_then_is_asked_again(
    store: Store, small_corpus: Corpus, tmp_path: Path
) -> None:
    for name in ("index.json", "members.npy", *(shard.file for shard in small_corpus.shards)):
        store.failures[name] = 3
    batches = take(opened(store, tmp_path))
    assert same(batches, take(small_corpus))
    assert not any(int(batch.skipped) for batch in batches)


def test_a_shard_that_is_gone_costs_its_clips_alone_and_is_not_asked_for_each_of_them(
    store: Store, small_corpus: Corpus, tmp_path: Path
) -> None:
    corpus = opened(store, tmp_path)
    gone = next(shard for shard in small_corpus.shards if shard.split == "train")
    (store.root / gone.file).unlink()
    batches, whole = take(corpus), take(small_corpus)
    skipped = sum(int(batch.skipped) for batch in batches)
    assert skipped >= gone.samples
    assert store.asked[gone.file] == 1  # a file that is not there is not waited for
    split = small_corpus.split("train")
    plan = CropPlan(split, crop_samples=CROP, hop_samples=HOP, seed=7, block_shards=2)
    number = small_corpus.shards.index(gone)
    for one, other in zip(batches, whole, strict=True):
        for row, position in enumerate(other.sample_ids.tolist()):
            lost = int(split.members[plan.crop(position).clip]["shard"]) == number
            assert torch.equal(one.waveform[row], other.waveform[row]) != lost


def test_bytes_that_are_not_the_indexed_ones_are_never_used(
    store: Store, small_corpus: Corpus, tmp_path: Path
) -> None:
    shard = next(shard for shard in small_corpus.shards if shard.split == "train")
    data = bytearray((store.root / shard.file).read_bytes())
    data[len(data) // 2] ^= 1
    (store.root / shard.file).write_bytes(data)
    corpus = opened(store, tmp_path)
    with pytest.raises(DataError, match=f"{shard.file}: cannot be fetched .*but the index says"):
        corpus.split("train").read_audio_bytes(0)
    assert not list(corpus.root.glob("train-000000.tar*"))


def test_a_corpus_that_was_made_anew_shares_nothing_with_the_old_one(
    store: Store, tmp_path: Path
) -> None:
    old = opened(store, tmp_path)
    take(old)
    index = store.root / "index.json"
    index.write_text(index.read_text().replace(old.fingerprint, "f" * 64))
    with pytest.raises(DataError, match="fingerprints differ"):
        opened(store, tmp_path)
    assert take(old)  # the old one's files are still there


def test_a_fingerprint_cannot_lead_out_of_the_cache(store: Store, tmp_path: Path) -> None:
    index = store.root / "index.json"
    fingerprint = open_corpus(store.root).fingerprint
    index.write_text(index.read_text().replace(fingerprint, "../../../outside"))
    with pytest.raises(DataError, match="is no sha256"):
        opened(store, tmp_path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_tokens_come_from_the_store_too(
    store: Store, small_corpus: Corpus, tmp_path: Path, packed: bool
) -> None:
    local = open_corpus(store.root)
    settings = TokenSettings("numbers", "", local.sample_rate, HOP, 2, 1024)
    packing = settings.packing if packed else None
    root = tokens_root(local, "numbers")
    root.mkdir(parents=True)
    for shard, keys in shard_keys(local):
        split = local.split(shard.split)
        lengths = {split.key(clip): int(n) // HOP for clip, n in enumerate(split.num_samples)}
        write_token_shard(
            root / shard.file,
            "numbers",
            ((key, np.full((lengths[key], 2), len(key), np.uint16)) for key in keys),
            packing=packing,
        )
    stored = write_token_index(local, "numbers", settings, packing=packing)
    fetched = open_tokens(opened(store, tmp_path), "numbers")
    assert fetched.settings == stored.settings
    for split in ("train", "valid"):
        for clip in range(len(local.split(split))):
            np.testing.assert_array_equal(
                fetched.split(split).read(clip), stored.split(split).read(clip)
            )


def test_no_corpus_at_a_url_says_so(store: Store, tmp_path: Path) -> None:
    (store.root / "index.json").unlink()
    with pytest.raises(InputError, match=r"/corpus/index\.json: cannot be read"):
        opened(store, tmp_path)


@pytest.mark.parametrize(
    "place", ["pipe:rm -rf /", "simplecache::s3://b/c", "ftp://a/b", "ssh://host/x"]
)
def test_nothing_but_a_folder_or_a_known_store_is_opened(place: str) -> None:
    with pytest.raises(InputError, match="no command is run"):
        is_url(place)
    assert is_url("s3://bucket/corpus") and is_url("hf://datasets/me/corpus")
    assert not is_url("corpora/demo") and not is_url("C:/music")


@pytest.mark.parametrize("file", ["../outside.tar", "/etc/passwd", "a/b.tar", ".hidden", ""])
def test_an_index_cannot_lead_out_of_its_folder(
    small_corpus: Corpus, tmp_path: Path, file: str
) -> None:
    shutil.copytree(small_corpus.root, tmp_path / "corpus")
    index = tmp_path / "corpus" / "index.json"
    index.write_text(index.read_text().replace('"train-000000.tar"', f'"{file}"'))
    with pytest.raises(DataError, match="is no name of a file in this folder"):
        open_corpus(tmp_path / "corpus")
