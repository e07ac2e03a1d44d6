"""What a look at representations finds, and how a run that collapses is ended."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from engine_parts import ALONE, lines, run, saved
from torch import Tensor
from torch.nn import functional as F
from training_parts import SMALL

from etude.data.batch import scaled
from etude.data.pipeline import held_out_batches
from etude.data.shards import Corpus
from etude.pretrain.checkpoint import Checkpoints, find_damage
from etude.pretrain.config_file import load_config
from etude.pretrain.engine_ddp import DdpEngine
from etude.pretrain.errors import CollapseError, NumericsError
from etude.pretrain.health import FeatureHealth, StopAtCollapse
from etude.pretrain.hooks import SaveCheckpoints
from etude.pretrain.inputs import check_inputs
from etude.pretrain.masked_prediction import MaskedPrediction
from etude.pretrain.trainer import Trainer

pytestmark = pytest.mark.usefixtures("process_group")

# What features say of themselves.


def looked_at(*parts: Tensor) -> dict[str, float]:
    health = FeatureHealth()
    for part in parts:
        health.add(part)
    return health.results()


def random_features(*, rank: int = 12, width: int = 12) -> Tensor:
    """(B, F, C) = (6, 50, width) with an offset, ``rank`` equally strong directions."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q[:rank]
    return torch.randn(6, 50, rank, generator=generator) @ axes + 0.7


def test_spread_rank_and_cosines_are_those_of_brute_force() -> None:
    features = random_features() * torch.linspace(0.1, 3.0, 12)
    flat = features.double().flatten(0, 1).numpy()
    singular = np.linalg.svd(flat - flat.mean(axis=0), compute_uv=False)
    share = singular / singular.sum()
    frames = [
        F.cosine_similarity(clip[i], clip[j], dim=0).item()
        for clip in features
        for i in range(50)
        for j in range(i)
    ]
    means = features.mean(dim=1)
    clips = [
        F.cosine_similarity(means[i], means[j], dim=0).item() for i in range(6) for j in range(i)
    ]
    expected = {
        "std": flat.std(axis=0).mean(),
        "rank": math.exp(-(share * np.log(share)).sum()),
        "frame_cosine": np.mean(frames),
        "clip_cosine": np.mean(clips),
    }
    assert 5 < expected["rank"] < 11 and 0.1 < expected["frame_cosine"] < 0.9
    assert looked_at(features) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("rank", "width"), [(1, 12), (3, 12), (12, 12), (3, 200)])
def test_the_rank_is_the_number_of_directions_that_features_have(rank: int, width: int) -> None:
    found = looked_at(random_features(rank=rank, width=width))["rank"]
    assert found == pytest.approx(rank, rel=0.02)


def test_features_in_parts_are_those_at_once() -> None:
    features = random_features()
    expected = looked_at(features)
    assert looked_at(*features.split([1, 3, 2])) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("level", [0.0, 0.1, 1000.0])
def test_features_that_are_all_alike_have_no_spread_and_a_rank_of_one(level: float) -> None:
    vector = level * torch.randn(32, generator=torch.Generator().manual_seed(1))
    found = looked_at(vector.expand(4, 50, 32))
    assert found["std"] <= 1e-6 * level
    assert found["rank"] == pytest.approx(1.0, abs=1e-6)


def test_dead_features_are_not_told_to_be_opposite_to_each_other() -> None:
    found = looked_at(torch.zeros(4, 50, 32))
    assert found["frame_cosine"] >= 0.0 and found["clip_cosine"] >= 0.0


def test_features_that_are_not_numbers_do_not_break_the_look() -> None:
    features = random_features()
    features[1, 2, 3] = torch.nan
    assert math.isnan(looked_at(features)["rank"])


# Runs.


STEPS = 9


