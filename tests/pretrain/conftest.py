"""A small corpus with codec tokens, encoded once for all tests that need one."""

import shutil
from pathlib import Path

import pytest
from audio_files import tune, write
from codec_weights import standin_weights

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
