"""How often an engine makes the host wait for the device in an update."""

from pathlib import Path
from typing import Any

import pytest
from campaigns.tiny_runs import make_corpus, write_recipe
from engine_parts import DDP, LR, STAGES, Training
from torch.utils._python_dispatch import TorchDispatchMode
from waits import Waits

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(scope="module", params=["mert", "music2vec"])
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("waits")
    return write_recipe(folder, request.param, make_corpus(folder), dropout=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("words", "most"),
    [(DDP, 1), (STAGES[0], 1), (STAGES[1], 2), (STAGES[2], 2)],
    ids=["ddp", "stage 0", "stage 1", "stage 2"],
)
def test_an_update_waits_once_or_with_a_partitioned_optimizer_twice(
    recipe: Path, words: tuple[str, ...], most: int, precision: str
) -> None:
    training = Training(recipe, *words, f"train.precision={precision}")
    training.train(range(2))  # tables that are made once
    source = training.batches(2)
    batches = [next(source) for _ in range(training.inputs.share.micro_batches)]
    with Waits(*(batch.update for batch in batches)) as waits:
        for batch in batches:
            training.engine.accumulate(batch)
    assert waits.found == {}
    with Waits() as waits:
        training.engine.update(LR)
    assert sum(waits.found.values()) == most


class Order(TorchDispatchMode):
    """The names of operations, in the order in which they are launched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("words", [DDP, STAGES[0]], ids=["ddp", "stage 0"])
def test_all_of_an_update_is_launched_before_its_wait(recipe: Path, words: tuple[str, ...]) -> None:
    training = Training(recipe, *words)
    training.train(range(1))
    source = training.batches(1)
    for _ in range(training.inputs.share.micro_batches):
        training.engine.accumulate(next(source))
    with Order() as order:
        training.engine.update(LR)
    wait = order.names.index("_local_scalar_dense")
    steps = [place for place, name in enumerate(order.names) if name == "_fused_adamw_"]
    assert steps and max(steps) < wait
    assert order.names.count("_local_scalar_dense") == 1
