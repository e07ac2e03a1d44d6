"""The conv stack as matrix products: what fairseq2's module computes, at a fraction of its cost.

    waveform (B, T) -> patches (B, F, K) -> product -> [norm] -> GELU
        -> product -> [norm] -> GELU -> ... -> features (B, F, C)

Frames keep their channels last, so that every convolution is a product of what lies side by side in
memory (``conv_rows.py``). The group norm after the first convolution is part of that convolution's
product, because its statistics follow from those of the waveform's patches. Of every layer, its
input alone is kept for backward; of the first two layers, the waveform.

**The batch lies end to end.** Every row has room for a whole number of features, so that it starts
on a frame of every layer, and one product takes all rows. Frames that straddle two rows are made
and never read, and no gradient reaches them.

All parameters are those of fairseq2's modules, which hold them under their names.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.models.blocks import Wav2Vec2FeatureExtractor
from etude.models.conv_limits import LONGEST_PATCH
from etude.models.conv_rows import ActivatedConv, lead
from etude.models.frames import FrameGrid
from etude.models.precision import product_dtype

_FRAMES_AT_A_TIME = 256


def conv_features(stack: Wav2Vec2FeatureExtractor, waveform: Tensor) -> Tensor:
    """``stack``'s features (B, F, C) of a waveform (B, T), in the type that autocast asks for.

    :raises ValueError: if the waveform is shorter than what one frame sees.
    """
    layers: list[Any] = list(stack.layers)  # fairseq2's: conv, and a group_norm or a layer_norm
    rows, samples = waveform.shape
    kernels = [layer.conv.kernel_size[0] for layer in layers]
    strides = [layer.conv.stride[0] for layer in layers]
    grid = FrameGrid(1, kernels, strides)  # counts frames alone: any rate would do
    num_frames = grid.num_frames(samples)
    if num_frames == 0:
        raise ValueError(
            f"a waveform must have at least the {grid.receptive_samples} samples that one frame "
            f"sees, but has {samples}."
        )
    # In frames of the last layer; what the last frame sees is the longest in samples.
    room = num_frames - 1 + math.ceil(grid.receptive_samples / grid.hop_samples)
    dtype = product_dtype(waveform, layers[0].conv.weight)
    with _without_autocast(waveform.device.type):
        crop_rows = room * grid.hop_samples // strides[0]
        source, *leading = _first(layers[0], waveform, frames=crop_rows, dtype=dtype)
        for layer, following in pairwise(layers):
            source = ActivatedConv.apply(  # type: ignore[no-untyped-call]
                source, *leading, *_norm(layer, dtype), *_conv(following, dtype), crop_rows
            )
            leading = [None, None]
            crop_rows //= following.conv.stride[0]
        made = lead(source, *leading)
        # The last row ends where the waveform does, short of its room.
        made = F.pad(made, (0, 0, 0, rows * room - len(made))).view(rows, room, -1)
        features = made[:, :num_frames]
        weight, bias, eps = _norm(layers[-1], dtype)
        if weight is not None:
            features = F.layer_norm(features.to(weight.dtype), weight.shape, weight, bias, eps)
        features = F.gelu(features.to(dtype))
    if stack.training and stack.grad_scale != 1.0:
        fixed = features.detach()
        features = fixed + stack.grad_scale * (features - fixed)  # the value stays to the last bit
    return features


def _without_autocast(device: str) -> AbstractContextManager[object]:
    if device == "meta":  # shapes alone are computed: it knows no autocast
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type of norms: float32, or what is wider."""
    return torch.promote_types(dtype, torch.float32)


def _norm(layer: Any, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None, float]:
    """Weight, bias and eps of a layer norm after a convolution, where there is one."""
    norm = layer.layer_norm
    if norm is None:
        return None, None, 0.0
    return norm.weight.to(_wide(dtype)), norm.bias.to(_wide(dtype)), norm.eps


def _conv(layer: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, int, int]:
    """Weight (C', kernel C) with the channels of a tap side by side, bias, kernel and stride."""
    conv = layer.conv
    weight = conv.weight.permute(0, 2, 1).flatten(1).to(dtype)
    bias = None if conv.bias is None else conv.bias.to(dtype)
    return weight, bias, conv.kernel_size[0], conv.stride[0]


