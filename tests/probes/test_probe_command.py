import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from probed_encoder import save_probed_encoder

from etude.data.errors import InputError
from etude.launch import probe as command
from etude.pretrain.report_probe import read_probe
from etude.probes.comparison import read_answers
from etude.probes.corpus import DemoTracks
from etude.probes.datasets.run import probe_datasets
from etude.probes.heads import HEAD_NAMES
from etude.probes.lineup import REFERENCES
from etude.probes.run import run_probe

SCRIPT = Path(__file__).parents[2] / "launch" / "probe.py"


def probe(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    # One thread: the model is so small that a second one only waits, for long on a busy machine.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_probed_encoder(tmp_path / "model", layers=2)


def test_a_probe_prints_a_table_and_writes_what_is_documented(
    model: Path, tmp_path: Path, cache: Path, solos: DemoTracks
) -> None:
    out = tmp_path / "out"
    tracks, seconds = solos.num_tracks, solos.seconds
    result = probe(
        *(model, "--out", out, "--tasks", "instrument,pitch", "--cache", cache),
        *("--tracks", tracks, "--seconds", seconds),
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    rows = [line.split("  ")[0] for line in result.stdout.splitlines()]
    expected = ["model", "untrained", "log-mel", "chroma", "mfcc"]
    summed = [row + more for row in expected[:2] for more in ("", ", all layers")]
    differences = [f"model - {baseline}" for baseline in expected[1:]]
    table = rows.index("test accuracy [95 %] (layer)")
    below = [*summed, *expected[2:], "majority", "chance", *differences]
    assert rows[table + 1 : table + 1 + len(below)] == below
    assert "not a benchmark" in result.stdout

    written = json.loads((out / "results.json").read_text())
    assert written["settings"]["tracks"] == {"solo": tracks}
    assert [row["name"] for row in written["models"]] == expected
    for task in written["tasks"].values():
        assert sum(part["tracks"] for part in task["splits"].values()) <= tracks
        assert set(task["splits"]["test"]["class_counts"]) == set(task["classes"])
        assert 0.0 < task["chance"] < 0.1 and 0.0 <= task["majority_rate"] < 0.3
        for name, layers in (("model", 3), ("untrained", 3), ("log-mel", 1), ("mfcc", 1)):
            found = task["results"][name]
            assert [layer["layer"] for layer in found["layers"]] == list(range(layers))
            chosen = found["layers"][found["chosen_layer"]]
            best = max(layer["valid_accuracy"] for layer in found["layers"])
            assert chosen["valid_accuracy"] == found["valid_accuracy"] == best
            assert chosen["test_accuracy"] == found["test"]["value"]
            assert found["test"]["low"] <= found["test"]["value"] <= found["test"]["high"]
            if layers > 1:
                weights = found["weighted_sum"]["layer_weights"]
                assert len(weights) == layers and sum(weights) == pytest.approx(1.0)
        for difference in task["differences"]:
            values = [task["results"][difference[side]] for side in ("model", "baseline")]
            expected_value = values[0]["test"]["value"] - values[1]["test"]["value"]
            assert difference["value"] == pytest.approx(expected_value)
    assert (out / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_another_head_and_other_tasks_encode_nothing_again(
    model: Path,
    tmp_path: Path,
    cache: Path,
    mixes: DemoTracks,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tracks, seconds = mixes.num_tracks, mixes.seconds
    run_probe(
        [model],
        out=tmp_path / "first",
        tasks=["tempo"],
        tracks=tracks,
        seconds=seconds,
        cache=cache,
        references=["mfcc"],
    )
    assert "features: 0 from the cache, 2 encoded" in capsys.readouterr().out
    second = probe(
        *(model, "--out", tmp_path / "second", "--tasks", "chord,style", "--heads", "mlp,linear"),
        *("--seeds", "2", "--no-weighted-sum", "--references", "mfcc"),
        *("--cache", cache, "--tracks", tracks, "--seconds", seconds),
    )
    assert second.returncode == 0, second.stderr
    assert "features: 4 from the cache, 0 encoded" in second.stdout
    assert "mlp, test accuracy" in second.stdout and "linear, test accuracy" in second.stdout
    written = json.loads((tmp_path / "second" / "results.json").read_text())
    for task in written["tasks"].values():
        found = task["results"]["model"]
        assert "learning_rate" in found["layers"][0] and "weighted_sum" not in found
        assert "regularisation" in found["heads"]["linear"]["layers"][0]
        assert task["head_differences"]["linear"][0]["baseline"] == "mfcc"
    # What compare.py and sweep.py read of it.
    report, answers = read_probe(tmp_path / "second"), read_answers(tmp_path / "second")
    assert report is not None and report.problem is None and report.rows[1][0] == "model"
    assert answers is not None
    for name, task in written["tasks"].items():
        accuracy = task["results"]["model"]["test"]["value"]
        assert answers.tasks[name].accuracy == pytest.approx(accuracy)


def test_beats_are_told_by_their_f_measure(
    model: Path, tmp_path: Path, cache: Path, mixes: DemoTracks
) -> None:
    results = run_probe(
        [model],
        out=tmp_path,
        tasks=["beat"],
        tracks=mixes.num_tracks,
        seconds=mixes.seconds,
        cache=cache,
        references=[],
    )
    assert "beat (f_measure)" in results.table()
    task = json.loads((tmp_path / "results.json").read_text())["tasks"]["beat"]
    assert task["metric"] == "f_measure" and "chance" not in task
    found = task["results"]["model"]
    assert 0.0 <= task["constant"] <= 1.0 and 0.0 <= found["test"]["value"] <= 1.0
    assert found["layers"][0].keys() >= {"valid_f_measure", "test_f_measure"}
    report, answers = read_probe(tmp_path), read_answers(tmp_path)
    assert report is not None and report.problem is None
    assert answers is not None
    assert answers.tasks["beat"].accuracy == pytest.approx(found["test"]["value"])


def test_a_probe_that_is_asked_to_end_leaves_no_process_and_nothing_half_rendered(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = (str(model), "--out", str(out), "--references", "none", "--tracks", "500")
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not list(out.glob("corpus/*.part-*/audio.npy")):
            assert process.poll() is None
            time.sleep(0.1)
        process.terminate()
        # Returns once nobody holds the other end of the pipe, workers included.
        _, said = process.communicate(timeout=60)
        assert process.returncode == 75 and "interrupted" in said
        assert list((out / "corpus").iterdir()) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_missing_model_ends_with_status_2_and_one_paragraph(tmp_path: Path) -> None:
    result = probe(tmp_path / "nowhere", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.startswith("error: no model at") and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [
        ("--tasks", "genre", "key, instrument, pitch"),
        ("--heads", "forest", "linear, mlp"),
        ("--references", "jukebox", "untrained, log-mel, chroma, mfcc"),
        ("--seeds", "0", "at least 1"),
    ],
)
def test_an_unknown_name_is_told_with_the_known_ones(
    option: str, value: str, known: str, tmp_path: Path
) -> None:
    result = probe(tmp_path, "--out", tmp_path / "out", option, value)
    assert result.returncode == 2
    assert option in result.stderr and known in result.stderr


@pytest.mark.parametrize("seconds", ["3", "nan", "inf"])
def test_tracks_of_an_impossible_length_are_refused_before_any_is_rendered(
    seconds: str, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=rf"one clip of 5 s.*{seconds} s"):
        run_probe([model], out=out, seconds=float(seconds))
    assert not out.exists()


@pytest.mark.parametrize("option", ["out", "cache"])
def test_a_file_where_a_folder_should_be_is_named(option: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folders = {"out": tmp_path / "out", option: tmp_path / "file" / "deep"}
    with pytest.raises(InputError, match="file/deep"):
        run_probe([model], **folders)
    gtzan = {"gtzan": tmp_path}
    with pytest.raises(InputError, match="file/deep"):
        probe_datasets([model], folders=gtzan, tasks=["gtzan_genre"], **folders)


def test_the_options_are_the_names_that_the_parts_have() -> None:
    assert command._HEADS == HEAD_NAMES
    assert command._REFERENCES == REFERENCES
