"""A question of several runs, from its file to a verdict: real trainings and probes, made tiny."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from campaigns.tiny_runs import make_corpus, write_recipe
from html_page import Page
from run_parts import ENVIRONMENT, LAUNCH, Done

from etude.pretrain.config import Config
from etude.pretrain.config_file import load_config
from etude.pretrain.errors import ConfigError
from etude.pretrain.sweeps.held_out import comparable_targets
from etude.pretrain.sweeps.question import Question, nested
from etude.pretrain.sweeps.runs import all_runs
from etude.pretrain.sweeps.slurm import array_script
from etude.pretrain.sweeps.verdict import Measure, Verdict
from etude.probes.intervals import paired_interval

SWEEP = LAUNCH / "sweep.py"
UPDATES = 12
VARIANTS: dict[str, Any] = {"mixed": {}, "plain": {"objective.mixture.prob": 0.0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with its corpus, and room for questions and rendered tracks."""
    made = tmp_path_factory.mktemp("sweep")
    write_recipe(made, "mert", make_corpus(made, clip_seconds=2.0, held_out=0.3), dropout=0.1)
    return made


def ask(
    folder: Path, name: str, *, variants: Mapping[str, Any] = VARIANTS, **others: object
) -> Path:
    content = {
        "question": "Does mixing help?",
        "base": "mert.yaml",
        "dir": str(folder / name),
        "seeds": [0, 1],
        "variants": dict(variants),
        "set": {"train.max_steps": UPDATES, "data": {"workers": 0}},
        "probe": {
            "tasks": ["pitch"],
            "tracks": 54,
            "seconds": 5.0,
            "cache": str(folder / "rendered"),
        },
        **others,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def sweep(*words: object) -> Done:
    command = [sys.executable, str(SWEEP), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def straight(folder: Path) -> tuple[Path, Done]:
    done = sweep(ask(folder, "straight"))
    assert done.returncode == 0, done.stderr
    return folder / "straight", done


def test_a_sweep_ends_in_a_table_and_a_page(straight: tuple[Path, Done]) -> None:
    made, done = straight
    table = json.loads((made / "table.json").read_text())
    assert [(run["variant"], run["seed"]) for run in table["runs"]] == [
        *(("mixed", 0), ("plain", 0)),
        *(("mixed", 1), ("plain", 1)),
    ]
    assert table["missing"] == [] and {run["step"] for run in table["runs"]} == {UPDATES}
    pitch, cqt = table["differences"]
    assert (pitch["measure"], cqt["measure"]) == ("pitch accuracy", "held-out cqt loss")
    for difference in (pitch, cqt):
        name = difference["measure"]
        of = {(run["variant"], run["seed"]): run[name] for run in table["runs"]}
        for seed in (0, 1):
            expected = of["plain", seed] - of["mixed", seed]
            assert difference["by_seed"][str(seed)] == pytest.approx(expected, abs=2e-6)
        assert difference["low"] <= difference["value"] <= difference["high"]
        shown = not difference["low"] <= 0 <= difference["high"]
        assert (difference["verdict"] != "not shown") == shown
    assert pitch["tracks"] == 18 and cqt["tracks"] is None

    for text in (done.stdout, (made / "table.md").read_text()):
        assert pitch["words"] in text and "Does mixing help?" in text
    page = (made / "compare.html").read_text()
    assert all(link.startswith("#") for link in Page(page).links)
    assert pitch["words"] in page and "plain seed 1" in page and "Probes: mixed seed 0" in page


def test_a_finished_sweep_repeats_nothing(straight: tuple[Path, Done], folder: Path) -> None:
    made, _ = straight
    runs = [path for path in made.rglob("*") if path.is_file() and "seed-" in str(path)]
    before = {path: path.stat().st_mtime_ns for path in runs}
    table = (made / "table.json").read_bytes()
    done = sweep(folder / "straight.yaml")
    assert done.returncode == 0 and "step " not in done.stdout and "prob" not in done.stdout[:20]
    assert {path: path.stat().st_mtime_ns for path in runs} == before
    assert (made / "table.json").read_bytes() == table

    plan = sweep(folder / "straight.yaml", "--dry-run").stdout
    assert "plain: objective.mixture.prob = 0.0 (there 0.5)" in plan
    assert plan.count(f"done   {UPDATES} of {UPDATES}") == 4 and "training left: 0 s" in plan


def test_a_sweep_interrupted_half_way_gives_the_same_table(
    straight: tuple[Path, Done], folder: Path
) -> None:
    question = ask(folder, "halves")
    second = folder / "halves" / "plain" / "seed-0"
    command = subprocess.Popen(
        [sys.executable, str(SWEEP), str(question)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        while command.poll() is None and not (second / "metrics.jsonl").is_file():
            time.sleep(0.02)
        command.send_signal(signal.SIGTERM)
        _, said = command.communicate(timeout=300)
    finally:
        command.kill()
    assert command.returncode == 75
    assert "interrupted while plain seed 0 trained (received SIGTERM)" in said
    # The run that trained has published a checkpoint; no other has begun.
    stopped = json.loads((second / "EXIT.json").read_text())
    assert stopped["code"] == 75 and 0 < stopped["step"] < UPDATES
    assert stopped["last_good_checkpoint"] is not None
    assert not (folder / "halves" / "mixed" / "seed-1").exists()
    assert not (folder / "halves" / "table.json").exists()

    done = sweep(question)
    assert done.returncode == 0, done.stderr
    assert "[1/3] plain seed 0" in done.stdout
    table = (folder / "halves" / "table.json").read_bytes()
    assert table == (straight[0] / "table.json").read_bytes()


def test_a_variant_that_fails_is_named_and_the_others_run(folder: Path) -> None:
    variants = {
        "mixed": {},
        "lost": {"init_from": str(folder / "nowhere")},
        "plain": VARIANTS["plain"],
    }
    done = sweep(ask(folder, "fails", variants=variants, seeds=[0]))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: lost seed 0 failed with status 2")
    table = json.loads((folder / "fails" / "table.json").read_text())
    assert [run["variant"] for run in table["runs"]] == ["mixed", "plain"]
    assert table["missing"] == ["lost seed 0"]
    # One seed: whatever the interval over tracks says, nobody knows what another seed would do.
    assert all(d["words"].endswith("seeds were not measured") for d in table["differences"])
    assert {difference["variant"] for difference in table["differences"]} == {"plain"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"variants": {"a": {}, "odd": {"objective.mixtur.prob": 0.0}}},
            ["variant `odd`", "unknown key `objective.mixtur`", "Did you mean `mixture`?"],
        ),
        ({"set": {"train.max_step": 3}}, ["`train.max_step`", "`set` of", "`max_steps`?"]),
        ({"sedes": [1]}, ["unknown key `sedes`", "Did you mean `seeds`?"]),
        ({"probe": {"task": ["key"]}}, ["unknown key `probe.task`", "Did you mean `tasks`?"]),
        ({"probe": {"tasks": ["genre"]}}, ["`probe.tasks`", "key, instrument, pitch"]),
        ({"variants": {"a": {}, "b/c": {"seed": 1}}}, ["'b/c'", "a folder's"]),
        ({"variants": {"a": {}, "b": {"seed": 1}}}, ["seed in `b`", "`seeds`"]),
        ({"variants": {"a": {}, "b": {"seed": None}}}, ["seed in `b`"]),
        ({"variants": {"a": {}, "b": {}}}, ["`a` and `b` resolve to the same settings"]),
        ({"variants": {"a": {}}}, ["`variants`", "at least 2"]),
        ({"reference": "plan"}, ["`reference`", "Did you mean `plain`?"]),
        ({"seeds": [1, 1]}, ["`seeds` must differ"]),
        ({"seeds": []}, ["`seeds`", "at least 1"]),
        ({"base": "mort.yaml"}, ["mort.yaml", "Did you mean"]),
    ],
)
def test_what_cannot_work_is_told_before_anything_runs(
    folder: Path, tmp_path: Path, change: dict[str, Any], said: list[str]
) -> None:
    question = ask(folder, "wrong", **{"dir": str(tmp_path / "out"), **change})
    if "probe" in change:  # what the probes know, only the command can check
        done = sweep(question)
        assert done.returncode == 2
        message = done.stderr
    else:
        with pytest.raises(ConfigError) as error:
            Question(question)
        message = str(error.value)
    assert all(word in message for word in said), message
    assert not (tmp_path / "out").exists()


def test_a_folder_with_another_run_is_refused(straight: tuple[Path, Done], folder: Path) -> None:
    made, _ = straight
    other = ask(folder, "other", dir=str(made), set={"train.max_steps": 12, "optim.lr": 5e-4})
    with pytest.raises(ConfigError, match="optim.lr"):
        all_runs(Question(other))
    shorter = ask(folder, "other", dir=str(made), set={"train.max_steps": 6, "data.workers": 0})
    with pytest.raises(ConfigError, match="has trained 12 updates"):
        all_runs(Question(shorter))
    longer = ask(folder, "other", dir=str(made), set={"train.max_steps": 20, "data.workers": 0})
    assert {run.state for run in all_runs(Question(longer))} == {"begun"}


def test_a_slurm_array_has_a_task_for_each_run(folder: Path, tmp_path: Path) -> None:
    question = Question(ask(folder, "array", dir=str(tmp_path / "runs")))
    runs = all_runs(question)
    for run in runs:
        run.write_config()
        assert load_config(run.config_path) == run.config
    script = tmp_path / "array.sbatch"
    script.write_text(array_script(question, runs, LAUNCH / "train.sbatch"))
    assert "#SBATCH --array=0-3" in script.read_text()
    assert "#SBATCH --signal=USR1@300" in script.read_text()
    # There is no Slurm here: `srun` writes down how it was called, and the run is interrupted.
    calls = tmp_path / "calls"
    for name, status in (("srun", 75), ("scontrol", 0)):
        (tmp_path / name).write_text(f"#!/bin/bash\necho {name} $* >> {calls}\nexit {status}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "17",
        "SLURM_ARRAY_TASK_ID": "2",
    }
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True)
    third = tmp_path / "runs" / "mixed" / "seed-1"
    assert done.returncode == 0, done.stderr
    assert calls.read_text().splitlines() == [
        f"srun python launch/train.py {third}/run.yaml run.dir={third}",
        "scontrol requeue 17",
    ]


