"""Training through torch.compile, and without it where it does not work."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from campaigns.tiny_runs import make_corpus, write_recipe
from engine_parts import DDP, Training, lines, run
from test_host_syncs import batch, objective
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile, record_function

from etude.pretrain.breakdown import PREFIX, UPDATE, break_down
from etude.pretrain.compiling import compile_regions
from etude.pretrain.parts import OTHER, watched, watched_call
from etude.pretrain.step_graph import afresh, aliased

pytestmark = pytest.mark.usefixtures("process_group")

NEEDS_COMPILER = pytest.mark.skipif(
    shutil.which("g++") is None, reason="needs a C++ compiler (g++)"
)
FEW = ("train.max_steps=3", "train.precision=fp32", "train.engine=ddp", "data.workers=0")


@pytest.fixture(autouse=True)
def fresh_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No graphs of other tests, and none of theirs on the disk."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    with torch._dynamo.config.patch(recompile_limit=8, suppress_errors=False):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, "mert", make_corpus(tmp_path), dropout=0.0)


@NEEDS_COMPILER
def test_a_compiled_run_trains_as_one_that_is_not_and_says_how_long_it_took(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run(recipe, tmp_path / "compiled", *FEW, "train.compile=true")
    run(recipe, tmp_path / "written", *FEW)
    compiled, written = (lines(tmp_path / name) for name in ("compiled", "written"))
    assert [line["loss"] for line in compiled] == pytest.approx(
        [line["loss"] for line in written], rel=1e-4
    )
    told = [record.message for record in caplog.records if "torch.compile" in record.message]
    assert len(told) >= 1 and "graphs in" in told[0]


def test_without_a_compiler_a_run_trains_as_written_and_says_why(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        run(recipe, tmp_path / "fallen back", *FEW, "train.compile=true")
    assert any("torch.compile does not work here" in record.message for record in caplog.records)
    run(recipe, tmp_path / "written", *FEW)
    fallen, written = (lines(tmp_path / name) for name in ("fallen back", "written"))
    assert [line["loss"] for line in fallen] == [line["loss"] for line in written]


@NEEDS_COMPILER
def test_a_compiled_update_that_is_watched_is_not_compiled_again_and_its_parts_have_their_time(
    recipe: Path,
) -> None:
    def enter(part: str) -> record_function:
        return record_function(f"{PREFIX}{part}")

    training = Training(recipe, *DDP)
    assert compile_regions(training.objective, torch.device("cpu"))
    compiled = {module: module._compiled_call_impl for module in training.objective.modules()}
    training.train(range(2))
    graphs = counters["stats"]["unique_graphs"]
    with (
        profile(activities=[ProfilerActivity.CPU]) as recording,
        watched(training.objective, enter),
        watched_call(training.engine, "update", "optimizer", enter),
        record_function(UPDATE),
    ):
        training.train(range(2, 4))
    assert counters["stats"]["unique_graphs"] == graphs > 0
    assert {module: module._compiled_call_impl for module in compiled} == compiled
    found = break_down(recording.events())  # type: ignore[no-untyped-call]
    spent = found.parts["front end"]
    assert spent.forward > 0.0 and spent.backward > 0.0
    assert "CompiledFunctionBackward" in found.nodes["front end"]
    assert "CompiledFunctionBackward" in found.nodes["transformer"]
    assert "CompiledFunctionBackward" not in found.nodes.get(OTHER, set())
    training.train(range(4, 5))
    assert counters["stats"]["unique_graphs"] == graphs


@NEEDS_COMPILER
def test_recording_a_step_as_a_cuda_graph_compiles_nothing_again() -> None:
    made, heard = objective("mert"), batch()
    assert compile_regions(made, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        made(heard).loss.backward()
        graphs = counters["stats"]["unique_graphs"]
        with aliased(made) as aliases:
            loss = afresh(made.compute, heard, made._kept_layers(heard)).loss
            torch.autograd.grad(loss, aliases, allow_unused=True)
    assert counters["stats"]["unique_graphs"] == graphs > 0
