"""music2vec's objective as a user runs it: two ranks, accumulation, stopping and continuing."""

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from run_parts import Run, deepspeed, run_stages, together, train, without_times
from safetensors.torch import load_file
from torch import Tensor
from training_parts import SMALL

from etude.data.shards import Corpus
from etude.pretrain.assemble import build_objective
from etude.pretrain.config_file import load_config
from etude.pretrain.inputs import check_inputs

START, END, ANNEAL, STEPS = 0.9, 0.99, 4, 5
STAGES = (0, 1, 2)


@pytest.fixture(scope="module")
def recipe(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    teacher = {"kind": "teacher", "top_layers": 2, "decay": START, "end_decay": END}
    values = {
        "run": {"dir": str(folder / "unused")},
        "data": {"corpus": str(small_corpus.root), "crop_seconds": 1.0, "workers": 0},
        "model": {**SMALL, "conv_norm": "layer", "position_depth": 3, "normalize": True},
        "objective": {
            "targets": {"teacher": {**teacher, "anneal_steps": ANNEAL}},
            "feature_penalty": 0.0,
        },
        # One crop a micro-batch: three are accumulated on each of two ranks, six on one.
        "train": {"max_steps": STEPS, "global_batch": 6, "micro_batch": 1, "precision": "bf16"},
        "optim": {"lr": 1e-3, "warmup_steps": 1, "schedule_steps": 20},
        "checkpoint": {"every_steps": 1, "keep": 10},
        "logging": {"every_steps": 1, "valid_every_steps": 3},
        "health": {"every_steps": 3},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def runs(recipe: Path) -> dict[str, Run]:
    run = partial(run_stages, recipe)
    made = together(
        *(
            partial(
                run,
                f"stage {stage}",
                (deepspeed(2), STEPS),
                words=(f"deepspeed.zero_optimization.stage={stage}",),
            )
            for stage in STAGES
        ),
        partial(run, "halves", (deepspeed(2), 3), (deepspeed(2), STEPS)),
    )
    return {run.folder.name: run for run in made}


def module_state(checkpoint: Path) -> dict[str, Tensor]:
    """What DeepSpeed saved of the objective; its file holds more than tensors."""
    (file,) = checkpoint.rglob("mp_rank_00_model_states.pt")
    state: dict[str, Tensor] = torch.load(file, weights_only=False)["module"]
    return state


@pytest.mark.parametrize("stage", STAGES)
def test_on_two_ranks_the_teacher_is_the_average_of_the_student(
    runs: dict[str, Run], recipe: Path, stage: int
) -> None:
    run = runs[f"stage {stage}"]
    assert run.done[0].returncode == 0, run.done[0].stderr
    config = load_config(recipe, [])
    objective = build_objective(config, check_inputs(config, rank=0, ranks=1, device="cpu"))
    prefix = "targets.teacher.teacher."
    names = [n.removeprefix(prefix) for n in objective.state_dict() if n.startswith(prefix)]
    expected = {name: objective.encoder.state_dict()[name].double() for name in names}
    for step, checkpoint in enumerate(run.checkpoints, start=1):
        assert checkpoint.name == f"step-{step:08d}"
        decay = START + (END - START) * min(1.0, step / ANNEAL)
        saved = module_state(checkpoint)
        for name in names:
            kept = 0.0 if name.startswith("positions.") else decay
            student = saved[f"encoder.{name}"].double()
            expected[name] = kept * expected[name] + (1.0 - kept) * student
            teacher = saved[prefix + name]
            assert teacher.dtype == torch.float32
            error = (teacher.double() - expected[name]).norm()
            assert error <= 1e-6 * expected[name].norm() + 1e-12, (step, name)
    assert step == STEPS


def test_the_teacher_goes_on_where_it_stopped_to_the_last_bit(runs: dict[str, Run]) -> None:
    straight, halves = runs["stage 0"], runs["halves"]
    assert [done.returncode for done in halves.done] == [0, 0], halves.done[-1].stderr
    one, other = (module_state(run.checkpoints[-1]) for run in (straight, halves))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(other[name], value), name
    assert without_times(halves.metrics) == without_times(straight.metrics)


def test_what_is_shipped_is_the_student_alone(runs: dict[str, Run]) -> None:
    checkpoint = runs["stage 0"].checkpoints[-1]
    shipped, saved = load_file(checkpoint / "encoder.safetensors"), module_state(checkpoint)
    assert not [name for name in shipped if "teacher" in name]
    for name, value in shipped.items():
        assert torch.equal(value, saved[f"encoder.{name}"]), name


def test_a_line_tells_loss_spread_and_decay_and_some_lines_health(runs: dict[str, Run]) -> None:
    lines = runs["stage 0"].metrics
    for step, line in enumerate(lines, start=1):
        quantities = {key for key in line if key.startswith("teacher/")}
        names = ("loss", "copy_loss", "constant_loss", "target_std", "prediction_std", "decay")
        assert quantities == {f"teacher/{name}" for name in names}
        assert line["teacher/decay"] == pytest.approx(
            START + (END - START) * min(1.0, step / ANNEAL)
        )
        assert 0 < line["teacher/target_std"] < 2
    looked = [{k for k in line if k.startswith("health/")} for line in lines]
    features = ("conv", "layer0", "layer1", "layer2", "teacher")
    quantities = {"std", "rank", "frame_cosine", "clip_cosine"}
    every = {f"health/{feature}/{quantity}" for feature in features for quantity in quantities}
    assert [found == every for found in looked] == [False, False, True, False, True]
    assert [not found for found in looked] == [True, True, False, True, False]


def test_the_dry_run_counts_the_teacher_apart(recipe: Path) -> None:
    done = train(recipe, "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    trained = next(line for line in lines if line.startswith("all that is trained"))
    kept = next(line for line in lines if line.startswith("teacher (not trained)"))
    assert 0 < int(kept.split()[-1].replace(",", "")) < int(trained.split()[-1].replace(",", ""))
