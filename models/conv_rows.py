"""A convolution over frames with their channels last, as products of matrices, with its backward.

Frames are rows of a matrix (N, C). What lies side by side in time lies side by side in memory, so
that kernel 2 with stride 2 is a reshape to (N / 2, 2 C) and one product; kernel 3 with stride 2 is
the same and a second product, of every other row, which adds to the first. In general there is one
product for every ``stride`` taps; a GPU has a form of its own (``window_products.py``).

``ActivatedConv`` is a convolution with all that comes between it and the one before. It keeps its
input alone: norm and GELU are made again in backward, where they cost little beside the products,
while what they make is three quarters and more of what autograd would keep.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from etude.models.conv_limits import PART_BYTES
from etude.models.first_conv import activated_product, activated_product_grad, fits
from etude.models.window_products import window_conv, window_conv_input_grad

_aten = torch.ops.aten


class ActivatedConv(torch.autograd.Function):
    """``conv(gelu(norm(rows)))``; rows are the input itself or its product with ``lead_weight``.

    A few crops at a time: what is made on the way and thrown away would, of all crops at once, be
    the most that a training step holds.
    """

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
        crop_rows: int,
    ) -> Tensor:
        """Rows (N, C) to rows (N', C').

        :param source: rows (N, C); or with a lead, patches (B, F, K), of which it makes B F rows.
        :param lead_weight: (B, K, C), a matrix of its own for each crop, or one for all (1, K, C).
        :param lead_bias: of as many, (B, 1, C).
        :param norm_weight: (C,) of a layer norm, in the type in which it is computed.
        :param weight: (C', kernel C), the channels of a tap side by side.
        :param crop_rows: rows of a crop, a multiple of ``stride``; the last crop may have fewer.
            Frames that straddle two crops are anything finite, and must not be given a gradient.
        """
        ctx.save_for_backward(source, lead_weight, lead_bias, norm_weight, norm_bias, weight)
        ctx.eps, ctx.has_bias, ctx.kernel, ctx.stride = eps, bias is not None, kernel, stride
        ctx.crop_rows = crop_rows
        # One kernel on a GPU, where nobody asks for the gradient by the waveform.
        ctx.fused = (
            lead_weight is not None
            and lead_bias is None
            and norm_weight is None
            and not ctx.needs_input_grad[0]
            and fits(source, lead_weight)
        )
        made = []
        for part in _parts_of_batch(source, lead_weight, crop_rows):
            part_source, part_weight, part_bias = part.of(source, lead_weight, lead_bias)
            if ctx.fused and part_weight is not None:
                active = activated_product(part_source, part_weight)
            else:
                rows = lead(part_source, part_weight, part_bias)
                active = F.gelu(_layer_norm(rows, norm_weight, norm_bias, eps)[0])
            frames = conv(active, weight, bias, kernel=kernel, stride=stride)
            straddling = 0 if part.is_last else len(active) // stride - len(frames)
            made.append(F.pad(frames, (0, 0, 0, straddling)) if straddling else frames)
        return made[0] if len(made) == 1 else torch.cat(made)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all tensors that :meth:`forward` takes."""
        source, lead_weight, lead_bias, norm_weight, norm_bias, weight = ctx.saved_tensors
        # Patches want a gradient only where somebody differentiates by the waveform.
        by_source = torch.empty_like(source) if ctx.needs_input_grad[0] else None
        by_weight: list[Tensor] = []
        by_bias: list[Tensor] = []
        by_norm_weight: list[Tensor] = []
        by_norm_bias: list[Tensor] = []
        by_lead_weight: list[Tensor] = []
        by_lead_bias: list[Tensor] = []
        for part in _parts_of_batch(source, lead_weight, ctx.crop_rows):
            part_source, part_weight, part_bias = part.of(source, lead_weight, lead_bias)
            if ctx.fused and part_weight is not None:
                rows = active = activated_product(part_source, part_weight)
            else:
                rows = lead(part_source, part_weight, part_bias)
                normed, mean, rstd = _layer_norm(rows, norm_weight, norm_bias, ctx.eps)
                active = F.gelu(normed)
            first = part.rows.start // ctx.stride
            part_grad = grad[first : first + (len(active) - ctx.kernel) // ctx.stride + 1]
            products = {"kernel": ctx.kernel, "stride": ctx.stride}
            by_weight.append(conv_weight_grad(part_grad, active, **products))
            if ctx.has_bias:
                by_bias.append(part_grad.sum(dim=0))
            del active
            grad_rows = conv_input_grad(part_grad, rows, weight, **products)
            if ctx.fused and part_weight is not None:
                by_lead_weight.append(activated_product_grad(part_source, part_weight, grad_rows))
                continue
            grad_rows = _aten.gelu_backward.grad_input(grad_rows, normed, grad_input=grad_rows)
            if norm_weight is not None:
                grad_rows, *by_norm = _aten.native_layer_norm_backward(
                    grad_rows.to(norm_weight.dtype),
                    rows.to(norm_weight.dtype),
                    norm_weight.shape,
                    mean,
                    rstd,
                    norm_weight,
                    norm_bias,
                    [True, True, True],
                )
                by_norm_weight.append(by_norm[0])
                by_norm_bias.append(by_norm[1])
                grad_rows = grad_rows.to(rows.dtype)
            if part_weight is not None:
                grad_rows = grad_rows.view(len(part_source), -1, part_weight.shape[2])
                by_lead_weight.append(part_source.transpose(1, 2) @ grad_rows)
                if part_bias is not None:
                    by_lead_bias.append(grad_rows.sum(dim=1, keepdim=True))
                if by_source is not None:
                    grad_rows = grad_rows @ part_weight.transpose(1, 2)
            if by_source is not None:
                part.of(by_source, lead_weight, lead_bias)[0].copy_(grad_rows)
        return (
            by_source,
            _per_crop(by_lead_weight, lead_weight),
            _per_crop(by_lead_bias, lead_bias),
            _total(by_norm_weight),
            _total(by_norm_bias),
            None,
            _total(by_weight),
            _total(by_bias),
            None,
            None,
            None,
        )


class _Part(NamedTuple):
    """A few crops of a batch."""

    crops: slice
    rows: slice
    is_last: bool

    def of(
        self, source: Tensor, lead_weight: Tensor | None, lead_bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What :func:`lead` makes this part's rows of."""
        if lead_weight is None:
            return source[self.rows], None, None
        if len(lead_weight) == 1:
            return source[:, self.rows], lead_weight, lead_bias
        bias = None if lead_bias is None else lead_bias[self.crops]
        return source[self.crops], lead_weight[self.crops], bias


def _parts_of_batch(source: Tensor, lead_weight: Tensor | None, crop_rows: int) -> Iterator[_Part]:
    """Parts whose rows take about ``PART_BYTES`` or, if that is more, one crop each."""
    rows = len(source) if lead_weight is None else source.shape[0] * source.shape[1]
    channels = source.shape[1] if lead_weight is None else lead_weight.shape[2]
    budget = PART_BYTES["cpu" if source.device.type == "cpu" else "cuda"]
    each = max(1, budget // (crop_rows * channels * source.element_size()))
    crops = -(-rows // crop_rows)
    for first in range(0, crops, each):
        last = min(crops, first + each)
        inside = slice(first * crop_rows, min(rows, last * crop_rows))
        yield _Part(slice(first, last), inside, is_last=last == crops)


def _total(parts: list[Tensor]) -> Tensor | None:
    """The sum, made in float32 or what is wider; ``None`` of nothing."""
    if len(parts) < 2:
        return parts[0] if parts else None
    wide = torch.promote_types(parts[0].dtype, torch.float32)
    return torch.stack(parts).sum(dim=0, dtype=wide).to(parts[0].dtype)


def _per_crop(parts: list[Tensor], matrices: Tensor | None) -> Tensor | None:
    """Gradients of matrices, of which every crop has one, or all have the same."""
    shared = matrices is None or len(matrices) == 1
    return _total(parts) if shared else torch.cat(parts)


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
    if _by_windows(rows):
        by_windows: Tensor = window_conv(rows, weight, bias, kernel, stride)
        return by_windows
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
    """Gradient of the rows (N, C) from that of the output (N', C'); only their shape counts."""
    if _by_convolution(rows):
        arguments = (None, (1, stride), (0, 0), (1, 1), False, (0, 0), 1, (True, False, False))
        image, _, _ = _aten.convolution_backward(
            _as_image(grad), _as_image(rows), _as_filters(weight, kernel), *arguments
        )
        return _as_rows(image)
    if _by_windows(rows):
        by_windows: Tensor = window_conv_input_grad(grad, weight, len(rows), kernel, stride)
        return by_windows
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


def _by_windows(rows: Tensor) -> bool:
    """Whether products write each number once; on CPUs two that add are a fifth quicker."""
    return rows.device.type == "cuda"


def _as_image(rows: Tensor) -> Tensor:
    return rows.t()[None, :, None]


def _as_filters(weight: Tensor, kernel: int) -> Tensor:
    return weight.view(len(weight), 1, kernel, -1).permute(0, 3, 1, 2)


def _as_rows(image: Tensor) -> Tensor:
    return image[0, :, 0].t().contiguous()  # no copy, as oneDNN keeps the layout