@pytest.fixture(scope="module")
def recipe(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that follows so closely that student and teacher agree on less and less."""
    folder = tmp_path_factory.mktemp("health")
    teacher = {"kind": "teacher", "top_layers": 2, "decay": 0.5, "end_decay": 0.5}
    values = {
        "run": {"dir": str(folder / "unused")},
        "data": {"corpus": str(small_corpus.root), "crop_seconds": 1.0, "workers": 0},
        "model": {**SMALL, "layers": 3, "conv_norm": "layer", "normalize": True, "dropout": 0.1},
        "objective": {"targets": {"teacher": teacher}, "feature_penalty": 0.0},
        "train": {
            **{"max_steps": STEPS, "global_batch": 2, "micro_batch": 2},
            **{"precision": "fp32", "engine": "ddp"},
        },
        "optim": {"lr": 0.01, "warmup_steps": 0, "clip_norm": 1.0, "schedule_steps": 12},
        "checkpoint": {"every_steps": 1000, "keep": 20},
        "logging": {"every_steps": 1, "valid_every_steps": 1000, "tensorboard": False},
        "health": {
            **{"every_steps": 0, "crops": 3, "after_steps": 0},
            **{"min_target_std": 0.0, "min_prediction_std": 0.0},
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def collapsed(recipe: Path, folder: Path, *words: str) -> CollapseError:
    with pytest.raises(CollapseError) as caught:
        run(recipe, folder, *words)
    assert isinstance(caught.value, NumericsError) and caught.value.exit_status == 4
    return caught.value


class Free:
    """The run that nothing stops, and the limit that its predictions pass between 6 and 7."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self.trainer = run(recipe, folder)
        self.spread = [line["teacher/prediction_std"] for line in lines(folder)]
        assert min(self.spread[:6]) > max(self.spread[6:])
        self.limit = math.sqrt(min(self.spread[:6]) * max(self.spread[6:]))
        self.near = [n + 1 for n, value in enumerate(self.spread[:6]) if value < 3 * self.limit]
        assert 0 < len(self.near) < 6
        self.word = f"health.min_prediction_std={self.limit}"


@pytest.fixture(scope="module")
def free(recipe: Path) -> Free:
    return Free(recipe, recipe.parent / "free")


def test_a_run_is_stopped_where_its_spread_falls_below_the_limit(
    recipe: Path, free: Free, tmp_path: Path
) -> None:
    error = collapsed(recipe, tmp_path, free.word)
    message = str(error)
    assert "collapse at update 7: teacher/prediction_std is" in message
    assert f"is {free.spread[6]:.3g}, below health.min_prediction_std ({free.limit:g})" in message
    assert "last healthy log line is that of update 6." in message
    healthy = tmp_path / "checkpoints" / "step-00000006"
    assert error.checkpoint == healthy and find_damage(healthy) is None
    assert f"last healthy checkpoint is {healthy}." in message
    # The line that condemns it is there; near the limit, every line before left a checkpoint.
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 8))
    assert saved(tmp_path) == free.near


def test_a_target_without_spread_stops_a_run_too(recipe: Path, tmp_path: Path) -> None:
    error = collapsed(recipe, tmp_path, "health.min_target_std=50")
    assert "collapse at update 1: teacher/target_std is" in str(error)
    assert "(50)" in str(error) and "There is no checkpoint from before." in str(error)
    assert error.checkpoint is None and saved(tmp_path) == []


def test_nothing_is_judged_before_its_time(recipe: Path, free: Free, tmp_path: Path) -> None:
    late = collapsed(recipe, tmp_path / "late", free.word, "health.after_steps=7")
    assert "collapse at update 8" in str(late)
    run(recipe, tmp_path / "never", free.word, f"health.after_steps={STEPS}")
    assert saved(tmp_path / "never") == [STEPS]


def test_a_line_below_the_limit_is_not_called_healthy_for_not_being_judged(
    recipe: Path, free: Free, tmp_path: Path
) -> None:
    words = (free.word, "health.after_steps=8", "checkpoint.every_steps=1")
    error = collapsed(recipe, tmp_path, *words)
    assert "last healthy log line is that of update 6." in str(error)
    assert error.checkpoint == tmp_path / "checkpoints" / "step-00000006"


def test_a_run_that_continues_holds_its_checkpoint_for_healthy(
    recipe: Path, tmp_path: Path
) -> None:
    run(recipe, tmp_path, "train.max_steps=2", "optim.schedule_steps=12")
    error = collapsed(recipe, tmp_path, "health.min_prediction_std=50")
    assert "collapse at update 3" in str(error) and "that of update 2." in str(error)
    assert error.checkpoint == tmp_path / "checkpoints" / "step-00000002"


def test_an_objective_without_a_teacher_is_never_stopped(recipe: Path, tmp_path: Path) -> None:
    cqt = "objective.targets={cqt: {kind: cqt, bins: 24, bins_per_octave: 12}}"
    words = ("health.min_target_std=1e9", "health.min_prediction_std=1e9", "train.max_steps=2")
    trainer = run(recipe, tmp_path, cqt, *words)
    assert trainer.step == 2 and saved(tmp_path) == [2]
    assert not any(key.endswith("_std") for key in lines(tmp_path)[-1])


# One line at a time.


class Judge:
    """The hook in the trainer of a real run, and where its checkpoints go."""

    def __init__(self, trainer: Trainer, folder: Path, **limits: float) -> None:
        assert isinstance(trainer.engine, DdpEngine)
        objective = trainer.engine.objective
        assert isinstance(objective, MaskedPrediction)
        checkpoints = Checkpoints(folder / "checkpoints", keep=20, world=ALONE)
        saver = SaveCheckpoints(
            checkpoints, objective, every=1000, max_steps=1000, corpus="", asynchronous=True
        )
        self.saver, self.trainer = saver, trainer
        chosen = {"target_std": 0.1, "prediction_std": 0.01, **limits}
        self.hook = StopAtCollapse(chosen, after_steps=10, saver=saver)

    def hears(self, step: int, **values: float) -> None:
        self.trainer.state.step = step
        line = {key.replace("__", "/"): value for key, value in values.items()}
        self.hook.logged(self.trainer, {"loss": 1.0, **line})
        self.saver.finish()


