"""Probes of data sets from files to scores: what can be heard is found, what cannot is not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import local_copies as copies
import numpy as np
import pytest
import torch
from probed_encoder import save_probed_encoder

from etude.probes.datasets.gtzan import GENRES
from etude.probes.datasets.run import probe_datasets
from etude.probes.heads import HeadOptions

SCRIPT = Path(__file__).parents[2] / "launch" / "probe.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_probed_encoder(tmp_path_factory.mktemp("encoder") / "model", layers=1)


def ask(model: Path, data: str, folder: Path, *tasks: str) -> dict[str, Any]:
    """What ``results.json`` says of each task: the model's results and log-mel's."""
    out = folder / "out"
    probe_datasets(
        [model],
        folders={data: folder},
        tasks=tasks,
        out=out,
        device=torch.device("cpu"),
        heads=HeadOptions(("linear", "mlp"), seeds=1, weighted_sum=True),
        references=("log-mel",),
    )
    content: dict[str, Any] = json.loads((out / "results.json").read_text())
    return content


def every_head(content: dict[str, Any], task: str) -> list[float]:
    """The first metric on the test of both models under both heads."""
    found = content["tasks"][task]["results"]
    return [
        result["test"]["value"]
        for name in ("model", "log-mel")
        for result in (found[name], found[name]["heads"]["mlp"])
    ]


def genres(folder: Path, *, audible: bool) -> Path:
    """Twelve tracks of each genre, which has a pitch of its own; or none, if it is not audible."""
    lists = {
        split: [f"{genre}.{number:05d}" for genre in GENRES for number in numbers]
        for split, numbers in (
            ("train", range(5)),
            ("valid", range(5, 8)),
            ("test", range(8, 12)),
        )
    }
    names = [name for part in lists.values() for name in part]
    hertz = {name: 150.0 * 1.4 ** GENRES.index(name.split(".")[0]) for name in names}
    if not audible:
        shuffled = np.random.default_rng(0).permutation(list(hertz.values())).tolist()
        hertz = dict(zip(names, shuffled, strict=True))
    return copies.gtzan(folder, lists, hertz=hertz)


def tags(folder: Path, *, audible: bool) -> Path:
    """Two tags, each a tone of its own; the other 48 never hold in the test."""
    random = np.random.default_rng(0)
    rows = []
    for place, count in (("0", 60), ("c", 30), ("d", 60)):
        for number in range(count):
            name = f"{place}/band-album-{number:02d}-song-0-29.mp3"
            holds = {tag: int(random.random() < 0.5) for tag in ("low", "high")}
            rows.append((name, holds))
            path = folder / "mp3" / name
            heard = holds if audible else {t: int(random.random() < 0.5) for t in holds}
            hertz = {(0, 0): 900.0, (1, 0): 200.0, (0, 1): 3000.0, (1, 1): 0.0}
            pitch = hertz[heard["low"], heard["high"]]
            copies.sound(path, hertz=pitch or 200.0, also=0.0 if pitch else 3000.0)
    return copies.magnatagatune(folder, rows)


def moods(folder: Path, *, audible: bool) -> Path:
    """Songs that are the more aroused the louder, and the more pleasant the higher."""
    random = np.random.default_rng(0)
    songs, artists = [], ["Artist One", "Artist Two", "Artist Three", "Artist Four"]
    for number in range(120):
        part = "evaluation" if number % 3 == 0 else "development"
        arousal, valence = (float(value) for value in random.uniform(1, 9, size=2))
        songs.append((artists[number % 4], part, arousal, valence))
        heard = (arousal, valence) if audible else random.uniform(1, 9, size=2)
        copies.sound(
            folder / "clips_45seconds" / f"{number + 2}.mp3",
            level=0.002 * 10 ** (heard[0] / 5),
            hertz=100 * 1.5 ** heard[1],
        )
    return copies.emomusic(folder, songs)


def test_genres_that_can_be_heard_are_found(model: Path, tmp_path: Path) -> None:
    content = ask(model, "gtzan", genres(tmp_path, audible=True), "gtzan_genre")
    assert min(every_head(content, "gtzan_genre")) > 0.6
    assert content["tasks"]["gtzan_genre"]["splits"]["test"]["examples"] == 40


def test_genres_that_cannot_be_heard_are_not(model: Path, tmp_path: Path) -> None:
    content = ask(model, "gtzan", genres(tmp_path, audible=False), "gtzan_genre")
    assert max(every_head(content, "gtzan_genre")) < 0.3


def test_tags_that_can_be_heard_are_found(model: Path, tmp_path: Path) -> None:
    content = ask(model, "magnatagatune", tags(tmp_path, audible=True), "magnatagatune")
    assert min(every_head(content, "magnatagatune")) > 0.85
    found = content["tasks"]["magnatagatune"]["results"]["log-mel"]
    assert found["further"]["average_precision"]["value"] > 0.85
    told = content["settings"]["data"]["magnatagatune"]["remarks"]
    assert told[0].startswith("magnatagatune: 48 of 50 have no example in the test")


def test_tags_that_cannot_be_heard_are_not(model: Path, tmp_path: Path) -> None:
    content = ask(model, "magnatagatune", tags(tmp_path, audible=False), "magnatagatune")
    assert 0.3 < min(every_head(content, "magnatagatune"))
    assert max(every_head(content, "magnatagatune")) < 0.7


def test_moods_that_can_be_heard_are_found(model: Path, tmp_path: Path) -> None:
    content = ask(model, "emomusic", moods(tmp_path, audible=True), "emomusic")
    # The encoder takes each recording's level away first, and can hear its pitch alone.
    assert min(every_head(content, "emomusic")[2:]) > 0.6
    found = content["tasks"]["emomusic"]["results"]["log-mel"]
    each = [found["further"][f"r2_{name}"]["value"] for name in ("arousal", "valence")]
    assert np.mean(each) == pytest.approx(found["test"]["value"]) and min(each) > 0.5


def test_moods_that_cannot_be_heard_are_not(model: Path, tmp_path: Path) -> None:
    content = ask(model, "emomusic", moods(tmp_path, audible=False), "emomusic")
    assert max(every_head(content, "emomusic")) < 0.2


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_the_command_asks_several_data_sets_and_names_what_is_broken(
    model: Path, tmp_path: Path
) -> None:
    gtzan = genres(tmp_path / "GTZAN", audible=True)
    (gtzan / "genres" / "jazz" / "jazz.00003.wav").write_bytes(b"RIFF\0\0\0\0 no music")
    emomusic = moods(tmp_path / "EMO", audible=True)
    out = tmp_path / "out"
    data = ("--data", f"gtzan={gtzan}", "--data", f"emomusic={emomusic}")
    result = run(model, *data, "--out", out, "--references", "log-mel")
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr and "Warning" not in result.stderr
    assert "gtzan_genre: 49 train, 30 valid, 40 test" in result.stdout
    assert "1 files are missing or broken" in result.stdout
    assert "jazz.00003.wav" in result.stdout
    assert "emomusic (r2)" in result.stdout and "emomusic (r2_valence)" in result.stdout
    content = json.loads((out / "results.json").read_text())
    assert set(content["tasks"]) == {"gtzan_genre", "emomusic"}
    assert len(content["settings"]["data"]["gtzan"]["unusable"]) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--tasks", "gtzan_genre"), "gtzan_genre needs a local copy: give --data gtzan=FOLDER"),
        (("--data", "gtzan=x", "--tasks", "key"), "--tasks must be among gtzan_genre, "),
        (("--data", "gtzan=x", "--tracks", "9"), "--tracks is for rendered tracks"),
        (("--data", "gtzan=nowhere"), "--data gtzan=nowhere: no such folder"),
    ],
)
def test_what_does_not_fit_ends_with_status_2(
    model: Path, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    result = run(model, *arguments, "--out", tmp_path / "out")
    assert result.returncode == 2 and told in result.stderr