def test_dotted_keys_and_sections_are_the_same() -> None:
    sections = {"objective": {"targets": {"cqt": None}, "mask": {"prob": 0.5}}}
    dotted = {"objective.targets.cqt": None, "objective": {"mask.prob": 0.5}}
    assert nested(dotted) == nested(sections) == sections
    with pytest.raises(ConfigError, match="given as a value"):
        nested({"objective.mask": 3, "objective.mask.prob": 0.5})


def config(**changes: Any) -> Config:
    cqt = {"kind": "cqt"}
    values = {
        "run": {"dir": "run"},
        "data": {"corpus": "corpus"},
        "objective": {"targets": {"cqt": cqt, "logmel": {"kind": "kmeans"}}},
        "train": {"max_steps": 2, "global_batch": 2},
        "optim": {"lr": 1e-3, "warmup_steps": 1},
    }
    for section, change in changes.items():
        values[section] = {**values[section], **change}
    return Config.model_validate_json(json.dumps(values))


def test_losses_are_compared_where_they_mean_the_same() -> None:
    whole = config()
    assert comparable_targets(whole, config(optim={"lr": 1e-4})) == ["cqt", "logmel"]
    one = config(objective={"targets": {"cqt": {"kind": "cqt", "weight": 2.0}}})
    assert comparable_targets(whole, one) == ["cqt"]  # the weight is not in the target's own loss
    other = config(objective={"targets": {"cqt": {"kind": "cqt", "bins": 60}}})
    assert comparable_targets(whole, other) == []
    targets = {"targets": {"cqt": {"kind": "cqt"}}, "mask": {"prob": 0.5}}
    assert comparable_targets(whole, config(objective=targets)) == []
    moving = config(objective={"targets": {"teacher": {"kind": "teacher"}}})
    assert comparable_targets(moving, moving) == []


