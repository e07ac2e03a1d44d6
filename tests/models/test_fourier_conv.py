"""The positional convolution by Fourier transforms is the convolution."""

import pickle
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from etude.models.blocks import BatchLayout
from etude.models.fourier_conv import fourier_conv, normed_weight
from etude.models.positions import build_positions

GROUPS, CHANNELS = 4, 6
DIM = GROUPS * CHANNELS
IMPLS: tuple[Literal["fast", "plain"], ...] = ("fast", "plain")


def results(
    by_fourier: bool, *, taps: int, padding: tuple[int, int], dtype: torch.dtype
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    given = {"x": made(3, DIM, 21), "weight": made(DIM, CHANNELS, taps), "bias": made(DIM)}
    for tensor in given.values():
        tensor.requires_grad_()
    if by_fourier:
        output = fourier_conv(*given.values(), groups=GROUPS, padding=padding)
    else:
        output = F.conv1d(F.pad(given["x"], padding), given["weight"], given["bias"], groups=GROUPS)
    output.backward(made(*output.shape))
    gradients = {name: tensor.grad for name, tensor in given.items() if tensor.grad is not None}
    return {"output": output.detach(), **gradients}


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
@pytest.mark.parametrize(
    ("taps", "padding"),
    [(8, (4, 4)), (5, (2, 2)), (4, (1, 2)), (21, (0, 0)), (40, (20, 20))],
    ids=["even", "odd", "same", "one value", "longer than the sound"],
)
def test_output_and_all_gradients_are_those_of_the_convolution(
    taps: int, padding: tuple[int, int], dtype: torch.dtype, limit: float
) -> None:
    ours, theirs = (
        results(by_fourier, taps=taps, padding=padding, dtype=dtype) for by_fourier in (True, False)
    )
    assert ours.keys() == theirs.keys() and len(ours) == 4
    for name, wanted in theirs.items():
        assert ours[name].shape == wanted.shape and ours[name].dtype == dtype
        assert float((ours[name] - wanted).norm() / wanted.norm()) < limit, name


def test_autocast_has_its_type_and_no_rounding_inside() -> None:
    x, weight = torch.randn(2, DIM, 30), torch.randn(DIM, CHANNELS, 8)
    exact = fourier_conv(x, weight, None, groups=GROUPS, padding=(4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = fourier_conv(x, weight, None, groups=GROUPS, padding=(4, 4))
    assert exact.dtype == torch.float32 and torch.equal(rounded, exact.bfloat16())


@pytest.mark.parametrize("autocast", [False, True], ids=["as it is", "autocast"])
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str
)
def test_what_is_made_has_the_type_of_a_convolution(dtype: torch.dtype, autocast: bool) -> None:
    """A whole model may be half precision, or double, and what follows takes no other."""
    x, weight = torch.randn(2, DIM, 30, dtype=dtype), torch.randn(DIM, CHANNELS, 8, dtype=dtype)
    bias = torch.randn(DIM, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        made = fourier_conv(x, weight, bias, groups=GROUPS, padding=(4, 4))
        assert made.dtype == F.conv1d(x, weight, bias, padding=4, groups=GROUPS).dtype


@pytest.mark.parametrize("dim", [0, 2])
def test_the_weight_norm_and_its_gradients_are_torchs(dim: int) -> None:
    v = torch.randn(6, 4, 5, dtype=torch.float64, requires_grad=True)
    g = torch.rand(torch.norm_except_dim(v, 2, dim).shape, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(6, 4, 5, dtype=torch.float64)
    ours, theirs = normed_weight(v, g, dim=dim), torch._weight_norm(v, g, dim)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0.0)
    pairs = zip(*(torch.autograd.grad(w, (v, g), upstream) for w in (ours, theirs)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 3])
def test_both_implementations_have_the_same_parameters_and_agree_on_a_cpu(depth: int) -> None:
    made = {}
    for impl in IMPLS:
        torch.manual_seed(0)
        made[impl] = build_positions(DIM, kernel=9, groups=GROUPS, depth=depth, impl=impl)
    fast, plain = (made[impl].state_dict() for impl in IMPLS)
    assert fast.keys() == plain.keys()
    assert all(torch.equal(fast[name], plain[name]) for name in plain)
    hidden, layout = torch.randn(2, 11, DIM), BatchLayout((2, 11), None)
    assert torch.equal(made["fast"](hidden, layout), made["plain"](hidden, layout))


@pytest.mark.parametrize("depth", [1, 3])
def test_a_pickle_gives_the_same_positions_again(depth: int) -> None:
    """``torch.save`` of a whole model, or one that goes to another process."""
    made = build_positions(DIM, kernel=9, groups=GROUPS, depth=depth, impl="fast")
    back = pickle.loads(pickle.dumps(made))  # noqa: S301 - its own
    assert [type(module) for module in back.modules()] == [type(m) for m in made.modules()]
    hidden, layout = torch.randn(2, 11, DIM), BatchLayout((2, 11), None)
    assert torch.equal(made(hidden, layout), back(hidden, layout))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("kernel", [128, 33])
def test_positions_and_their_gradients_are_the_plain_ones_on_a_gpu(depth: int, kernel: int) -> None:
    found: dict[str, list[Tensor]] = {}
    for impl in IMPLS:
        torch.manual_seed(0)
        positions = build_positions(64, kernel=kernel, groups=4, depth=depth, impl=impl).cuda()
        generator = torch.Generator("cuda").manual_seed(1)
        hidden = torch.randn(3, 99, 64, device="cuda", generator=generator, requires_grad=True)
        torch.backends.cudnn.allow_tf32 = False
        output = positions(hidden, BatchLayout((3, 99), None, device=hidden.device))
        output.square().sum().backward()
        gradients = [p.grad for p in (hidden, *positions.parameters()) if p.grad is not None]
        found[impl] = [output.detach(), *gradients]
        torch.backends.cudnn.allow_tf32 = True
    for ours, theirs in zip(found["fast"], found["plain"], strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 2e-5