def test_what_is_not_a_number_is_not_healthy(free: Free, tmp_path: Path) -> None:
    judge = Judge(free.trainer, tmp_path)
    judge.hears(20, a__target_std=0.5)
    with pytest.raises(CollapseError, match="update 21: a/target_std is nan.*that of update 20"):
        judge.hears(21, a__target_std=math.nan)


def test_held_out_crops_and_looks_at_features_are_not_judged(free: Free, tmp_path: Path) -> None:
    judge = Judge(free.trainer, tmp_path)
    judge.hears(20, a__target_std=0.5, valid__a__target_std=0.0, health__a__std=0.0)
    judge.hears(21, valid__a__prediction_std=math.nan)
    assert saved(tmp_path) == []
    with pytest.raises(CollapseError, match="b/prediction_std is 0, .* that of update 20"):
        judge.hears(22, a__target_std=0.5, b__prediction_std=0.0)


def test_a_checkpoint_after_the_last_healthy_line_is_not_the_last_healthy_one(
    free: Free, tmp_path: Path
) -> None:
    judge = Judge(free.trainer, tmp_path)
    judge.hears(20, a__target_std=0.15)
    judge.trainer.state.step = 21
    judge.saver.save(judge.trainer)
    with pytest.raises(CollapseError) as caught:
        judge.hears(22, a__target_std=0.09)
    assert saved(tmp_path) == [20, 21]
    assert caught.value.checkpoint == tmp_path / "checkpoints" / "step-00000020"


@pytest.mark.parametrize(("value", "steps"), [(0.1, [20]), (0.299, [20]), (0.301, []), (9.0, [])])
def test_a_line_that_passes_close_to_the_limit_leaves_a_checkpoint(
    free: Free, tmp_path: Path, value: float, steps: list[int]
) -> None:
    judge = Judge(free.trainer, tmp_path)
    judge.hears(10, a__target_std=0.0)  # not judged yet
    judge.hears(20, a__target_std=value, a__prediction_std=1.0)
    assert saved(tmp_path) == steps


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_limit_of_zero_allows_everything(free: Free, tmp_path: Path, value: float) -> None:
    judge = Judge(free.trainer, tmp_path, target_std=0.0, prediction_std=0.0)
    judge.hears(20, a__target_std=value, a__prediction_std=value)
    assert saved(tmp_path) == []


# The look at a run.


def test_a_look_reports_the_features_of_held_out_crops_and_leaves_training_as_it_was(
    recipe: Path, free: Free, tmp_path: Path
) -> None:
    trainer = run(recipe, tmp_path, "health.every_steps=4")
    found = lines(tmp_path)
    looks = [line["step"] for line in found if any(key.startswith("health/") for key in line)]
    assert looks == [4, 8, STEPS]
    assert [line["teacher/prediction_std"] for line in found] == free.spread

    # A validation just before, as at the end of a run, makes no difference.
    run(recipe, tmp_path / "short", "health.every_steps=4", "train.max_steps=4")
    first, again = (
        {key: value for key, value in line.items() if key.startswith("health/")}
        for line in (found[3], lines(tmp_path / "short")[-1])
    )
    assert first == again and "valid/loss" not in found[3]

    assert isinstance(trainer.engine, DdpEngine)
    objective = trainer.engine.objective.eval()
    assert isinstance(objective, MaskedPrediction)
    config = load_config(recipe, ["health.every_steps=4"])
    inputs = check_inputs(config, rank=0, ranks=1, device="cpu")
    assert inputs.valid is not None
    batches = list(held_out_batches(inputs.valid, crops=3, micro_batch=2, rank=0, ranks=1))
    waveform = scaled(torch.cat([batch.waveform for batch in batches]))
    assert len(waveform) == 3
    with torch.no_grad():
        raw = objective.encoder.frontend(waveform).raw
        states = objective.encoder(waveform).hidden_states
    seen = {"conv": raw, "layer0": states[0], "layer1": states[1], "layer3": states[3]}
    last = {key: value for key, value in found[-1].items() if key.startswith("health/")}
    assert {key.split("/")[1] for key in last} == {*seen, "teacher"}
    for name, features in seen.items():
        for quantity, value in looked_at(features).items():
            assert last[f"health/{name}/{quantity}"] == pytest.approx(value, rel=1e-3)
    assert 0.0 < last["health/teacher/std"] < 1.0
