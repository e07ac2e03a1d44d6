import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from etude.models.config import EncoderConfig
from etude.models.encoder import Encoder
from etude.models.weights import save_encoder
from etude.probes.corpus import Corpus

SCRIPT = Path(__file__).parents[2] / "launch" / "probe.py"


def probe(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    # One thread: the model is so small that a second one only waits, for long on a busy machine.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "model"
    folder.mkdir()
    config = EncoderConfig(
        sample_rate=16_000,
        conv_dims=(16,) * 7,
        layers=2,
        dim=32,
        ffn_dim=64,
        heads=2,
        position_groups=4,
        norm="pre",
    )
    save_encoder(Encoder(config), folder)
    return folder


def test_a_probe_prints_a_table_and_writes_what_is_documented(
    model: Path, tmp_path: Path, cache: Path, solos: Corpus
) -> None:
    out = tmp_path / "out"
    tracks, seconds = solos.settings.tracks, solos.settings.seconds
    result = probe(
        *(model, "--out", out, "--tasks", "instrument,pitch", "--cache", cache),
        *("--tracks", tracks, "--seconds", seconds),
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    rows = [line.split("  ")[0] for line in result.stdout.splitlines()]
    expected = ["model", "untrained", "log-mel", "majority", "chance"]
    differences = ["model - untrained", "model - log-mel"]
    table = rows.index("test accuracy [95 %] (layer)")
    assert rows[table + 1 : table + 8] == expected + differences

    written = json.loads((out / "results.json").read_text())
    assert written["settings"]["tracks"] == {"solo": tracks}
    assert [row["name"] for row in written["models"]] == expected[:3]
    for task in written["tasks"].values():
        assert sum(part["tracks"] for part in task["splits"].values()) <= tracks
        assert set(task["splits"]["test"]["class_counts"]) == set(task["classes"])
        assert 0.0 < task["chance"] < 0.1 and 0.0 <= task["majority_rate"] < 0.3
        for name, layers in (("model", 3), ("untrained", 3), ("log-mel", 1)):
            found = task["results"][name]
            assert [layer["layer"] for layer in found["layers"]] == list(range(layers))
            chosen = found["layers"][found["chosen_layer"]]
            best = max(layer["valid_accuracy"] for layer in found["layers"])
            assert chosen["valid_accuracy"] == found["valid_accuracy"] == best
            assert chosen["test_accuracy"] == found["test"]["value"]
            assert found["test"]["low"] <= found["test"]["value"] <= found["test"]["high"]
        for difference in task["differences"]:
            values = [task["results"][difference[side]] for side in ("model", "baseline")]
            expected_value = values[0]["test"]["value"] - values[1]["test"]["value"]
            assert difference["value"] == pytest.approx(expected_value)
    assert (out / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_model_ends_with_status_2_and_one_paragraph(tmp_path: Path) -> None:
    result = probe(tmp_path / "nowhere", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.startswith("error: no model at") and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_task_names_the_known_ones(tmp_path: Path) -> None:
    result = probe(tmp_path, "--out", tmp_path / "out", "--tasks", "genre")
    assert result.returncode == 2
    assert "key, instrument, pitch" in result.stderr
