"""A teacher under every engine: a float32 average of the student, saved to the last bit."""

from pathlib import Path

import pytest
import torch
import yaml
from engine_parts import DDP, ENGINES, LR, STAGES, Training
from torch import Tensor
from training_parts import SMALL

from etude.data.shards import Corpus

pytestmark = pytest.mark.usefixtures("process_group")

START, END, ANNEAL = 0.9, 0.99, 8
PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "bf16"])


@pytest.fixture(scope="module")
def recipe(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three micro-batches an update, and a decay that still moves when the test ends."""
    folder = tmp_path_factory.mktemp("teacher")
    teacher = {"kind": "teacher", "top_layers": 2, "decay": START, "end_decay": END}
    values = {
        "run": {"dir": str(folder / "run")},
        "data": {"corpus": str(small_corpus.root), "crop_seconds": 1.0},
        "model": {**SMALL, "conv_norm": "layer", "position_depth": 3, "normalize": True},
        "objective": {
            "targets": {"teacher": {**teacher, "anneal_steps": ANNEAL}},
            "feature_penalty": 0.0,
        },
        "train": {"max_steps": 100, "global_batch": 6, "micro_batch": 2},
        "optim": {"lr": LR, "warmup_steps": 1},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def parts(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Student and teacher by the teacher's own names."""
    prefix = "targets.teacher.teacher."
    teacher = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return {name: state[f"encoder.{name}"] for name in teacher}, teacher


@PRECISIONS
@pytest.mark.parametrize("words", ENGINES)
def test_the_teacher_is_the_average_of_the_student_after_each_update(
    recipe: Path, words: tuple[str, ...], precision: str
) -> None:
    training = Training(recipe, *words, f"train.precision={precision}")
    assert training.inputs.share.micro_batches == 3
    student, _ = parts(training.state())
    expected = {name: value.double() for name, value in student.items()}
    first = dict(expected)
    for update in range(12):
        training.train(range(update, update + 1))
        training.objective.after_step(update)
        decay = START + (END - START) * min(1.0, (update + 1) / ANNEAL)
        student, _ = parts(training.state())
        for name, value in student.items():
            kept = 0.0 if name.startswith("positions.") else decay
            expected[name] = kept * expected[name] + (1.0 - kept) * value.double()
    student, teacher = parts(training.state())
    for name, value in expected.items():
        assert teacher[name].dtype == torch.float32
        assert (teacher[name].double() - value).norm() <= 1e-6 * value.norm() + 1e-12, name
        # It moved, and it lags behind.
        assert not torch.equal(teacher[name].double(), first[name]), name
        assert name.startswith("positions.") or not torch.equal(teacher[name], student[name]), name


@PRECISIONS
@pytest.mark.parametrize("words", ENGINES)
def test_a_loaded_teacher_is_the_saved_one_and_goes_on_to_the_last_bit(
    recipe: Path, words: tuple[str, ...], precision: str, tmp_path: Path
) -> None:
    words = (*words, f"train.precision={precision}")

    def go(training: Training, updates: range) -> list[float]:
        losses = []
        for update in updates:
            losses += [done.loss for done in training.train(range(update, update + 1))]
            training.objective.after_step(update)
        return losses

    straight, continued = Training(recipe, *words), Training(recipe, *words)
    go(straight, range(3))
    straight.engine.snapshot()(tmp_path)
    kept = parts(straight.state())[1]
    expected = go(straight, range(3, 6))

    go(continued, range(7, 9))
    continued.engine.load(tmp_path)
    for name, value in parts(continued.state())[1].items():
        assert torch.equal(value, kept[name]), name
    assert go(continued, range(3, 6)) == expected
    for name, value in straight.state().items():
        assert torch.equal(continued.state()[name], value), name


@pytest.mark.parametrize("words", [DDP, STAGES[0]], ids=["ddp", "stage 0"])
def test_the_teacher_is_not_among_what_is_trained(recipe: Path, words: tuple[str, ...]) -> None:
    training = Training(recipe, *words)
    before = parts(training.state())[1]
    training.train(range(2))
    for name, value in parts(training.state())[1].items():
        assert torch.equal(value, before[name]), name
    assert not any(
        p.grad is not None for p in training.objective.targets.parameters() if not p.requires_grad
    )
