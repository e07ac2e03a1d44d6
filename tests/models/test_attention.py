"""Attention in blocks: as right as attention that is written out, and torch's where it must be."""

import pytest
import torch
from torch import Tensor

from etude.models import attention
from etude.models.attention import BlockedAttention, blocked_attention
from etude.models.blocks import AttentionBiasCache, BatchLayout, IdentityBias, TorchSDPA

BATCH, FRAMES, HEADS, WIDTH = 2, 37, 3, 8


def written_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    weights = (query / WIDTH**0.5 @ key.transpose(2, 3)).softmax(dim=-1)
    return (weights @ value).transpose(1, 2)


def inputs(dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Queries, keys, values, and a gradient; laid out as projections leave them."""
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, FRAMES, HEADS * WIDTH)
    made = [1.5 * torch.randn(shape, generator=generator) for _ in range(4)]
    return [each.to(dtype).unflatten(-1, (HEADS, WIDTH)) for each in made]


def results(function, given: list[Tensor]) -> list[Tensor]:
    leaves = [each.clone().requires_grad_() for each in given[:3]]
    output = function(*leaves)
    output.backward(given[3])
    grads = [each.grad for each in leaves]
    assert all(grad is not None for grad in grads)
    return [output.detach(), *[grad for grad in grads if grad is not None]]


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.fixture(params=[1 << 19, 5 * FRAMES, 1], ids=["one block", "blocks", "single queries"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(attention, "_BLOCK_SCORES", request.param)
    return int(request.param)


@pytest.mark.usefixtures("block_size")
def test_in_float64_it_is_attention_as_it_is_written_out() -> None:
    given = inputs(torch.float64)
    pairs = zip(results(blocked_attention, given), results(written_out, given), strict=True)
    for found, wanted in pairs:
        # Sums over blocks are made in float32.
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("block_size")
def test_in_bfloat16_it_is_as_near_to_the_truth_as_attention_that_is_written_out() -> None:
    given = inputs()
    truth = results(written_out, [each.double() for each in given])
    blocked, plain = results(blocked_attention, given), results(written_out, given)
    for found, eager, wanted in zip(blocked, plain, truth, strict=True):
        assert found.dtype == torch.bfloat16 and found.shape == wanted.shape
        assert error(found, wanted) < 1.1 * error(eager, wanted) + 1e-4


def called(module: BlockedAttention | TorchSDPA, given: list[Tensor], lengths=None) -> Tensor:
    layout = BatchLayout((BATCH, FRAMES), lengths)
    query, key, value = given[:3]
    made, weights = module(query, layout, key, layout, value, AttentionBiasCache())
    assert weights is None
    return made


def blocks_made(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    made: list[Tensor] = []

    def counted(*words: Tensor) -> Tensor:
        made.append(blocked_attention(*words))
        return made[-1]

    monkeypatch.setattr(attention, "blocked_attention", counted)
    return made


def test_bfloat16_without_padding_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    made = blocks_made(monkeypatch)
    for module in (BlockedAttention(0.0), BlockedAttention(0.5).eval()):
        found = called(module, inputs())
        assert found is made[-1]
    assert len(made) == 2


@pytest.mark.parametrize("case", ["float32", "padded", "dropout"])
def test_what_it_is_not_for_is_torchs_to_the_last_bit(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = blocks_made(monkeypatch)
    given = inputs(torch.float32 if case == "float32" else torch.bfloat16)
    lengths = [FRAMES, 20] if case == "padded" else None
    dropout = 0.5 if case == "dropout" else 0.0
    found, wanted = (
        called(module, given, lengths)
        for module in (
            _seeded(BlockedAttention(dropout)),
            _seeded(TorchSDPA(IdentityBias(), dropout_p=dropout)),
        )
        if torch.manual_seed(3)
    )
    assert torch.equal(found, wanted) and not made


def _seeded(module: torch.nn.Module):
    return module.train()


def test_it_keeps_its_inputs_and_nothing_of_the_size_of_the_weights() -> None:
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    leaves = [each.clone().requires_grad_() for each in inputs()[:3]]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        blocked_attention(*leaves)
    assert len(sizes) >= 3 and set(sizes) == {BATCH * FRAMES * HEADS * WIDTH}
