"""The feed-forward block that keeps less computes what fairseq2's does."""

import pytest
import torch
from torch import Tensor, nn

from etude.models.blocks import StandardFeedForwardNetwork
from etude.models.feed_forward import feed_forward

DIM, INNER = 24, 96
BOTH_TYPES = pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])


def block(dropout: float = 0.0) -> StandardFeedForwardNetwork:
    torch.manual_seed(0)
    return StandardFeedForwardNetwork(
        DIM, INNER, bias=True, inner_activation=nn.GELU(), inner_dropout_p=dropout
    )


def results(ffn: StandardFeedForwardNetwork, fast: bool, autocast: bool) -> dict[str, Tensor]:
    torch.manual_seed(1)
    ffn.zero_grad()
    hidden = torch.randn(3, 17, DIM, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = feed_forward(ffn, hidden) if fast else ffn(hidden)
    (output.float() * torch.randn(3, 17, DIM)).sum().backward()
    found = {"output": output.detach(), "hidden": hidden.grad}
    found |= {name: parameter.grad for name, parameter in ffn.named_parameters()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


@BOTH_TYPES
def test_output_and_all_gradients_are_fairseq2s_to_the_last_bit(autocast: bool) -> None:
    ffn = block()
    ours, theirs = (results(ffn, fast, autocast) for fast in (True, False))
    assert ours.keys() == theirs.keys() and len(ours) == 6
    for name, wanted in theirs.items():
        assert ours[name].dtype == wanted.dtype
        assert torch.equal(ours[name], wanted), name


def test_dropout_inside_is_the_same_too() -> None:
    ffn = block(dropout=0.5)
    ours, theirs = (results(ffn, fast, False)["output"] for fast in (True, False))
    assert torch.equal(ours, theirs) and not torch.equal(
        ours, results(ffn.eval(), True, False)["output"]
    )


def test_what_is_kept_is_the_inner_frames_once() -> None:
    kept: dict[bool, int] = {}
    ffn = block()
    weights = {parameter.data_ptr() for parameter in ffn.parameters()}
    for fast in (True, False):
        seen: dict[int, Tensor] = {}

        def keep(tensor: Tensor, seen: dict[int, Tensor] = seen) -> Tensor:
            seen[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            results(ffn, fast, False)
        kept[fast] = sum(t.nbytes for at, t in seen.items() if at not in weights)
    assert kept[False] - kept[True] == 3 * 17 * INNER * 4


@BOTH_TYPES
def test_a_compiler_takes_it_whole(autocast: bool) -> None:
    ffn, hidden = block(), torch.randn(2, 5, DIM)
    torch._dynamo.reset()
    compiled = torch.compile(feed_forward, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.allclose(
            compiled(ffn, hidden), feed_forward(ffn, hidden), rtol=1e-2 if autocast else 1e-6
        )
