"""Reference curves: made of finished runs, kept as data, drawn behind runs with their objective."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training_parts import ROOT
from written_run import make_run

from etude.data.errors import InputError
from etude.pretrain.config_file import as_values, load_config
from etude.pretrain.curves import ReferenceCurve, make_curve, read_curve, read_curves
from etude.pretrain.report import render
from etude.pretrain.report_clock import read_clock
from etude.pretrain.report_run import Metrics, read_run

SHIPPED = ROOT / "docs" / "curves"
ORIGIN = {"name": "tiny", "commit": "abc", "hardware": "a clock"}


def launched(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch" / script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def seeds(tmp_path: Path) -> list[Path]:
    return [
        make_run(tmp_path / f"seed-{seed}", torn=False, seed=seed, more=more)
        for seed, more in enumerate((0.0, 0.5, 0.1))
    ]


def test_a_curve_is_the_range_of_its_seeds(seeds: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "tiny.json"
    words = (*seeds, "--out", out, "--commit", "abc", "--hardware", "a clock")
    done = launched("save_curve.py", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: 3 seeds, 40 updates, 21 metrics\n"
    curve = read_curve(out)
    assert (curve.name, curve.seeds, curve.commit) == ("tiny", (0, 1, 2), "abc")
    assert curve.updates == tuple(range(2, 42, 2)) and curve.audio_hours[-1] == 0.8
    loss = curve.metrics["loss"]
    assert loss.low[0] is not None and loss.mean[0] is not None and loss.high[0] is not None
    assert loss.high[0] - loss.low[0] == pytest.approx(0.5, abs=1e-3)
    assert loss.mean[0] - loss.low[0] == pytest.approx(0.2, abs=1e-3)
    # What was validated only now and then has holes; what belongs to the machine is left out.
    valid = curve.metrics["valid/logmel/unigram_entropy"]
    assert [n for n, value in enumerate(valid.mean) if value is not None] == [9, 19]
    assert not [name for name in curve.metrics if name.startswith(("perf/", "data/"))]
    assert "dir" not in json.dumps(curve.config) and curve.versions == {"torch": "2.9.1"}
    before = out.read_bytes()
    assert launched("save_curve.py", *words).returncode == 0 and out.read_bytes() == before


def test_probes_and_looks_of_a_run_are_no_part_of_a_curve(seeds: list[Path]) -> None:
    plain = make_curve([read_run(seed) for seed in seeds], **ORIGIN)
    for seed, name in zip(seeds, ("probe/skipped", "probe/seconds", "look/seconds"), strict=True):
        with (seed / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 13, name: 1.0}) + "\n")
    assert make_curve([read_run(seed) for seed in seeds], **ORIGIN) == plain


def test_runs_that_make_no_curve_are_refused(seeds: list[Path], tmp_path: Path) -> None:
    good = [read_run(seed) for seed in seeds]
    other = read_run(make_run(tmp_path / "other", torn=False, seed=4, lr=1e-3))
    with pytest.raises(InputError, match=r"optim\.lr is 0\.0003 in .*seed-0 and 0\.001 in .*other"):
        make_curve([good[0], other], **ORIGIN)
    with pytest.raises(InputError, match="EXIT.json must have the code 0"):
        make_curve([good[0], read_run(make_run(tmp_path / "killed", seed=5))], **ORIGIN)
    with pytest.raises(InputError, match=r"seed of its own, but they are \[0, 0\]"):
        make_curve([good[0], good[0]], **ORIGIN)
    short = make_run(tmp_path / "short", torn=False, seed=6)
    lines = (short / "metrics.jsonl").read_text().splitlines(keepends=True)
    (short / "metrics.jsonl").write_text("".join(lines[:-3]))
    with pytest.raises(InputError, match="the same metrics at the same updates"):
        make_curve([good[0], read_run(short)], **ORIGIN)
    done = launched(
        "save_curve.py", seeds[0], "--out", tmp_path, "--commit", "a", "--hardware", "b"
    )
    assert done.returncode == 2 and "--out must be a file NAME.json" in done.stderr


def recipe(name: str, *words: str) -> dict[str, Any]:
    return as_values(load_config(ROOT / "configs" / name, words))


def test_the_shipped_curves_fit_the_shipped_recipes() -> None:
    shipped = {curve.name: curve for curve in read_curves(SHIPPED)}
    for name, curve in shipped.items():
        assert name.endswith(f"-{curve.updates[-1]}_updates")
        assert curve.updates[-1] == curve.config["train"]["max_steps"]
        assert len(curve.seeds) == 3
    longer = shipped.pop("quickstart-10000_updates")
    assert longer.misfit(recipe("quickstart.yaml")) is None
    curves = {name.removesuffix("-1000_updates"): curve for name, curve in shipped.items()}
    assert sorted(curves) == ["quickstart", "quickstart_music2vec", "quickstart_no_cqt"]
    quickstart = curves["quickstart"]
    ours = recipe("quickstart.yaml", "data.corpus=mine", "train.global_batch=32")
    assert quickstart.misfit(ours) is None
    differing = {key: values for key, *values in quickstart.differences(ours)}
    assert differing["train.max_steps"] == ["1000", "3000"]
    assert differing["train.global_batch"] == ["4", "32"] and "seed" not in differing
    for words, key in (
        ("objective.mask.span_frames=6", "objective.mask.span_frames"),
        ("model.layers=5", "model.layers"),
        ("data.crop_seconds=4.0", "data.crop_seconds"),
        ("objective.targets.logmel.temperature=0.2", "objective.targets.logmel.temperature"),
    ):
        assert quickstart.misfit(recipe("quickstart.yaml", words)) == key
    assert quickstart.misfit(recipe("quickstart.yaml", "model.impl=plain")) is None

    no_cqt = recipe("ablations/quickstart_no_cqt.yaml")
    assert curves["quickstart_no_cqt"].misfit(no_cqt) is None
    assert quickstart.misfit(no_cqt) == "objective.targets.cqt.kind"
    # The teacher's decay rose over 1,000 updates instead of the recipe's 3,000.
    anneal = "objective.targets.teacher.anneal_steps"
    music2vec = curves["quickstart_music2vec"]
    assert music2vec.misfit(recipe("ablations/quickstart_music2vec.yaml")) == anneal
    words = f"{anneal}=1000"
    assert music2vec.misfit(recipe("ablations/quickstart_music2vec.yaml", words)) is None


def test_a_setting_that_did_not_exist_has_its_default() -> None:
    curve = next(each for each in read_curves(SHIPPED) if each.name.startswith("quickstart-"))
    ours = recipe("quickstart.yaml")
    del ours["objective"]["views"], ours["model"]["padding"]
    assert curve.misfit(ours) is None
    ours["objective"]["views"] = 2
    assert curve.misfit(ours) == "objective.views"


def test_a_curve_lies_at_equal_audio_hours(seeds: list[Path]) -> None:
    curve = make_curve([read_run(seed) for seed in seeds], **ORIGIN)
    # Half as many updates for the same audio, and only a quarter of it heard so far.
    lines = tuple({"step": s + 0.0, "audio_hours": s / 25} for s in range(1, 6))
    reference = curve.as_run(read_clock(Metrics(lines, 0)))
    assert reference is not None and reference.is_reference
    series = reference.metrics.series("loss")
    assert series.steps == pytest.approx([step / 2 for step in range(2, 42, 2)])
    assert series.ends is not None and all(a <= b for a, b in zip(*series.ends, strict=True))
    assert curve.as_run(read_clock(Metrics(({"step": 1.0},), 0))) is None


def test_the_page_shows_what_fits_and_names_what_does_not(
    seeds: list[Path], tmp_path: Path
) -> None:
    curve = make_curve([read_run(seed) for seed in seeds], **ORIGIN)
    kept = tmp_path / "curves"
    kept.mkdir()
    (kept / "tiny.json").write_bytes(curve.json_bytes())
    (kept / "other.json").write_bytes((SHIPPED / "quickstart-1000_updates.json").read_bytes())
    run, out = make_run(tmp_path / "mine", lr=1e-3), tmp_path / "page.html"
    done = launched("compare.py", run, "--out", out, "--curves", kept)
    assert done.returncode == 0, done.stderr
    page = out.read_text()
    assert "tiny: 3 trainings of ours (seed 0, 1, 2) to update 40, 0.8 h of audio" in page
    assert "<td>optim.lr</td><td>0.0003</td><td>0.001</td>" in page
    assert "do not fit, for another: quickstart-1000_updates (data.crop_seconds)" in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [each["name"] for each in data["runs"]] == ["mine", "reference: tiny"]
    bands = [c for chart in data["charts"] for c in chart["curves"] if c["run"] == 1]
    labels = {each["label"] for each in bands}
    assert {"reference", "unigram entropy", "most frequent"} <= labels
    assert all(each["ends"] for each in bands)

    done = launched("compare.py", run, "--out", out, "--curves", "none")
    assert done.returncode == 0 and "Reference curves" not in out.read_text()
    done = launched("compare.py", run, "--out", out, "--curves", tmp_path / "nowhere")
    assert done.returncode == 2 and "there is no folder" in done.stderr


def test_a_page_is_made_without_torch() -> None:
    code = (
        "import etude.pretrain.report, etude.pretrain.curves, sys; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_damaged_curve_is_named(seeds: list[Path], tmp_path: Path) -> None:
    curve = make_curve([read_run(seeds[0])], **ORIGIN)
    path = tmp_path / "tiny.json"
    path.write_bytes(curve.json_bytes())
    assert read_curve(path) == curve
    whole: dict[str, Any] = json.loads(path.read_text())
    for change, said in (
        ({"seeds": []}, "seeds"),
        ({"updates": [1, 2]}, "every list must have a value for each of `updates`"),
        ({"audio_hours": whole["audio_hours"][::-1]}, "`audio_hours` must rise"),
        ({"extra": 1}, "extra"),
        ({"hardware": None}, "hardware"),
    ):
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(InputError, match=f"(?s)tiny.json must be a curve .*{said}"):
            read_curve(path)
    path.write_text('{"name": "cut')
    done = launched("compare.py", seeds[0], "--out", tmp_path / "p.html", "--curves", tmp_path)
    assert done.returncode == 2 and "must be a curve made by launch/save_curve.py" in done.stderr
    assert isinstance(curve, ReferenceCurve) and render([read_run(seeds[0])], [], curves=[curve])
