"""A grouped convolution over time in the frequency domain: the positional convolution on a GPU.

    out[t] = sum_k weight[k] x[t + k]        X = rfft(x)  W = rfft(weight)  out = irfft(X conj(W))

cuDNN has no quick kernel for 16 groups of 48 channels and 128 taps: in bfloat16 on an H200 it took
more than a quarter of a training step for 3 % of its arithmetic (docs/performance.md). In frequency
a group is one small matrix product for each frequency. All of it is float32, or float64 if given
that, whatever autocast says; the spectra are made again in backward.

Letters: B rows, G groups, C channels of a group and O that it makes, T samples, K taps.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.weight_norm import WeightNorm

from etude.models.blocks import PositionEncoder, Wav2Vec2PositionalConv1d
from etude.models.smooth import next_smooth


def convolve_by_fourier(positions: PositionEncoder) -> None:
    """Lets the convolutions of ``positions`` go this way on GPUs; on CPUs oneDNN's is quicker.

    They stay fairseq2's modules in all else: their class gets a child, which has another forward.
    """
    for module in positions.modules():
        if isinstance(module, nn.Conv1d):
            module.__class__ = _KINDS[type(module)]
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, WeightNorm):
                    hook.__class__ = _WeightNormOnGpus


class _OnGpus(nn.Conv1d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.device.type != "cuda":
            made: Tensor = super()._conv_forward(input, weight, bias)
            return made
        padding = self.padding
        if isinstance(padding, str):  # "same"; torch has one more on the right
            whole = self.kernel_size[0] - 1
            sides = (whole // 2, whole - whole // 2)
        else:
            sides = (padding[0], padding[0])
        return fourier_conv(input, weight, bias, groups=self.groups, padding=sides)


class _PositionalOnGpus(_OnGpus, Wav2Vec2PositionalConv1d):  # type: ignore[misc]
    """fairseq2 calls its class final; an instance is made one of these after it is built."""


class _WeightNormOnGpus(WeightNorm):
    """torch's own kernels for a norm of all but the last dimension take .8 ms of a step, these .2.

    On an H200, for 768 x 48 x 128 numbers, forward and backward.
    """

    def compute_weight(self, module: nn.Module) -> Tensor:
        g, v = getattr(module, f"{self.name}_g"), getattr(module, f"{self.name}_v")
        if v.device.type != "cuda" or self.dim < 0:  # below 0: one norm of all
            made: Tensor = super().compute_weight(module)
            return made
        return normed_weight(v, g, dim=self.dim)


# Made here, not at need: a module is pickled by its class's name.
_KINDS: dict[type[nn.Conv1d], type[nn.Conv1d]] = {
    nn.Conv1d: _OnGpus,
    Wav2Vec2PositionalConv1d: _PositionalOnGpus,
}


def normed_weight(v: Tensor, g: Tensor, *, dim: int) -> Tensor:
    """``g v / |v|``, a norm for each index of ``dim`` (Salimans and Kingma 2016, eq. 2)."""
    others = [axis for axis in range(v.dim()) if axis != dim]
    wide = torch.promote_types(v.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(v, dim=others, keepdim=True, dtype=wide)
    return (v * (g / norm)).to(v.dtype)


def fourier_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, groups: int, padding: tuple[int, int]
) -> Tensor:
    """``conv1d`` with stride 1, in the type that it would have, under autocast or not.

    :param x: (B, G * C, T).
    :param weight: (G * O, C, K).
    :param padding: zeros on the left and on the right.
    """
    made: Tensor = _FourierConv.apply(x, weight, groups, padding)  # type: ignore[no-untyped-call]
    if bias is not None:
        made = made + bias[:, None]
    device = x.device.type
    # Autocast leaves float64 as it is.
    casts = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return made.to(torch.get_autocast_dtype(device) if casts else x.dtype)


class _FourierConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, groups: int, padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.groups, ctx.left = groups, padding[0]
        # Nothing wraps around: the padding is in it.
        ctx.size = next_smooth(x.shape[2] + sum(padding))
        x_BGCF, weight_GOCF = _spectra(ctx, x, weight)
        made_BGOF = _product("bgcf,gocf->bgof", x_BGCF, weight_GOCF.conj())
        frames = x.shape[2] + sum(padding) - weight.shape[2] + 1
        return _series(made_BGOF, ctx.size)[..., :frames].flatten(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        x_BGCF, weight_GOCF = _spectra(ctx, x, weight)
        grad_BGOF = torch.fft.rfft(grad, n=ctx.size).unflatten(1, (ctx.groups, -1))
        by_x = by_weight = None
        if ctx.needs_input_grad[0]:
            by_x_BGCF = _product("bgof,gocf->bgcf", grad_BGOF, weight_GOCF)
            inside = _series(by_x_BGCF, ctx.size)[..., ctx.left : ctx.left + x.shape[2]]
            by_x = inside.flatten(1, 2).to(x.dtype)
        if ctx.needs_input_grad[1]:
            by_weight_GOCF = _product("bgof,bgcf->gocf", grad_BGOF.conj(), x_BGCF)
            by_weight = _series(by_weight_GOCF, ctx.size)[..., : weight.shape[2]].flatten(0, 1)
            by_weight = by_weight.to(weight.dtype)
        return by_x, by_weight, None, None


def _spectra(ctx: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    padded = F.pad(x.to(wide), (ctx.left, ctx.size - ctx.left - x.shape[2]))
    x_BGCF = torch.fft.rfft(padded).unflatten(1, (ctx.groups, -1))
    weight_GOCF = torch.fft.rfft(weight.to(wide), n=ctx.size).unflatten(0, (ctx.groups, -1))
    return x_BGCF, weight_GOCF


def _product(letters: str, one: Tensor, other: Tensor) -> Tensor:
    product: Tensor = torch.einsum(letters, one, other)
    return product


def _series(spectrum: Tensor, size: int) -> Tensor:
    series: Tensor = torch.fft.irfft(spectrum, n=size)
    return series