def judge(gain_ST: Any, examples_T: Any) -> Verdict:
    interval = paired_interval(gain_ST, examples_T, seed=0)
    by_seed = dict(enumerate(gain_ST.sum(axis=1) / examples_T.sum()))
    ends = interval.low, interval.high
    tracks = len(examples_T)
    return Verdict("b", Measure("key", True), by_seed, interval.value, ends, tracks)


def gains(*, better: float, between_seeds: float, seeds: int, seed: int = 0) -> Any:
    """Right answers minus the reference's on 60 tracks of three questions each."""
    rng = np.random.default_rng(seed)
    hard = rng.uniform(0.2, 0.6, size=60)
    effect = better + between_seeds * rng.standard_normal(seeds)
    ours = rng.binomial(3, np.clip(hard + effect[:, None], 0, 1))
    return (ours - rng.binomial(3, np.broadcast_to(hard, ours.shape))).astype(np.float64)


THREE_QUESTIONS = np.full(60, 3.0)


def test_a_clear_difference_is_told_and_none_is_not() -> None:
    better = judge(gains(better=0.3, between_seeds=0.02, seeds=3), THREE_QUESTIONS)
    assert (better.word, better.sentence) == ("better", "better (3 seeds and 60 tracks)")
    worse = judge(-gains(better=0.3, between_seeds=0.02, seeds=3), THREE_QUESTIONS)
    assert worse.word == "worse"
    none = judge(np.tile([1.0, -1.0, 0.0], (3, 20)), THREE_QUESTIONS)
    assert none.sentence == "no difference that 3 seeds and 60 tracks could show"
    same = judge(np.zeros((3, 60)), THREE_QUESTIONS)
    assert (same.word, same.interval) == ("not shown", (0.0, 0.0))


