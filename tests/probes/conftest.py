"""Rendered tracks, shared by all probe tests: rendering is what costs time here."""

from pathlib import Path

import pytest

from etude.probes.corpus import CorpusSettings, DemoTracks


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probe-cache")


@pytest.fixture(scope="session")
def solos(cache: Path) -> DemoTracks:
    return DemoTracks(CorpusSettings("solo", 54, 16_000, seconds=5.0), cache=cache)


@pytest.fixture(scope="session")
def mixes(cache: Path) -> DemoTracks:
    return DemoTracks(CorpusSettings("mix", 48, 16_000, seconds=5.0), cache=cache)
