"""Rendered tracks, shared by all probe tests: rendering is what costs time here."""

from pathlib import Path

import pytest

from etude.probes.corpus import Corpus, CorpusSettings, open_corpus


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probe-cache")


@pytest.fixture(scope="session")
def solos(cache: Path) -> Corpus:
    return open_corpus(CorpusSettings("solo", 54, 16_000, seconds=5.0), cache=cache)
