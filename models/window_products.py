"""A convolution over rows as products that write each number once: the form for GPUs.

    out[i] = [rows[i step], rows[i step + 1], ..., rows[i step + size - 1]] weight

A matrix of windows that overlap is none that BLAS takes, for a row begins before the one above has
ended. But every second of them (or third: as many as overlap) is one, and so they are one batched
product, whose results interleave in memory as the windows do. Products that add to each other, as
``conv_rows.py`` has them for CPUs, read and write the largest tensors of a step once more.

Under torch.compile these are operators, which it leaves as they are: it would let products write
elsewhere, and copy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("etude::window_conv", mutates_args=())
def window_conv(
    rows: Tensor, weight: Tensor, bias: Tensor | None, kernel: int, stride: int
) -> Tensor:
    """Rows (N, C) by a weight (C', kernel C): (N', C'), without padding."""
    out = rows.new_empty((len(rows) - kernel) // stride + 1, len(weight))
    _products(rows.contiguous(), weight.t(), out, size=kernel, step=stride)
    return out if bias is None else out.add_(bias)


@window_conv.register_fake
def _(rows: Tensor, weight: Tensor, bias: Tensor | None, kernel: int, stride: int) -> Tensor:
    return rows.new_empty((len(rows) - kernel) // stride + 1, len(weight))


@torch.library.custom_op("etude::window_conv_input_grad", mutates_args=())
def window_conv_input_grad(
    grad: Tensor, weight: Tensor, length: int, kernel: int, stride: int
) -> Tensor:
    """Gradient of the rows (``length``, C) from that of the output (N', C').

    ``stride`` rows at a time, side by side: the taps that meet the first of them are as many as
    meet the second, or one more. Those that are met by as many are one product.
    """
    grad = grad.contiguous()
    count, channels = len(grad), weight.shape[1] // kernel
    most = -(-kernel // stride)
    steps = count + most - 1
    made = grad.new_empty(max(length, steps * stride), channels)
    made[steps * stride :].zero_()
    by_step = made[: steps * stride].view(steps, stride * channels)
    more = kernel % stride or stride
    for first, last, taps in ((0, more, most), (more, stride, most - 1)):
        columns = by_step[:, first * channels : last * channels]
        if first == last:
            continue
        if taps == 0:
            columns.zero_()
            continue
        # A window of the gradient ends with what the earliest tap made.
        factors = [
            weight[:, (first + tap * stride) * channels : (last + tap * stride) * channels]
            for tap in reversed(range(taps))
        ]
        _full(grad, torch.cat(factors), columns[: count + taps - 1], size=taps)
        columns[count + taps - 1 :].zero_()
    return made[:length]


@window_conv_input_grad.register_fake
def _(grad: Tensor, weight: Tensor, length: int, kernel: int, stride: int) -> Tensor:
    return grad.new_empty(length, weight.shape[1] // kernel)


def _full(rows: Tensor, weight: Tensor, out: Tensor, *, size: int) -> None:
    """Windows that reach over both ends too, where rows are 0; ``out`` (N + size - 1, ...)."""
    beyond = size - 1
    if len(rows) > 2 * beyond:
        _products(rows, weight, out[beyond : len(rows)], size=size, step=1)
        if beyond:
            zeros = rows.new_zeros(beyond, rows.shape[1])
            head, tail = torch.cat([zeros, rows[:beyond]]), torch.cat([rows[-beyond:], zeros])
            _products(head, weight, out[:beyond], size=size, step=1)
            _products(tail, weight, out[len(rows) :], size=size, step=1)
    else:
        padded = F.pad(rows, (0, 0, beyond, beyond))
        _products(padded, weight, out, size=size, step=1)


def _products(rows: Tensor, weight: Tensor, out: Tensor, *, size: int, step: int) -> None:
    """Fills ``out`` (count, N), which may be some columns of a wider matrix, by (size C, N)."""
    count, channels = len(out), rows.shape[1]
    overlapping = -(-size // step)
    each = count // overlapping
    if each:
        windows = rows.as_strided(
            (overlapping, each, size * channels),
            (step * channels, overlapping * step * channels, 1),
        )
        to = out[: each * overlapping].view(each, overlapping, -1).transpose(0, 1)
        if overlapping == 1:
            torch.mm(windows[0], weight, out=to[0])
        else:
            torch.bmm(windows, weight.expand(overlapping, -1, -1), out=to)
    for i in range(each * overlapping, count):  # fewer than overlap
        torch.mm(rows[i * step : i * step + size].view(1, -1), weight, out=out[i : i + 1])
