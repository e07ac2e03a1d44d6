"""The first convolution with its GELU as one Triton kernel, the gradient of its filters as another.

    rows[r, c] = sum_k patches[r, k] weight[k, c]      active = gelu(rows)

The rows of the first layer are the largest tensor of a training step: 24.6 MB of each crop in
bfloat16. Here nobody writes them: a block of them is made of 16 numbers a row, where it is needed.
The gradient by the filters is summed up in the same pass that makes the gradient by the rows, which
nobody writes either. Products are of bfloat16 or float16, all else is float32.

Letters: B crops, R rows of a crop, K taps, C channels.
"""

import torch
from torch import Tensor

try:  # comes with torch's builds for GPUs alone
    import triton  # type: ignore[import-untyped,unused-ignore]
    import triton.language as tl  # type: ignore[import-untyped]
except ImportError:
    triton = None

_ROWS, _CHANNELS = 64, 128
"""Of a block; a block of float32 then takes 64 registers of each of 128 threads."""

_PARTS = 16
"""Programs that share the rows of a crop in backward, each with a sum of its own."""


def fits(patches: Tensor, weight: Tensor) -> bool:
    """Whether the kernels take these: on a GPU, in half precision, with whole blocks."""
    taps, channels = weight.shape[-2:]
    return (
        triton is not None
        and patches.device.type == "cuda"
        and patches.dtype == weight.dtype
        and patches.dtype in (torch.bfloat16, torch.float16)
        and taps in (16, 32)
        and channels % _CHANNELS == 0
    )


@torch.library.custom_op("etude::activated_product", mutates_args=())
def activated_product(patches: Tensor, weight: Tensor) -> Tensor:
    """``gelu(patches @ weight)`` as rows (B R, C) of patches (B, R, K) and weight (B, K, C)."""
    patches, weight = patches.contiguous(), weight.contiguous()
    crops, rows, taps = patches.shape
    channels = weight.shape[2]
    out = patches.new_empty(crops * rows, channels)
    grid = (triton.cdiv(rows, _ROWS), crops)
    _activate[grid](patches, weight, out, rows, channels, taps, _ROWS, _CHANNELS)
    return out


@activated_product.register_fake
def _(patches: Tensor, weight: Tensor) -> Tensor:
    return patches.new_empty(patches.shape[0] * patches.shape[1], weight.shape[2])


@torch.library.custom_op("etude::activated_product_grad", mutates_args=())
def activated_product_grad(patches: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    """Gradient of ``weight``, (B, K, C), from that of the activated rows (B R, C)."""
    patches, weight, grad = patches.contiguous(), weight.contiguous(), grad.contiguous()
    crops, rows, taps = patches.shape
    channels = weight.shape[2]
    parts = patches.new_empty(crops, _PARTS, taps, channels, dtype=torch.float32)
    each = triton.cdiv(triton.cdiv(rows, _PARTS), _ROWS) * _ROWS
    grid = (_PARTS, channels // _CHANNELS, crops)
    _filter_grad[grid](patches, weight, grad, parts, rows, each, channels, taps, _ROWS, _CHANNELS)
    return parts.sum(dim=1).to(weight.dtype)


@activated_product_grad.register_fake
def _(patches: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    return weight.new_empty(weight.shape)  # in order, as what is summed up is


if triton is not None:

    @triton.jit
    def _share_below(x):  # type: ignore[no-untyped-def]
        """The share of a normal distribution below x, to 8e-6 of itself; half precision: 5e-4.

        log2 of the share below -|x| is all but a parabola: a polynomial fitted to it on [0, 6], by
        smallest largest error, takes half the time that ``erf`` takes, which is more than writing
        the result does. Below -6 the share is 1e-9 or less.
        """
        a = tl.minimum(tl.abs(x), 6.0)
        log = -1.83481452e-06 * a + 6.15983544e-05
        log = log * a - 9.30525316e-04
        log = log * a + 8.50789271e-03
        log = log * a - 5.39600727e-02
        log = log * a - 4.5846439e-01
        log = log * a - 1.15125105
        log = log * a - 9.99995294e-01
        tail = tl.exp2(log)
        return tl.where(x < 0, tail, 1.0 - tail)

    @triton.jit  # type: ignore[untyped-decorator]
    def _activate(  # type: ignore[no-untyped-def]
        patches,
        weight,
        out,
        rows,
        channels: tl.constexpr,
        TAPS: tl.constexpr,
        ROWS: tl.constexpr,
        CHANNELS: tl.constexpr,
    ):
        crop = tl.program_id(1).to(tl.int64)
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        tap = tl.arange(0, TAPS)
        inside = (row < rows)[:, None]
        place = crop * rows + row
        patch = tl.load(patches + place[:, None] * TAPS + tap[None, :], mask=inside, other=0.0)
        for first in range(0, channels, CHANNELS):
            channel = first + tl.arange(0, CHANNELS)
            at = (crop * TAPS + tap[:, None]) * channels + channel[None, :]
            x = tl.dot(patch, tl.load(weight + at))
            to = out + place[:, None] * channels + channel[None, :]
            tl.store(to, (x * _share_below(x)).to(out.dtype.element_ty), mask=inside)

    @triton.jit  # type: ignore[untyped-decorator]
    def _filter_grad(  # type: ignore[no-untyped-def]
        patches,
        weight,
        grad,
        parts,
        rows,
        each: tl.constexpr,
        channels: tl.constexpr,
        TAPS: tl.constexpr,
        ROWS: tl.constexpr,
        CHANNELS: tl.constexpr,
    ):
        part, crop = tl.program_id(0), tl.program_id(2).to(tl.int64)
        tap = tl.arange(0, TAPS)
        channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        at = tap[:, None] * channels + channel[None, :]
        factor = tl.load(weight + crop * TAPS * channels + at)
        total = tl.zeros((TAPS, CHANNELS), dtype=tl.float32)
        for first in range(0, each, ROWS):
            row = part * each + first + tl.arange(0, ROWS)
            inside = (row < rows)[:, None]
            place = crop * rows + row
            patch = tl.load(patches + place[:, None] * TAPS + tap[None, :], mask=inside, other=0.0)
            given = tl.load(grad + place[:, None] * channels + channel[None, :], inside, other=0.0)
            x = tl.dot(patch, factor)
            bell = tl.exp2(-0.7213475204444817 * x * x)  # exp(-x^2 / 2)
            slope = _share_below(x) + 0.3989422804014327 * x * bell
            by_row = (given.to(tl.float32) * slope).to(patches.dtype.element_ty)
            total = tl.dot(tl.trans(patch), by_row, total)
        tl.store(parts + (crop * tl.num_programs(0) + part) * TAPS * channels + at, total)
