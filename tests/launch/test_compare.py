"""The report page: what it shows of a run, that it stands alone, and what it survives."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from html_page import Page, check_stands_alone
from written_run import make_run

from etude.data.errors import InputError
from etude.pretrain.config import Config
from etude.pretrain.curves import read_curves
from etude.pretrain.report import render
from etude.pretrain.report_clock import read_clock
from etude.pretrain.report_panels import (
    other_panels,
    probe_panels,
    run_panels,
    target_names,
    target_panels,
)
from etude.pretrain.report_probe import _layers, read_probe
from etude.pretrain.report_run import (
    Metrics,
    describe_targets,
    read_config,
    read_metrics,
    read_run,
    told_apart,
)
from etude.pretrain.run_folder import RunFolder

LAUNCH = Path(__file__).parents[2] / "launch"

PROBE = {
    "settings": {},
    "models": [{"name": "tiny@40"}, {"name": "log-mel"}],
    "tasks": {
        "key": {
            "chance": 1 / 24,
            "majority_rate": 0.05,
            "results": {
                "tiny@40": {
                    "chosen_layer": 2,
                    "test": {"value": 0.5, "low": 0.4, "high": 0.6},
                    "layers": [{}, {}, {}],
                },
                "log-mel": {
                    "chosen_layer": 0,
                    "test": {"value": 0.3, "low": 0.2, "high": 0.4},
                    "layers": [{}],
                },
            },
            "differences": [
                {"model": "tiny@40", "baseline": "log-mel", "value": 0.2, "low": 0.1, "high": 0.3}
            ],
        }
    },
}


def test_the_page_stands_alone_and_is_well_formed(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / "a")), read_run(make_run(tmp_path / "b"))]
    text = render(runs, [])
    check_stands_alone(text, scripts=True)
    assert render(runs, []) == text  # the same runs give the same page


def test_every_logged_quantity_is_in_one_panel(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a"))
    assert target_names([run]) == ["logmel", "cqt"]
    entropy, accuracy = target_panels([run], "logmel")
    assert [c.label for c in entropy.curves] == ["train", "held out", "unigram entropy"]
    assert [c.label for c in accuracy.curves] == ["train", "held out", "most frequent", "copy"]
    assert len(entropy.curves[0].series.steps) == 20
    # Baselines come from the held-out tracks where there are any.
    assert entropy.curves[2].series.steps == (20, 40)
    (error,) = target_panels([run], "cqt")
    assert [c.label for c in error.curves] == ["train", "held out", "mean", "copy"]
    assert [panel.title for panel in run_panels([run])] == [
        "Total loss",
        "Feature penalty",
        "Gradient norm",
        "Learning rate",
        "Throughput",
        "Waiting for data",
    ]
    assert [panel.title for panel in other_panels([run])] == ["data/skipped"]


def test_probes_beside_training_have_a_panel_for_each_task(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    answers = {"untrained": 0.2, "log-mel": 0.3, "majority_rate": 0.1, "layer": 2.0}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n")  # after the line that a kill tore
        for step, value in ((20, 0.25), (40, 0.4)):
            ends = {"test_accuracy_low": value - 0.1, "test_accuracy_high": value + 0.1}
            given = {"test_accuracy": value, **ends, **answers}
            line = {f"probe/key/{name}": number for name, number in given.items()}
            file.write(json.dumps({"step": step, **line}) + "\n")
    run = read_run(folder)
    (panel,) = probe_panels([run])
    assert (panel.title, panel.unit) == ("probe of key", "accuracy")
    labels = [curve.label for curve in panel.curves]
    assert labels == ["probe", "95 %", "95 %", "untrained", "log-mel"]
    assert panel.curves[0].series.values == (0.25, 0.4)
    assert panel.curves[1].series.values == pytest.approx((0.15, 0.3))
    left = {panel.title for panel in other_panels([run])}
    assert left == {"data/skipped", "probe/key/majority_rate", "probe/key/layer"}
    assert "Probes while training went on" in render([run], [])
    assert "Probes while training went on" not in render([read_run(make_run(tmp_path / "b"))], [])


def test_a_torn_last_line_is_passed_over_and_counted(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a"))
    assert run.metrics.unreadable_lines == 1
    assert run.metrics.last("logmel/loss") == pytest.approx(4 + math.exp(-2))
    assert run.metrics.last("audio_hours", until_step=21) == 0.4
    assert "a: 1 unreadable line of metrics.jsonl" in render([run], [])

    # A cut within a character, and a line that is JSON but no record.
    (tmp_path / "m.jsonl").write_bytes(b'{"step": 1, "loss": NaN}\n17\n\n{"step": 2, "\xc3')
    metrics = read_metrics(tmp_path / "m.jsonl")
    assert [record["step"] for record in metrics.records] == [1.0]
    assert metrics.unreadable_lines == 2


def test_the_page_tells_what_differs_between_runs(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / "a")), read_run(make_run(tmp_path / "b", lr=1e-3))]
    table = render(runs, []).split("What differs")[1].split("</table>")[0]
    assert "<td>optim.lr</td><td>0.0003</td><td>0.001</td>" in table
    assert "run.dir" in table and "seed" not in table and "versions" not in table


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / place / "run")) for place in ("x", "y")]
    assert [run.name for run in told_apart(runs)] == ["x/run", "y/run"]
    page = render(runs, [])
    assert "<h1>x/run and y/run</h1>" in page
    twice = told_apart([runs[0], runs[0]])
    assert [run.name for run in twice] == [str(tmp_path / "x" / "run")] * 2


def test_probes_are_shown_and_damaged_ones_are_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(PROBE))
    probe = read_probe(tmp_path)
    assert probe is not None
    assert probe.rows == (
        ("test accuracy", "key"),
        ("tiny@40", "0.500 [0.400, 0.600] (layer 2)"),
        ("log-mel", "0.300 [0.200, 0.400]"),
        ("most frequent class", "0.050"),
        ("chance", "0.042"),
        ("tiny@40 minus log-mel", "+0.200 [+0.100, +0.300]"),
    )
    run = read_run(make_run(tmp_path / "a"))
    page = render([run], [("a", probe)])
    assert "<h3>Probes: a</h3>" in page
    Page(page)
    assert "(layer 2)" in page and "Probe: key" not in page  # accuracies of no layer are known

    for damaged in ("{", "[]", '{"tasks": {"key": 3}, "models": [{"name": "x"}]}'):
        (tmp_path / "results.json").write_text(damaged)
        broken = read_probe(tmp_path)
        assert broken is not None and broken.rows == () and broken.problem is not None
        assert "could not be read" in render([run], [("a", broken)])
    assert read_probe(tmp_path / "a") is None


def test_what_users_wrote_is_text_not_markup(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "<b>run & co")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 44, "a<i>/loss": 1.0, "b\\">/odd": 2}\n')
    (folder / "EXIT.json").write_text('{"code": 4, "reason": "<script>"}')
    page = render([read_run(folder)], [])
    Page(page)
    assert "<script>" not in page.split("<script type=")[0] and "status 4: &lt;script&gt;" in page
    assert "&lt;b&gt;run &amp; co" in page and "<i>/" not in page


def test_names_and_numbers_that_cannot_be_drawn_are_shown_all_the_same(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a$b$")
    odd = {"probe/k/test_$\\bad{$": 0.5, "probe/k/test_\ud800": 0.5, "huge": 1.7e308}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"step": 44, **odd}) + "\n")
    (tmp_path / "results.json").write_text(json.dumps(layered("$x^$")))
    probe = read_probe(tmp_path)
    assert probe is not None and probe.problem is None
    page = render([read_run(folder)], [("a$b$", probe)])
    Page(page)
    assert ">$x^$</text>" in page and "$\\bad{$</text>" in page
    assert page.count("1 value was not finite") == 1


def layered(model: str) -> dict[str, Any]:
    """Results of a model of one layer beside one of two."""
    found = {
        name: {
            "chosen_layer": 0,
            "test": {"value": 0.5, "low": 0.4, "high": 0.6},
            "layers": [{"layer": n, "test_beat_f": 0.5} for n in range(layers)],
        }
        for name, layers in (("tiny", 2), (model, 1))
    }
    task = {"metric": "beat_f", "results": found, "differences": []}
    return {"models": [{"name": name} for name in found], "tasks": {"beat": task}}


def test_a_score_that_is_no_accuracy_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(layered("log-mel")))
    probe = read_probe(tmp_path)
    assert probe is not None and probe.rows[0] == ("test score", "beat (beat_f)")


def test_what_was_logged_late_stands_where_it_belongs(tmp_path: Path) -> None:
    lines = [(20, 0.0), (40, 1.0), (30, 2.0)]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"step": s, "x": x}) + "\n" for s, x in lines))
    series = read_metrics(path).series("x")
    assert (series.steps, series.values) == ((20, 30, 40), (0, 2, 1))
    assert read_metrics(path).last("x") == 2


def test_long_runs_keep_the_page_small(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "long")
    lines = [{"step": s, "loss": 5.0 + math.sin(s), "optim/grad_norm": 1.0} for s in range(50_000)]
    lines[777]["optim/grad_norm"] = 500.0
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = render([read_run(folder)], [])
    assert len(page) < 300_000
    assert page.count("of up to 50,000 values of a curve, the mean of each of 1,000 equal") == 1
    assert page.count("the largest value of each of 1,000 equal parts is drawn.") == 1
    assert '"y":[5' in page and ",500," in page  # the one peak is there


def test_what_was_predicted_is_put_in_words() -> None:
    targets = {"a": {"kind": "kmeans"}, "b": {"kind": "kmeans"}, "c": {"kind": "novel"}}
    assert describe_targets({"objective": {"targets": targets}}) == (
        "masked prediction (k-means, novel)"
    )
    assert describe_targets(None) == describe_targets({"objective": 3}) == "masked prediction"


def test_the_configuration_is_read_as_the_trainer_writes_it(tmp_path: Path) -> None:
    values = {
        "run": {"dir": str(tmp_path / "run")},
        "data": {"corpus": "corpus"},
        "objective": {"targets": {"cqt": {"kind": "cqt"}}},
        "train": {"max_steps": 2, "global_batch": 2},
        "optim": {"lr": 1e-3, "warmup_steps": 1},
    }
    RunFolder(tmp_path / "run").start(Config.model_validate_json(json.dumps(values)))
    text, config = read_config(tmp_path / "run")
    assert text is not None and config is not None
    assert describe_targets(config) == "masked prediction (CQT)"
    assert config["data"]["crop_seconds"] == 5.0 and "torch" in config["versions"]


def test_a_configuration_that_no_run_wrote_is_an_input_error(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    (folder / "config.yaml").write_text("seed: 1")
    with pytest.raises(InputError, match="under the key `config`"):
        read_run(folder)
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(InputError, match="is not valid YAML"):
        read_run(folder)
    (folder / "config.yaml").write_bytes(b"config: \xff")
    with pytest.raises(InputError, match="must be the configuration as text"):
        read_run(folder)


def test_a_configuration_that_json_has_no_words_for_fits_no_curve(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    (run / "config.yaml").write_text("config: {objective: {targets: !!set {a}}}")
    page = render([read_run(run)], [], curves=read_curves(LAUNCH.parent / "docs" / "curves"))
    assert "Reference curves that do not fit" in page


def compare(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, LAUNCH / "compare.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


FALL = math.exp(-40 / 20)
"""How far the curves of ``make_run`` have come at their last step."""


def test_the_command_writes_one_file_and_refuses_what_is_no_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "a")
    (run / "probe").mkdir()
    (run / "probe" / "results.json").write_text(json.dumps(PROBE))
    out = tmp_path / "new" / "report.html"
    done = compare(run, "--out", out)
    assert done.returncode == 0, done.stderr
    *table, path = done.stdout.splitlines()
    assert path == str(out)
    # Newest held-out values beside what costs nothing.
    (labels,) = (line.split() for line in table if line.startswith("a logmel"))
    assert [float(value) for value in labels[2:]] == [
        round(value, 3) for value in (0.1 - 0.05 * FALL, 0.08, 0.4, 4 + FALL, 4.2)
    ]
    (spectrum,) = (line.split() for line in table if line.startswith("a cqt"))
    assert [float(value) for value in spectrum[2:]] == [round(100 * FALL, 3), 60.0, 40.0]
    assert list(out.parent.iterdir()) == [out] and "tiny@40" in out.read_text()

    missing = compare(run, tmp_path / "nowhere", "--out", out)
    assert missing.returncode == 2
    assert missing.stderr == f"error: there is no run folder {tmp_path / 'nowhere'}.\n"

    (tmp_path / "empty").mkdir()
    empty = compare(tmp_path / "empty", "--out", out)
    assert empty.returncode == 2 and "holds no metrics.jsonl" in empty.stderr

    no_probe = compare(run, "--probe", tmp_path / "empty", "--out", out)
    assert no_probe.returncode == 2 and "has no results.json" in no_probe.stderr


def test_a_table_of_probes_says_by_which_metric_and_head_they_are_scored(tmp_path: Path) -> None:
    results = json.loads(json.dumps(PROBE))
    results["settings"] = {"heads": ["mlp", "linear"]}
    results["tasks"]["key"] |= {"metric": "accuracy", "constant": 0.05}
    mood = json.loads(json.dumps(PROBE["tasks"]["key"])) | {"metric": "r2", "constant": -0.01}
    results["tasks"]["emomusic"] = mood
    del mood["chance"], mood["majority_rate"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    probe = read_probe(tmp_path)
    assert probe is not None
    assert probe.rows[0] == ("test score of mlp heads", "key", "emomusic (r2)")
    guesses = [row for row in probe.rows if row[0] in ("constant answer", "chance")]
    assert guesses == [("constant answer", "0.050", "-0.010"), ("chance", "0.042", "-")]


def test_probes_are_drawn_layer_by_layer_with_their_intervals() -> None:
    layers = [{"layer": n, "test_accuracy": 0.3 + n / 10} for n in range(3)]
    results: dict[str, Any] = json.loads(json.dumps(PROBE))
    results["tasks"]["key"]["results"]["tiny@40"]["layers"] = layers
    (old,) = _layers(results)
    assert old.accuracy.steps == (0, 1, 2) and old.accuracy.values == (0.3, 0.4, 0.5)
    assert old.accuracy.ends is not None
    low, high = old.accuracy.ends
    # Older results know the interval of the chosen layer alone.
    assert [math.isfinite(each) for each in low] == [False, False, True]
    assert (low[2], high[2]) == (0.4, 0.6)
    for layer in layers:
        layer["test"] = {"value": 0.0, "low": 0.1, "high": 0.7}
    (new,) = _layers(results)
    assert new.accuracy.ends == ((0.1,) * 3, (0.7,) * 3)


def test_a_clock_adds_up_the_logged_rates_and_leaves_validations_to_the_next_line() -> None:
    # 36 s of audio per update, 10 updates in 5 s, then 10 in 20 s.
    lines = [
        {"step": 10.0, "audio_hours": 0.1, "perf/audio_hours_per_day": 0.1 / 5 * 86_400},
        {"step": 15.0, "audio_hours": 0.15},
        {"step": 20.0, "audio_hours": 0.2, "perf/audio_hours_per_day": 0.1 / 20 * 86_400},
    ]
    clock = read_clock(Metrics(tuple(lines), 0))
    found = clock.at([5, 10, 15, 20, 40])
    assert found["hours"] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.4])
    assert found["seconds"] == pytest.approx([2.5, 5, 15, 25, 50])
    assert clock.updates_at([0.05, 0.2, 0.3]) == pytest.approx([5, 20, 30])

    untimed = read_clock(
        Metrics(tuple({**line, "perf/audio_hours_per_day": 0.0} for line in lines), 0)
    )
    assert (
        untimed.at([15])["hours"] == pytest.approx([0.15]) and untimed.at([15])["seconds"] is None
    )
    silent = read_clock(Metrics(({"step": 1.0, "loss": 2.0},), 0))
    assert silent.at([1]) == {"updates": [1.0], "hours": None, "seconds": None}


def test_what_was_not_finite_is_a_gap_that_is_counted(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", torn=False)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[4] = json.dumps({**json.loads(lines[4]), "loss": None})
    huge = f'{{"step": 50, "loss": 1{"0" * 400}}}'
    (folder / "metrics.jsonl").write_text("\n".join([*lines, huge, '{"step": NaN, "loss": 1}']))
    run = read_run(folder)
    assert run.metrics.unreadable_lines == 1
    assert [math.isnan(v) for v in run.metrics.series("loss").values].count(True) == 2
    page = render([run], [])
    assert "2 values were not finite: gaps in the curve." in page
    assert "<td>not finite</td>" in page  # the newest loss