def test_a_loss_is_better_when_it_is_lower() -> None:
    loss = Measure("held-out cqt loss", higher_is_better=False)
    lower = Verdict("b", loss, {0: -0.2, 1: -0.3}, -0.25, (-0.4, -0.1), None)
    assert lower.sentence == "better (2 seeds)"
    touching = Verdict("b", loss, {0: -0.2, 1: -0.3}, -0.25, (-0.5, 0.0), None)
    assert touching.word == "not shown"
    alone = Verdict("b", loss, {0: -0.2}, -0.2, None, None)
    assert alone.word == "not shown" and "seeds were not measured" in alone.sentence


def test_one_seed_says_that_seeds_were_not_measured() -> None:
    one = judge(gains(better=0.3, between_seeds=0.0, seeds=1), THREE_QUESTIONS)
    assert one.sentence == "better (1 seed and 60 tracks); seeds were not measured"


def test_seeds_that_disagree_show_nothing_however_many_tracks_there_are() -> None:
    gain_ST = np.stack([np.full(500, 1.0), np.full(500, -0.8), np.full(500, 0.6)])
    assert judge(gain_ST, np.full(500, 3.0)).word == "not shown"


def test_the_interval_covers_the_true_difference_and_comes_out_again() -> None:
    for between in (0.0, 0.03):
        covered = 0
        for seed in range(200):
            gain_ST = gains(better=0.1, between_seeds=between, seeds=3, seed=seed)
            interval = paired_interval(gain_ST, THREE_QUESTIONS, seed=seed, draws=400)
            covered += interval.low <= 0.1 <= interval.high
        assert covered >= 0.93 * 200
    again = paired_interval(gain_ST, THREE_QUESTIONS, seed=seed, draws=400)
    assert again == interval
