"""Probes during training: real runs, each with real probes beside it, told, ended, begun again.

All train the same tiny model; what a probe of update 20 answers is the same in every run.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from campaigns.launched import Launched
from campaigns.tiny_runs import make_corpus, write_recipe
from run_parts import ENVIRONMENT, LAUNCH, Run, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PROBE = LAUNCH / "probe.py"
EVERY, UPDATES = 20, 30
OPTIONS = {"tasks": ["instrument"], "tracks": 54, "seconds": 5.0}
ENDS_WITHIN = 60.0


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that keeps every checkpoint and is probed once."""
    folder = tmp_path_factory.mktemp("probing")
    path = write_recipe(folder, "mert", make_corpus(folder, clip_seconds=2.0), dropout=0.1)
    probe = {"every_steps": EVERY, "cache": str(folder / "rendered"), **OPTIONS}
    return with_sections(
        path,
        probe=probe,
        train={"max_steps": UPDATES},
        checkpoint={"keep": 100},
        logging={"tensorboard": True},
        optim={"schedule_steps": UPDATES},  # the same updates, however many of them a run has
    )


def with_sections(recipe: Path, name: str | None = None, **sections: dict[str, Any]) -> Path:
    values = yaml.safe_load(recipe.read_text())
    for section, changes in sections.items():
        values[section] = {**values.get(section, {}), **changes}
    path = recipe.with_name(f"{name}.yaml") if name else recipe
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def straight(recipe: Path) -> Run:
    folder = recipe.with_name("straight")
    done = train(recipe, f"run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return Run(folder, (done,))


def answers(run: Path) -> list[dict[str, Any]]:
    """The lines of probes that have ended."""
    return [line for line in Run(run, ()).metrics if "probe/failed" in line]


def results(line: dict[str, Any]) -> dict[str, Any]:
    """What a line says of the model, but for times and counts."""
    return {key: value for key, value in line.items() if key.startswith("probe/instrument/")}


def trained_steps(run: Path) -> list[int]:
    return [line["step"] for line in Run(run, ()).metrics if "loss" in line]


def has_encoder(run: Path, step: int) -> bool:
    return (run / "probes" / f"step-{step:08d}" / "encoder.safetensors").is_file()


def test_a_probe_beside_training_answers_as_one_of_the_checkpoint_does(
    straight: Run, recipe: Path
) -> None:
    out = recipe.with_name("afterwards")
    words = ["--tasks", "instrument", "--tracks", "54", "--seconds", "5"]
    subprocess.run(
        [sys.executable, PROBE, straight.folder / "checkpoints" / f"step-{EVERY:08d}", *words]
        + ["--out", out, "--cache", recipe.with_name("rendered")],
        check=True,
        env=ENVIRONMENT,
        capture_output=True,
    )
    task = json.loads((out / "results.json").read_text())["tasks"]["instrument"]
    (_, model), *others = task["results"].items()
    assert {"untrained", "log-mel"} <= {name for name, _ in others}
    first = answers(straight.folder)[0]
    assert first["step"] == EVERY
    assert results(first) == {
        "probe/instrument/test_accuracy": model["test"]["value"],
        "probe/instrument/test_accuracy_low": model["test"]["low"],
        "probe/instrument/test_accuracy_high": model["test"]["high"],
        "probe/instrument/layer": model["chosen_layer"],
        **{f"probe/instrument/{name}": other["test"]["value"] for name, other in others},
        "probe/instrument/majority_rate": task["majority_rate"],
    }


def test_the_answer_stands_once_and_the_stall_where_it_was(straight: Run) -> None:
    stall, answer = (line for line in straight.metrics if any("probe/" in key for key in line))
    assert [*stall] == ["step", "probe/stall_seconds"] and stall["step"] == EVERY
    assert (answer["probe/failed"], answer["probe/skipped"]) == (0, 0)
    assert answer["probe/seconds"] > 0
    assert trained_steps(straight.folder) == list(range(1, UPDATES + 1))


def test_an_answered_probe_leaves_its_results_and_no_encoder(straight: Run) -> None:
    for line in answers(straight.folder):
        folder = straight.folder / "probes" / f"step-{line['step']:08d}"
        assert {path.name for path in folder.iterdir()} == {
            *("results.json", "layers.png", "probe.log")
        }


def test_tensorboard_has_the_probe_at_the_update_it_belongs_to(straight: Run) -> None:
    events = EventAccumulator(str(straight.folder / "tensorboard")).Reload()
    line = answers(straight.folder)[0]
    for key in ("test_accuracy", "test_accuracy_low", "untrained", "log-mel"):
        name = f"probe/instrument/{key}"
        first = events.Scalars(name)[0]
        assert (first.step, first.value) == (EVERY, pytest.approx(line[name], abs=1e-6))


def test_the_page_of_such_a_run_has_its_probes(straight: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    subprocess.run(
        [sys.executable, LAUNCH / "compare.py", straight.folder, "--out", page],
        check=True,
        env=ENVIRONMENT,
        capture_output=True,
    )
    text = page.read_text()
    assert "probe of instrument" in text and "probe/instrument/layer" in text


@pytest.fixture(scope="module")
def endless(recipe: Path) -> Path:
    """The same without an end in sight: what is done to it is done while it trains."""
    return with_sections(
        recipe, "endless", train={"max_steps": 1_000_000}, checkpoint={"every_steps": 1_000_000}
    )


def test_a_killed_trainer_takes_its_probe_with_it_and_what_comes_again_is_probed_once(
    endless: Path, straight: Run
) -> None:
    run = endless.with_name("killed")
    launched = Launched("python", endless, run)
    assert launched.wait(lambda: launched.runs(str(PROBE)))
    os.kill(launched.command.pid, signal.SIGKILL)
    _, seconds = launched.end(ENDS_WITHIN)
    assert launched.command.returncode == -signal.SIGKILL and seconds < ENDS_WITHIN
    assert answers(run) == [] and has_encoder(run, EVERY)

    # There was no checkpoint: it begins at 0, and its probe is another one.
    done = train(endless, f"run.dir={run}", f"train.max_steps={UPDATES}")
    assert done.returncode == 0 and "again" not in done.stderr
    (line,) = answers(run)
    assert line["step"] == EVERY and results(line) == results(answers(straight.folder)[0])
    assert trained_steps(run) == list(range(1, UPDATES + 1))


def test_a_run_that_is_asked_to_stop_ends_its_probe_and_begins_it_again(
    endless: Path, straight: Run
) -> None:
    run = endless.with_name("stopped")
    launched = Launched("python", endless, run)
    assert launched.wait(lambda: launched.runs(str(PROBE)) and launched.updates > 4 * EVERY)
    launched.command.terminate()
    _, seconds = launched.end(ENDS_WITHIN)
    assert launched.command.returncode == 75 and seconds < ENDS_WITHIN
    assert has_encoder(run, EVERY) and answers(run) == []

    # Those that were due meanwhile were left out, counted and told.
    step = Run(run, ()).exit["step"]
    skipped = {
        line["step"]: line["probe/skipped"]
        for line in Run(run, ()).metrics
        if "probe/skipped" in line
    }
    due = range(2 * EVERY, step + 1, EVERY)
    assert skipped == {late: number for number, late in enumerate(due, start=1)} != {}
    assert all(
        f"no probe of update {late}: that of update {EVERY}" in launched.said for late in due
    )

    done = train(endless, f"run.dir={run}", f"train.max_steps={step}")
    assert done.returncode == 0 and f"probe of update {EVERY} again" in done.stderr
    (line,) = answers(run)
    assert results(line) == results(answers(straight.folder)[0])
    assert line["probe/skipped"] == len(skipped) and not has_encoder(run, EVERY)


def test_a_finished_run_waits_no_longer_than_it_may_and_says_so(
    recipe: Path, straight: Run
) -> None:
    run = recipe.with_name("impatient")
    hasty = train(recipe, f"run.dir={run}", "probe.wait_seconds=0")
    assert hasty.returncode == 0 and f"probe of update {EVERY} is not done" in hasty.stderr
    assert has_encoder(run, EVERY) and answers(run) == []
    assert train(recipe, f"run.dir={run}").returncode == 0
    (line,) = answers(run)
    assert results(line) == results(answers(straight.folder)[0])
    lines = Run(run, ()).metrics
    assert train(recipe, f"run.dir={run}").returncode == 0 and Run(run, ()).metrics == lines


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("probe.tasks=[genre]", "`probe.tasks` must be among"),
        ("probe.seconds=1", "`probe.seconds` in `probe.seconds=1`: Input should be greater"),
        ("probe.every_step=3", "Did you mean `every_steps`?"),
    ],
)
def test_a_probe_that_cannot_be_is_refused_before_torch_is_imported(
    recipe: Path, word: str, said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", LAUNCH / "train.py", recipe, word],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    imports = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert done.returncode == 2 and said in done.stderr
    assert not any(line.rpartition("|")[2].strip() == "torch" for line in imports)
