"""A run whose gradients stay non-finite goes back, passes over the data, and then stops."""

import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from engine_parts import lines, run, saved
from run_parts import without_times
from training_parts import SMALL

from etude.data.batch import AudioBatch, scaled
from etude.data.pipeline import training_batches
from etude.data.shards import Corpus
from etude.pretrain import assemble
from etude.pretrain.config_file import load_config
from etude.pretrain.errors import NumericsError, PreemptedError
from etude.pretrain.inputs import check_inputs

pytestmark = pytest.mark.usefixtures("process_group")

UPDATES, BATCH = 20, 2
TROUBLE = (9, 10, 11)
"""Updates' worth of data that no gradient is finite on: one more than is borne."""

ENGINES = [
    pytest.param(("train.engine=ddp",), id="ddp"),
    pytest.param(("deepspeed.zero_optimization.stage=0",), id="stage 0"),
    pytest.param(("deepspeed.zero_optimization.stage=2", "train.precision=bf16"), id="stage 2"),
]


@pytest.fixture(scope="module")
def recipe(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rollback")
    teacher = {"kind": "teacher", "top_layers": 2, "decay": 0.9, "end_decay": 0.99}
    values = {
        "run": {"dir": str(folder / "unused")},
        "data": {"corpus": str(small_corpus.root), "crop_seconds": 1.0, "workers": 0},
        "model": {**SMALL, "conv_norm": "layer", "dropout": 0.1},
        "objective": {"targets": {"teacher": teacher}},
        "train": {
            **{"max_steps": UPDATES, "global_batch": BATCH, "micro_batch": 1, "precision": "fp32"},
            **{"max_skipped_updates": 2, "skip_window": 10},
        },
        "optim": {"lr": 0.001, "warmup_steps": 2},
        "checkpoint": {"every_steps": 4, "keep": 3},
        "logging": {"every_steps": 1, "valid_every_steps": 1000, "tensorboard": False},
        "health": {"every_steps": 0, "min_target_std": 0.0, "min_prediction_std": 0.0},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


Batches = Callable[..., Iterator[AudioBatch]]


def poisoned(updates: Sequence[int]) -> Batches:
    """Batches in which one sample of each of these updates' data is not a number."""

    def batches(*given: Any, **named: Any) -> Iterator[AudioBatch]:
        for batch in training_batches(*given, **named):
            if int(batch.update) in updates:
                batch = batch._replace(waveform=scaled(batch.waveform))
                batch.waveform[0, 1000] = math.nan
            yield batch

    return batches


def without(updates: Sequence[int]) -> Batches:
    """Batches of a run in whose data these updates' worth never was."""

    def batches(*given: Any, **named: Any) -> Iterator[AudioBatch]:
        for batch in training_batches(*given, **named):
            if int(batch.update) not in updates:
                yield batch

    return batches


def feed(monkeypatch: pytest.MonkeyPatch, batches: Batches) -> None:
    monkeypatch.setattr(assemble, "training_batches", batches)


def trained(folder: Path) -> list[dict[str, Any]]:
    """What a run's lines say of its training, without what they say of lost updates."""
    counts = ("optim/skipped_updates", "optim/rollbacks", "data/epochs")
    return [
        {key: value for key, value in line.items() if key not in counts}
        for line in without_times(lines(folder))
    ]


@pytest.mark.parametrize("words", ENGINES)
def test_a_run_goes_back_and_passes_over_the_data_to_the_last_bit(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    feed(monkeypatch, poisoned(TROUBLE))
    trainer = run(recipe, tmp_path / "poisoned", *words)
    assert (trainer.state.rollbacks, trainer.state.skipped_updates) == (1, 3)
    assert trainer.state.passed_over == 4  # 8, of the checkpoint it went back to, to 11

    feed(monkeypatch, without((8, 9, 10, 11)))
    run(recipe, tmp_path / "clean", *words)
    assert trained(tmp_path / "poisoned") == trained(tmp_path / "clean")
    assert [line["step"] for line in lines(tmp_path / "poisoned")] == list(range(1, UPDATES + 1))
    for value in trainer.engine.objective.state_dict().values():  # type: ignore[attr-defined]
        assert torch.isfinite(value).all()


def test_what_was_lost_is_written_down_with_its_clips(
    recipe: Path, small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(monkeypatch, poisoned((3, 15)))
    trainer = run(recipe, tmp_path, "train.engine=ddp")
    assert trainer.state.rollbacks == 0
    assert [line["optim/skipped_updates"] for line in lines(tmp_path)][2:4] == [0, 1]
    found = lines(tmp_path, "incidents.jsonl")
    assert [(one["step"], one["kind"]) for one in found] == [
        (4, "gradient not finite"),
        (16, "gradient not finite"),
    ]
    plan = check_inputs(load_config(recipe), rank=0, ranks=1, device="cpu").train
    shards = [
        (shard.file, number)
        for shard, rows in small_corpus.shard_rows()
        for number in range(len(rows))
        if shard.split == "train"
    ]
    for one in found:
        last = BATCH * one["step"]
        expected = [plan.crop(position) for position in range(last - BATCH, last)]
        for clip, planned in zip(one["clips"], expected, strict=True):
            assert (clip["shard"], clip["clip"]) == shards[planned.clip]
            assert clip["start_seconds"] == planned.start / 24_000


def test_a_run_that_is_stopped_after_it_went_back_continues_there(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(monkeypatch, poisoned(TROUBLE))
    run(recipe, tmp_path / "straight", "train.engine=ddp")

    def interrupted(*given: Any, **named: Any) -> Iterator[AudioBatch]:
        for batch in poisoned(TROUBLE)(*given, **named):
            if int(batch.update) == 13:  # update 9, the second time
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    feed(monkeypatch, interrupted)
    with pytest.raises(PreemptedError, match="stopped at update 10"):
        run(recipe, tmp_path / "stopped", "train.engine=ddp")
    # 4 is older, 8 is what it went back to, and those after 8 were of a history given up.
    assert saved(tmp_path / "stopped") == [4, 8, 10]
    feed(monkeypatch, poisoned(TROUBLE))
    run(recipe, tmp_path / "stopped", "train.engine=ddp")
    assert without_times(lines(tmp_path / "stopped")) == without_times(lines(tmp_path / "straight"))


def test_the_second_time_it_stops(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(monkeypatch, poisoned((*TROUBLE, 17, 18, 19)))
    with pytest.raises(NumericsError, match="has gone back 1 times already") as caught:
        run(recipe, tmp_path, "train.engine=ddp")
    assert caught.value.exit_status == 4
    # Asked to bear more, the same command goes on.
    trainer = run(recipe, tmp_path, "train.engine=ddp", "train.max_rollbacks=2")
    assert trainer.step == UPDATES and trainer.state.rollbacks == 2


def test_without_a_checkpoint_from_before_it_stops(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(monkeypatch, poisoned((2, 3, 5)))
    with pytest.raises(NumericsError, match="no checkpoint from before to go back to") as caught:
        run(recipe, tmp_path, "train.engine=ddp")
    assert caught.value.exit_status == 4
