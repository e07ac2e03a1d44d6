"""The Triton kernels of the first convolution compute product, GELU and gradient."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from etude.models import first_conv

NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
PROGRAM = """
import torch
from torch.nn import functional as F
from etude.models.first_conv import activated_product, activated_product_grad

generator = torch.Generator().manual_seed(0)
for rows in (64, 100, 1300):
    patches = torch.randn(2, rows, 16, generator=generator).half()
    weight = (0.5 * torch.randn(2, 16, 256, generator=generator)).half()
    grad = torch.randn(2 * rows, 256, generator=generator).half()
    exact = weight.double().requires_grad_()
    wanted = F.gelu(patches.double() @ exact).flatten(0, 1)
    wanted.backward(grad.double())
    made, by_weight = activated_product(patches, weight), activated_product_grad(
        patches, weight, grad
    )
    for ours, theirs in ((made, wanted.detach()), (by_weight, exact.grad)):
        assert ours.shape == theirs.shape and ours.dtype == torch.float16
        assert float((ours.double() - theirs).norm() / theirs.norm()) < 5e-4
"""


@NEEDS_TRITON
def test_the_kernels_compute_what_is_written_as_triton_interprets_them() -> None:
    """In float16: the interpreter has no products of bfloat16."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True)


def test_on_a_cpu_nothing_fits() -> None:
    patches = torch.zeros(1, 64, 16, dtype=torch.bfloat16)
    assert not first_conv.fits(patches, torch.zeros(1, 16, 128, dtype=torch.bfloat16))


def test_a_compiler_is_told_the_layout_that_the_gradient_has() -> None:
    with FakeTensorMode():
        patches = torch.empty(2, 64, 16, dtype=torch.float16)
        weight = torch.empty(2, 128, 16, dtype=torch.float16).transpose(1, 2)
        grad = torch.empty(128, 128, dtype=torch.float16)
        by_weight = first_conv.activated_product_grad(patches, weight, grad)
    assert by_weight.shape == weight.shape and by_weight.is_contiguous()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [64, 1300])
def test_the_kernels_on_a_gpu_are_no_further_off_than_a_rounded_product(
    rows: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    patches = torch.randn(3, rows, 16, device="cuda", generator=generator).to(dtype)
    weight = (0.5 * torch.randn(3, 16, 512, device="cuda", generator=generator)).to(dtype)
    grad = torch.randn(3 * rows, 512, device="cuda", generator=generator).to(dtype)
    assert first_conv.fits(patches, weight)
    exact = weight.double().requires_grad_()
    wanted = F.gelu(patches.double() @ exact).flatten(0, 1)
    wanted.backward(grad.double())
    written = weight.clone().requires_grad_()
    rounded = F.gelu(patches @ written).flatten(0, 1)
    rounded.backward(grad)
    assert exact.grad is not None and written.grad is not None
    made = first_conv.activated_product(patches, weight)
    by_weight = first_conv.activated_product_grad(patches, weight, grad)
    for ours, plain, theirs in (
        (made, rounded.detach(), wanted.detach()),
        (by_weight, written.grad, exact.grad),
    ):
        error, plain_error = ((t.double() - theirs).norm() for t in (ours, plain))
        assert float(error) <= 1.1 * float(plain_error)