def _first(
    layer: Any, waveform: Tensor, *, frames: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What makes the first rows: see ``source`` and ``lead`` of :class:`ActivatedConv`.

    :param frames: how many to make of each row of the waveform, whether it reaches so far or not.
    """
    conv, norm = layer.conv, layer.group_norm
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    if norm is not None and kernel > LONGEST_PATCH:
        return _long_first(layer, waveform, frames=frames, dtype=dtype), None, None
    if norm is None:
        heard = waveform.to(dtype)
        weight_BKC = conv.weight[:, 0].t()[None]
        bias_B1C = None if conv.bias is None else conv.bias[None, None]
    else:
        # The norm does not hear a constant, which would cost bfloat16 its digits.
        heard = (waveform - waveform.mean(dim=1, keepdim=True)).to(dtype)
        weight_BKC, bias_B1C = _normed_product(heard, conv, norm)
    samples = (frames - 1) * stride + kernel
    patches_BFK = F.pad(heard, (0, samples - waveform.shape[1])).unfold(1, kernel, stride)
    # Rows that share a matrix are one long row.
    patches_BFK = patches_BFK.reshape(len(weight_BKC), -1, kernel)
    weight_BKC = weight_BKC.to(dtype)
    bias_B1C = None if bias_B1C is None else bias_B1C.to(dtype)
    if dtype.itemsize == 2:
        return *_aligned(patches_BFK, weight_BKC, bias_B1C), None
    return patches_BFK, weight_BKC, bias_B1C


def _aligned(
    patches_BFK: Tensor, weight_BKC: Tensor, bias_B1C: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same product with rows of whole 32 bytes, of which tensor cores take twice as many.

    There is room for a one, whose weight the bias is: it would cost a pass over all that is made.
    """
    if bias_B1C is not None:
        patches_BFK = F.pad(patches_BFK, (0, 1), value=1.0)
        weight_BKC = torch.cat([weight_BKC, bias_B1C], dim=1)
    spare = -weight_BKC.shape[1] % 16
    return F.pad(patches_BFK, (0, spare)), F.pad(weight_BKC, (0, 0, 0, spare))


def _normed_product(heard: Tensor, conv: nn.Conv1d, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """The first convolution and its group norm as one product for each row of the batch.

    A channel is w . patch + b. Over time its mean is w . m + b and its variance w' S w, where m and
    S are the mean and the covariance of the patches, which the waveform alone gives.

    In float64, because a filter may reject nearly all that there is: what second differences leave
    of a low note would drown in the rounding of a float32 S, though not in that of its product.

    :return: weight (B, K, C) and bias (B, 1, C).
    """
    patches_BFK = heard.double().unfold(1, conv.kernel_size[0], conv.stride[0])
    mean_BK = patches_BFK.mean(dim=1)
    square_BKK = _square(patches_BFK) / patches_BFK.shape[1]
    covariance_BKK = square_BKK - mean_BK[:, :, None] * mean_BK[:, None]
    weight_CK = conv.weight[:, 0].double()
    bias_C = 0.0 if conv.bias is None else conv.bias.double()
    mean_BC = mean_BK @ weight_CK.t() + bias_C
    variance_BC = ((weight_CK @ covariance_BKK) * weight_CK).sum(dim=2)
    scale_BC = norm.weight / torch.sqrt(variance_BC + norm.eps)
    shift_BC = norm.bias + (bias_C - mean_BC) * scale_BC
    return weight_CK.t() * scale_BC[:, None], shift_BC[:, None]


def _square(patches_BFK: Tensor) -> Tensor:
    """patches' patches, (B, K, K): some frames at a time, for a GPU makes so few numbers slowly."""
    batch, frames, kernel = patches_BFK.shape
    padded = F.pad(patches_BFK, (0, 0, 0, -frames % _FRAMES_AT_A_TIME))
    parts = padded.view(-1, _FRAMES_AT_A_TIME, kernel)
    return (parts.transpose(1, 2) @ parts).view(batch, -1, kernel, kernel).sum(dim=1)


def _long_first(layer: Any, waveform: Tensor, *, frames: int, dtype: torch.dtype) -> Tensor:
    """The first rows of a long kernel, as fairseq2 makes them but for the layout."""
    conv, norm = layer.conv, layer.group_norm
    bias = None if conv.bias is None else conv.bias.to(dtype)
    made_BCF = F.conv1d(waveform[:, None].to(dtype), conv.weight.to(dtype), bias, conv.stride)
    wide = _wide(dtype)
    normed_BCF = F.group_norm(
        made_BCF.to(wide), norm.num_groups, norm.weight.to(wide), norm.bias.to(wide), norm.eps
    ).to(dtype)
    normed_BFC = F.pad(normed_BCF, (0, frames - normed_BCF.shape[2])).transpose(1, 2)
    return normed_BFC.contiguous().flatten(0, 1)
