"""What several tests of training share: a corpus with codec tokens, a world of one."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from audio_files import tune, write
from codec_weights import standin_weights
from torch import distributed as dist

from etude.data.prepare import PrepareSettings, prepare
from etude.data.shards import Corpus, open_corpus
from etude.pretrain.codec import Codec, load_codec
from etude.pretrain.encoding import encode_corpus


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-in weights of EnCodec."""
    return standin_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def codec(weights: Path) -> Codec:
    return load_codec(weights)


@pytest.fixture(scope="session")
def short_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Five tracks of 6 to 10 s in clips of 4 s at 24 kHz, in several shards, without tokens."""
    folder = tmp_path_factory.mktemp("short_corpus")
    for number in range(5):
        write(folder / "music" / f"tune {number}.flac", tune(6 + number, seed=number))
    settings = PrepareSettings(clip_seconds=4, min_seconds=2, shard_mb=0.4, valid_fraction=0.2)
    return prepare([folder / "music"], folder / "corpus", settings, workers=0)


@pytest.fixture(scope="session")
def encoded(short_corpus: Corpus, codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The same with tokens, made in one go. Copy it before changing anything."""
    root = tmp_path_factory.mktemp("encoded") / "corpus"
    shutil.copytree(short_corpus.root, root)
    corpus = open_corpus(root)
    assert encode_corpus(corpus, codec, lanes=3, chunk_seconds=2.0) is not None
    return corpus


@pytest.fixture(scope="session")
def packed(short_corpus: Corpus, codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The same with packed tokens. Copy it before changing anything."""
    root = tmp_path_factory.mktemp("packed") / "corpus"
    shutil.copytree(short_corpus.root, root)
    corpus = open_corpus(root)
    assert encode_corpus(corpus, codec, lanes=3, chunk_seconds=2.0, packed=True) is not None
    return corpus


@pytest.fixture(scope="session")
def world_of_one() -> Iterator[None]:
    """Needs no port. Once per session: DeepSpeed keeps the first group that it sees."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def process_group(world_of_one: None) -> Iterator[None]:
    """A world of one, and what DeepSpeed reads of the environment."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these tensors are too small to share
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        patch.setenv("DS_ACCELERATOR", "cpu")
        yield
    torch.set_num_threads(threads)
