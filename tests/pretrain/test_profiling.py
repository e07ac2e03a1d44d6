"""A profile of real updates: time is said to go where it goes, and nothing stays behind."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from engine_parts import DDP, STAGES, Training, lines, run
from run_parts import without_times
from torch.profiler import ProfilerActivity, profile, record_function
from training_parts import SMALL

from etude.data.shards import Corpus
from etude.pretrain.breakdown import PREFIX, UPDATE, Breakdown, break_down
from etude.pretrain.parts import PARTS, watched, watched_call
from etude.pretrain.profiling import UPDATES, WARM_UP

pytestmark = pytest.mark.usefixtures("process_group")

EVERY_KIND = {
    "cqt": {"kind": "cqt", "bins": 24, "bins_per_octave": 12, "fmin": 220.0},
    "teacher": {"kind": "teacher", "top_layers": 2},
}


@pytest.fixture(scope="module")
def recipe(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiling")
    values = {
        "run": {"dir": str(folder / "unused")},
        "data": {"corpus": str(small_corpus.root), "crop_seconds": 1.0, "workers": 0},
        "model": SMALL,
        "objective": {"targets": EVERY_KIND},
        "train": {"max_steps": WARM_UP + UPDATES + 1, "global_batch": 4, "micro_batch": 2},
        "optim": {"lr": 0.001, "warmup_steps": 2},
        "logging": {"every_steps": 1, "valid_every_steps": 1000, "tensorboard": False},
        "health": {"every_steps": 0, "min_target_std": 0.0, "min_prediction_std": 0.0},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "profile" / "breakdown.json").read_text())
    return found


def seconds(part: dict[str, float]) -> float:
    return part["forward"] + part["backward"]


@pytest.mark.parametrize(
    "words", [pytest.param(DDP, id="ddp"), pytest.param(STAGES[2], id="stage 2")]
)
def test_the_parts_of_a_profiled_run_are_all_of_its_updates(
    recipe: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    run(recipe, tmp_path / "run", "train.profile=true", *words)
    found = content(tmp_path / "run")
    assert list(found["parts"]) == list(PARTS)
    assert found["updates"] == UPDATES
    spent = {name: seconds(part) for name, part in found["parts"].items()}
    assert sum(spent.values()) == pytest.approx(found["seconds"], rel=1e-6)
    assert sum(part["share"] for part in found["parts"].values()) == pytest.approx(1.0)
    assert all(value > 0.0 for value in spent.values()), spent
    # Of the others: the sum of losses and the penalty on features.
    trained = {"front end", "positions", "transformer", "heads", "other"}
    assert {name for name, part in found["parts"].items() if part["backward"]} == trained
    table = (tmp_path / "run" / "profile" / "breakdown.txt").read_text().splitlines()
    assert [line[:14].strip() for line in table[3:]] == [*PARTS, "whole"]
    with gzip.open(tmp_path / "run" / "profile" / "trace.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {f"{PREFIX}{part}" for part in PARTS if part != "other"} <= names


def test_a_profile_changes_no_number_of_a_run_and_leaves_nothing_behind(
    recipe: Path, tmp_path: Path
) -> None:
    plain = run(recipe, tmp_path / "plain", "train.engine=ddp")
    profiled = run(recipe, tmp_path / "profiled", "train.engine=ddp", "train.profile=true")
    assert without_times(lines(tmp_path / "plain")) == without_times(lines(tmp_path / "profiled"))
    assert not (tmp_path / "plain" / "profile").exists()
    for trainer in (plain, profiled):
        assert "next_batch" not in vars(trainer) and "one_update" not in vars(trainer)
        assert "update" not in vars(trainer.engine)
        objective = trainer.engine.objective
        for module in objective.modules():
            assert not {"forward", "compute", "loss", "context", "after_step"} & set(vars(module))


def test_a_run_that_ends_meanwhile_writes_what_it_has(recipe: Path, tmp_path: Path) -> None:
    words = ("train.engine=ddp", "train.profile=true")
    run(recipe, tmp_path / "short", *words, f"train.max_steps={WARM_UP + 1}")
    assert content(tmp_path / "short")["updates"] == 1
    run(recipe, tmp_path / "shorter", *words, f"train.max_steps={WARM_UP}")
    assert not (tmp_path / "shorter" / "profile").exists()


def enter(part: str) -> record_function:
    return record_function(f"{PREFIX}{part}")


def broken_down(recipe: Path, *words: str) -> Breakdown:
    """Three updates that no trainer makes: forward and backward of micro-batches, and the step."""
    training = Training(recipe, "train.engine=ddp", *words)
    training.train(range(2))
    with (
        profile(activities=[ProfilerActivity.CPU]) as recording,
        watched(training.objective, enter),
        watched_call(training.engine, "update", "optimizer", enter),
        record_function(UPDATE),
    ):
        training.train(range(2, 5))
    return break_down(recording.events())


@pytest.fixture(scope="module")
def usual(recipe: Path, process_group: None) -> Breakdown:
    return broken_down(recipe)


def test_backward_belongs_to_the_part_whose_forward_it_undoes(usual: Breakdown) -> None:
    nodes = usual.nodes
    assert "ActivatedConvBackward" in nodes["front end"]
    assert "ConvolutionBackward0" in nodes["positions"]
    assert "_AttentionBackward" in nodes["transformer"]
    assert {"MseLossBackward0", "SumBackward1"} <= nodes["heads"]
    elsewhere = set().union(*(nodes.get(part, set()) for part in ("targets", "optimizer", "data")))
    assert elsewhere == set()
    # The weighted sum of losses and the penalty on features are nobody's.
    assert "AccumulateGrad" not in nodes.get("other", set())


def test_what_is_not_an_update_does_not_count(recipe: Path) -> None:
    training = Training(recipe, "train.engine=ddp")
    batch = next(training.batches(0))
    with (
        profile(activities=[ProfilerActivity.CPU]) as recording,
        watched(training.objective, enter),
    ):
        training.engine.evaluate(batch)
    found = break_down(recording.events())
    assert (found.updates, found.seconds) == (0, 0.0)
    assert all(vars(spent) == dict.fromkeys(vars(spent), 0.0) for spent in found.parts.values())
