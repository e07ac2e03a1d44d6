"""A convolution over frames with their channels last, as products of matrices, with its backward.

Frames are rows of a matrix (N, C). What lies side by side in time lies side by side in memory, so
that kernel 2 with stride 2 is a reshape to (N / 2, 2 C) and one product; kernel 3 with stride 2 is
the same and a second product, of every other row, which adds to the first. In general there is one
product for every ``stride`` taps.

``ActivatedConv`` is a convolution with all that comes between it and the one before. It keeps its
input alone: norm and GELU are made again in backward, where they cost little beside the products,
while what they make is three quarters and more of what autograd would keep.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_aten = torch.ops.aten


class ActivatedConv(torch.autograd.Function):
    """``conv(gelu(norm(rows)))``; rows are the input itself or its product with ``lead_weight``."""

    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        lead_weight: Tensor | None,
        lead_bias: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        eps: float,
        weight: Tensor,
        bias: Tensor | None,
        kernel: int,
        stride: int,
    ) -> Tensor:
        """Rows (N, C) to rows (N', C').

        :param source: rows (N, C); or with a lead, patches (B, F, K), of which it makes B F rows.
        :param lead_weight: (B, K, C), a matrix of its own for each row of the batch.
        :param lead_bias: (B, 1, C).
        :param norm_weight: (C,) of a layer norm, in the type in which it is computed.
        :param weight: (C', kernel C), the channels of a tap side by side.
        """
        ctx.save_for_backward(source, lead_weight, lead_bias, norm_weight, norm_bias, weight)
        ctx.eps, ctx.has_bias, ctx.kernel, ctx.stride = eps, bias is not None, kernel, stride
        rows = lead(source, lead_weight, lead_bias)
        normed, _, _ = _layer_norm(rows, norm_weight, norm_bias, eps)
        return conv(F.gelu(normed), weight, bias, kernel=kernel, stride=stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all tensors that :meth:`forward` takes."""
        source, lead_weight, lead_bias, norm_weight, norm_bias, weight = ctx.saved_tensors
        rows = lead(source, lead_weight, lead_bias)
        normed, mean, rstd = _layer_norm(rows, norm_weight, norm_bias, ctx.eps)
        active = F.gelu(normed)
        grad_weight = conv_weight_grad(grad, active, kernel=ctx.kernel, stride=ctx.stride)
        grad_bias = grad.sum(dim=0) if ctx.has_bias else None
        grad_rows = conv_input_grad(grad, active, weight, kernel=ctx.kernel, stride=ctx.stride)
        del active
        grad_rows = _aten.gelu_backward(grad_rows, normed)
        grad_norm = (None, None)
        if norm_weight is not None:
            grad_rows, *grad_norm = _aten.native_layer_norm_backward(
                grad_rows.to(norm_weight.dtype),
                rows.to(norm_weight.dtype),
                norm_weight.shape,
                mean,
                rstd,
                norm_weight,
                norm_bias,
                [True, True, True],
            )
            grad_rows = grad_rows.to(rows.dtype)
        grad_source, grad_lead = grad_rows, (None, None)
        if lead_weight is not None:
            grad_BFC = grad_rows.view(len(source), -1, lead_weight.shape[2])
            grad_lead = (
                source.transpose(1, 2) @ grad_BFC,
                None if lead_bias is None else grad_BFC.sum(dim=1, keepdim=True),
            )
            # Patches want a gradient only where somebody differentiates by the waveform.
            grad_source = None
            if ctx.needs_input_grad[0]:
                grad_source = grad_BFC @ lead_weight.transpose(1, 2)
        return (grad_source, *grad_lead, *grad_norm, None, grad_weight, grad_bias, None, None)


def lead(source: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Rows (B F, C) of patches (B, F, K), or what are rows already."""
    if weight is None:
        return source
    product = source @ weight if bias is None else torch.baddbmm(bias, source, weight)
    return product.flatten(0, 1)


def _layer_norm(
    rows: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Normed rows in their own type, with mean and 1 / deviation; rows themselves without norm."""
    if weight is None:
        return rows, None, None
    normed, mean, rstd = _aten.native_layer_norm(
        rows.to(weight.dtype), weight.shape, weight, bias, eps
    )
    return normed.to(rows.dtype), mean, rstd


def conv(rows: Tensor, weight: Tensor, bias: Tensor | None, *, kernel: int, stride: int) -> Tensor:
    """Rows (N, C) by a weight (C', kernel C): (N', C'), without padding."""
    if _by_convolution(rows):
        return _as_rows(F.conv2d(_as_image(rows), _as_filters(weight, kernel), bias, (1, stride)))
    count, channels = (len(rows) - kernel) // stride + 1, rows.shape[1]
    out: Tensor | None = None
    for step, columns in _parts(kernel, stride, channels):
        part, factor = _windows(rows, step, columns, count, stride), weight[:, columns].t()
        if out is not None:
            out.addmm_(part, factor)
        else:
            out = part @ factor if bias is None else torch.addmm(bias, part, factor)
    assert out is not None
    return out


def conv_weight_grad(grad: Tensor, rows: Tensor, *, kernel: int, stride: int) -> Tensor:
    """Gradient of the weight (C', kernel C) from that of the output (N', C')."""
    parts = [
        grad.t() @ _windows(rows, step, columns, len(grad), stride)
        for step, columns in _parts(kernel, stride, rows.shape[1])
    ]
    return torch.cat(parts, dim=1)


def conv_input_grad(
    grad: Tensor, rows: Tensor, weight: Tensor, *, kernel: int, stride: int
) -> Tensor:
    """Gradient of the rows (N, C) from that of the output (N', C')."""
    if _by_convolution(rows):
        arguments = (None, (1, stride), (0, 0), (1, 1), False, (0, 0), 1, (True, False, False))
        image, _, _ = _aten.convolution_backward(
            _as_image(grad), _as_image(rows), _as_filters(weight, kernel), *arguments
        )
        return _as_rows(image)
    (count, _), (length, channels) = grad.shape, rows.shape
    steps = count + (kernel - 1) // stride
    made = rows.new_empty(max(length, steps * stride), channels)
    made[0 if kernel < stride else count * stride :].zero_()  # what the first product leaves out
    # Slices, not as_strided: inductor (torch 2.9) reads what is written to that before it is.
    made_by_step = made[: steps * stride].view(steps, stride * channels)
    for step, columns in _parts(kernel, stride, channels):
        part = made_by_step[step : step + count, : columns.stop - columns.start]
        if step == 0 and kernel >= stride:
            torch.mm(grad, weight[:, columns], out=part)
        else:
            part.addmm_(grad, weight[:, columns])
    return made[:length]


def _parts(kernel: int, stride: int, channels: int) -> list[tuple[int, slice]]:
    """The products of a convolution: the step (of ``stride`` rows), and columns of the weight."""
    return [
        (step, slice(first * channels, min(first + stride, kernel) * channels))
        for step, first in enumerate(range(0, kernel, stride))
    ]


def _windows(rows: Tensor, step: int, columns: slice, count: int, stride: int) -> Tensor:
    """What these columns meet, (count, taps C): a view of rows that are their own memory."""
    assert rows.is_contiguous()
    channels = rows.shape[1]
    size = (count, columns.stop - columns.start)
    return rows.as_strided(size, (stride * channels, 1), step * stride * channels)


def _by_convolution(rows: Tensor) -> bool:
    """Whether oneDNN's convolution makes the products, which takes channels last as they are.

    It is quicker than torch's products in float32 on CPUs (docs/performance.md), except for the
    gradient of the weight. What it computes is the same.
    """
    return rows.device.type == "cpu" and rows.dtype == torch.float32


def _as_image(rows: Tensor) -> Tensor:
    return rows.t()[None, :, None]


def _as_filters(weight: Tensor, kernel: int) -> Tensor:
    return weight.view(len(weight), 1, kernel, -1).permute(0, 3, 1, 2)


def _as_rows(image: Tensor) -> Tensor:
    return image[0, :, 0].t().contiguous()  # no copy, as oneDNN keeps the layout
