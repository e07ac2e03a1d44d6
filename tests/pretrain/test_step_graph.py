"""``train.cuda_graph``: a recorded step computes what one that is not does."""

import pytest
import torch
from test_host_syncs import batch, objective
from torch import Tensor

from etude.data.batch import AudioBatch
from etude.pretrain.engine import move
from etude.pretrain.masked_prediction import MaskedPrediction
from etude.pretrain.metrics import Deviation, LabelCounts, Mean, Metric, Spread
from etude.pretrain.objective import StepOutput
from etude.pretrain.step_graph import Form, StepGraph, afresh, aliased, graph_steps

ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_metrics_travel_as_one_vector_and_come_back_as_they_were() -> None:
    metrics: dict[str, Metric] = {
        "loss": Mean.of(torch.tensor(1.5), 7),
        "labels": LabelCounts(torch.tensor([3.0, 0.0, 2.0])),
        "variance": Spread.of(torch.randn(5, 2)),
        "target_std": Deviation.of(torch.randn(5, 3)),
    }
    form = Form.of(metrics)
    packed = form.pack(metrics)
    assert packed.dtype == torch.float64 and packed.shape == (2 + 3 + 5 + 7,)
    found = form.unpack(packed)
    assert list(found) == list(metrics)
    for name, metric in metrics.items():
        assert type(found[name]) is type(metric)
        for field, wanted in vars(metric).items():
            assert torch.equal(getattr(found[name], field), wanted)
            assert getattr(found[name], field).dtype == wanted.dtype


def test_on_a_cpu_nothing_changes() -> None:
    made = objective("mert")
    graph_steps(made, torch.device("cpu"))
    assert made.recorded is None


def test_recording_goes_through_leaves_of_its_own_in_the_same_memory() -> None:
    made, heard = objective("mert"), batch()
    own = [p for p in made.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(made.compute(heard, None).loss, own)
    with aliased(made) as aliases:
        found = torch.autograd.grad(made.compute(heard, None).loss, aliases)
    assert [alias.data_ptr() for alias in aliases] == [p.data_ptr() for p in own]
    assert all(alias is not p for alias, p in zip(aliases, own, strict=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))
    after = [p for p in made.parameters() if p.requires_grad]
    assert all(one is other for one, other in zip(own, after, strict=True))


def test_a_recorded_step_casts_parameters_as_they_are_by_then() -> None:
    """Autocast keeps casts until its region ends, and all steps of a recording are in one."""
    made, heard = objective("mert"), batch()
    with torch.autocast("cpu", torch.bfloat16), aliased(made):
        before = afresh(made.compute, heard, None).loss
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.mul_(1.5)
        after = afresh(made.compute, heard, None).loss
    with torch.autocast("cpu", torch.bfloat16):
        wanted = made.compute(heard, None).loss
    assert torch.equal(after, wanted) and not torch.allclose(before, wanted)


def test_what_cannot_be_recorded_runs_as_written_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Here it cannot, for there is no GPU."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    made, heard = objective("mert"), batch()
    written = made(heard)
    made.recorded = StepGraph(made)
    for _ in range(3):
        assert torch.equal(made(heard).loss, written.loss)
    assert [r.message for r in caplog.records if "train.cuda_graph" in r.message] != []
    assert sum("train.cuda_graph" in r.message for r in caplog.records) == 1


def gradients(made: MaskedPrediction, output: StepOutput) -> list[Tensor]:
    made.zero_grad()
    (output.loss / 2).backward()
    return [p.grad for p in made.parameters() if p.grad is not None]


def recorded_objective(kind: str, **settings: float) -> tuple[MaskedPrediction, AudioBatch]:
    """One on the GPU whose steps are launched as one from here on, and a batch for it."""
    device = torch.device("cuda")
    made, heard = objective(kind, **settings).to(device), move(batch(), device)
    graph_steps(made, device)
    for _ in range(2):
        made(heard)
    assert isinstance(made.recorded, StepGraph) and made.recorded.has_recorded
    return made, heard


@pytest.mark.gpu
@ON_A_GPU
@pytest.mark.parametrize("kind", ["mert", "music2vec"])
def test_losses_metrics_and_gradients_of_new_crops_are_those_without(kind: str) -> None:
    device = torch.device("cuda")
    recorded, written = (objective(kind).to(device) for _ in range(2))
    written.load_state_dict(recorded.state_dict())
    graph_steps(recorded, device)
    for update in range(5):
        given = batch()
        heard = move(
            given._replace(
                waveform=given.waveform * (1 + update),
                sample_ids=given.sample_ids + 10 * update,
                update=torch.tensor(update),
            ),
            device,
        )
        ours, theirs = recorded(heard), written(heard)
        assert ours.metrics.keys() == theirs.metrics.keys()
        for name, metric in theirs.metrics.items():
            for field, wanted in vars(metric).items():
                torch.testing.assert_close(getattr(ours.metrics[name], field), wanted)
        torch.testing.assert_close(ours.loss, theirs.loss)
        pairs = zip(gradients(recorded, ours), gradients(written, theirs), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert isinstance(recorded.recorded, StepGraph)
    assert recorded.recorded.has_recorded


@pytest.mark.gpu
@ON_A_GPU
def test_gradients_add_up_over_micro_batches() -> None:
    made, heard = recorded_objective("mert")
    single = [gradient.clone() for gradient in gradients(made, made(heard))]
    (made(heard).loss / 2).backward()
    twice = [p.grad for p in made.parameters() if p.grad is not None]
    for one, two in zip(single, twice, strict=True):
        torch.testing.assert_close(2 * one, two, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@ON_A_GPU
def test_parameters_that_an_optimizer_changed_are_those_of_the_next_step() -> None:
    made, heard = recorded_objective("mert")
    before = made(heard).loss
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(made(heard).loss, before)


@pytest.mark.gpu
@ON_A_GPU
def test_dropout_follows_the_seed_of_each_step() -> None:
    made, heard = recorded_objective("music2vec", dropout=0.3)

    def loss(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return made(heard).loss.detach()

    first, second, again = loss(1), loss(2), loss(1)
    assert torch.equal(first, again) and not torch.equal(first, second)
