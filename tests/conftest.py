"""Fixtures that several packages' tests share."""

import json
import signal
from collections.abc import Iterator

import pytest
from audio_files import tune, write

from etude.data.prepare import PrepareSettings, prepare
from etude.data.shards import Corpus
from etude.launch.cli import STOPS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reference",
        metavar="FOLDER",
        help="folder with the MERT authors' configuration_MERT.py and modeling_MERT.py",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Gives signals back their handlers: a process that has trained ignores them to its end.

    Commands that later tests start would inherit that.
    """
    handlers = {number: signal.getsignal(number) for number in STOPS}
    outcome = yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return outcome


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Eight tracks of 11 to 18 s with labels, in clips of 6 s at 24 kHz, in several shards.

    Shared by the whole session: copy the folder before changing anything in it.
    """
    folder = tmp_path_factory.mktemp("small_corpus")
    for number in range(8):
        path = folder / "music" / f"tune {number}.flac"
        write(path, tune(11 + number, seed=number))
        path.with_suffix(".json").write_text(json.dumps({"number": number}), encoding="utf-8")
    settings = PrepareSettings(clip_seconds=6, min_seconds=3, shard_mb=1, valid_fraction=0.25)
    return prepare([folder / "music"], folder / "corpus", settings, workers=0)
