"""The engines in a world of one: DeepSpeed against plain torch, on batches of a corpus."""

import os
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from pathlib import Path

import pytest
import torch
import yaml
from engine_parts import DDP, ENGINES, LR, STAGES, Training
from torch.utils import _pytree
from training_parts import SMALL, small_quantizer

from etude.data.shards import Corpus
from etude.pretrain.errors import CheckpointError
from etude.pretrain.quantizer import save_quantizer

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(scope="module")
def recipe(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    save_quantizer(small_quantizer(), folder / "logmel.safetensors", report={})
    values = {
        "run": {"dir": str(folder / "run")},
        "data": {"corpus": str(small_corpus.root), "crop_seconds": 1.0},
        "model": SMALL,
        "objective": {
            "targets": {
                "logmel": {
                    "kind": "kmeans",
                    "centroids": str(folder / "logmel.safetensors"),
                    "final_dim": 16,
                },
                "cqt": {"kind": "cqt", "bins": 24, "bins_per_octave": 12, "fmin": 220.0},
            }
        },
        "train": {"max_steps": 100, "global_batch": 4, "micro_batch": 2, "precision": "fp32"},
        # The gradient's norm is about 7: clipping is part of what is compared.
        "optim": {"lr": LR, "warmup_steps": 1, "clip_norm": 1.0},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def assert_close(
    training: Training, reference: Training, *, rtol: float = 0.0, atol: float = 0.0
) -> None:
    for name, value in reference.state().items():
        torch.testing.assert_close(training.state()[name], value, rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize("words", STAGES, ids=["stage 0", "stage 1", "stage 2"])
def test_deepspeed_does_what_plain_torch_does(recipe: Path, words: tuple[str, ...]) -> None:
    plain, deepspeed = Training(recipe, *DDP), Training(recipe, *words)
    start = plain.state()
    expected, found = plain.train(range(4)), deepspeed.train(range(4))
    for one, other in zip(found, expected, strict=True):
        assert tuple(one) == pytest.approx(tuple(other), rel=1e-6)
    assert_close(deepspeed, plain, atol=1e-6)
    # Four updates of Adam go about 4 LR far: had nothing moved, nothing was compared.
    assert any((plain.state()[name] - start[name]).abs().max() > LR for name in start)


@pytest.mark.parametrize("words", ENGINES)
def test_two_micro_batches_of_two_are_one_of_four(recipe: Path, words: tuple[str, ...]) -> None:
    two, one = Training(recipe, *words), Training(recipe, *words, "train.micro_batch=4")
    assert (two.inputs.share.micro_batches, one.inputs.share.micro_batches) == (2, 1)
    for found, expected in zip(two.train(range(3)), one.train(range(3)), strict=True):
        assert tuple(found) == pytest.approx(tuple(expected), rel=1e-5)
    assert_close(two, one, atol=1e-5)


@pytest.mark.parametrize("words", ENGINES)
@pytest.mark.parametrize("micro_batch", [0, 1])
def test_a_gradient_that_is_not_finite_leaves_no_trace(
    recipe: Path, words: tuple[str, ...], micro_batch: int
) -> None:
    training, untouched = Training(recipe, *words), Training(recipe, *words)
    training.train(range(2))
    untouched.train(range(2))
    result = training.train_on_nan(2, micro_batch=micro_batch)
    assert result.skipped and not result.grad_norm.isfinite()
    assert_close(training, untouched)
    # Neither the gradient nor the optimizer's count of updates kept anything of it.
    assert training.train(range(3, 5)) == untouched.train(range(3, 5))
    assert_close(training, untouched)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("words", ENGINES)
def test_a_loaded_engine_goes_on_to_the_last_bit(
    recipe: Path, words: tuple[str, ...], precision: str, tmp_path: Path
) -> None:
    words = (*words, f"train.precision={precision}")
    straight, continued = Training(recipe, *words), Training(recipe, *words)
    straight.train(range(3))
    straight.engine.snapshot()(tmp_path)
    expected = straight.train(range(3, 6))

    continued.train(range(7, 8))  # weights and moments of its own, to be replaced
    continued.engine.load(tmp_path)
    assert continued.train(range(3, 6)) == expected
    assert_close(continued, straight)


@pytest.mark.parametrize("words", ENGINES)
def test_what_is_written_is_what_was_when_the_copy_was_made(
    recipe: Path, words: tuple[str, ...], tmp_path: Path
) -> None:
    straight, continued = Training(recipe, *words), Training(recipe, *words)
    straight.train(range(3))
    write = straight.engine.snapshot()
    expected = straight.train(range(3, 6))  # changes weights and moments in place
    write(tmp_path)

    continued.engine.load(tmp_path)
    assert continued.train(range(3, 6)) == expected
    assert_close(continued, straight)


def saved(recipe: Path, words: tuple[str, ...], folder: Path) -> tuple[Training, list[Path]]:
    """An engine after one update, and the files that it wrote."""
    training = Training(recipe, *words)
    training.train(range(1))
    training.engine.snapshot()(folder)
    return training, sorted(folder.rglob("*.pt"))


@pytest.mark.parametrize("words", STAGES, ids=["stage 0", "stage 1", "stage 2"])
def test_no_member_of_an_enum_is_written(
    recipe: Path, words: tuple[str, ...], tmp_path: Path
) -> None:
    """Python 3.11.2, which is Debian's, pickles them so that nobody can load them safely."""
    _, files = saved(recipe, words, tmp_path)
    states = [torch.load(file, weights_only=False) for file in files]
    leaves = _pytree.tree_leaves(states)
    assert leaves and not [leaf for leaf in leaves if isinstance(leaf, Enum)]


def test_an_optimizer_partitioned_among_other_ranks_is_refused_in_words(
    recipe: Path, tmp_path: Path
) -> None:
    training, _ = saved(recipe, STAGES[1], tmp_path)
    # As two ranks would have written it.
    (file,) = tmp_path.rglob("mp_rank_00_model_states.pt")
    state = torch.load(file, weights_only=False)
    assert state["dp_world_size"] == 1
    torch.save({**state, "dp_world_size": 2}, file)
    with pytest.raises(CheckpointError, match="stage 1 the number of ranks must be") as caught:
        training.engine.load(tmp_path)
    assert caught.value.exit_status == 5


@pytest.mark.parametrize("words", [DDP, *STAGES[:2]], ids=["ddp", "stage 0", "stage 1"])
def test_bf16_computes_in_bfloat16_and_keeps_float32(recipe: Path, words: tuple[str, ...]) -> None:
    full, half = Training(recipe, *words), Training(recipe, *words, "train.precision=bf16")
    for one, other in zip(half.train(range(3)), full.train(range(3)), strict=True):
        assert one.loss != other.loss
        assert one.loss == pytest.approx(other.loss, rel=0.02)
    assert {value.dtype for value in half.objective.parameters()} == {torch.float32}
    # Values that bfloat16 cannot hold: the parameters are no rounded copies.
    weight = half.objective.encoder.mask_embedding.detach()
    assert not torch.equal(weight, weight.bfloat16().float())


class _Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._folder),)


@pytest.mark.parametrize("words", STAGES[:2], ids=["stage 0", "stage 1"])
def test_deepspeed_executes_nothing_that_it_loads(
    recipe: Path, words: tuple[str, ...], tmp_path: Path
) -> None:
    training, files = saved(recipe, words, tmp_path)
    assert len(files) == (1 if words is STAGES[0] else 2), files
    for file in files:
        kept = file.read_bytes()
        executed = tmp_path / f"executed {file.name}"
        torch.save(_Payload(executed), file)
        with pytest.raises(CheckpointError):
            training.engine.load(tmp_path)
        assert not executed.exists()
        # The payload does work where a reader trusts its file.
        with suppress(AttributeError):
            torch.load(file, weights_only=False)
        assert executed.is_dir()
        file.write_bytes(kept)
    training.engine.load(tmp_path)
