"""FLOPs of a crop of 5 s, forward and backward: what MFU counts.

Two per multiplication and addition; backward twice the forward, without the gradient of the
waveform. Heads on 56 % of the frames. Targets and recomputation do not count.
"""

from .common import CLASSES, CODEBOOKS, CQT, FINAL_DIM, GEOMETRY, KERNELS, STRIDES

_POSITION_KERNEL, _POSITION_GROUPS, _CHANNELS = 128, 16, 512
_MASKED = 0.56


def train_flops(size: str, *, samples: int = 120_000) -> float:
    """FLOPs of one crop of MERT."""
    geometry = GEOMETRY[size]
    dim, ffn, layers = geometry["dim"], geometry["ffn_dim"], geometry["layers"]
    frames, inputs, first, total = samples, 1, 0.0, 0.0
    for number, (kernel, stride) in enumerate(zip(KERNELS, STRIDES, strict=True)):
        frames = (frames - kernel) // stride + 1
        flops = 2.0 * frames * kernel * inputs * _CHANNELS
        first, total = (flops, total) if number == 0 else (first, total + flops)
        inputs = _CHANNELS
    total += 2.0 * frames * _CHANNELS * dim
    total += 2.0 * frames * _POSITION_KERNEL * dim * dim / _POSITION_GROUPS
    total += layers * 2.0 * frames * (4 * dim * dim + 2 * dim * ffn)
    total += layers * 2.0 * 2 * frames * frames * dim
    head = dim * CODEBOOKS * FINAL_DIM[size] + CODEBOOKS * CLASSES * FINAL_DIM[size]
    total += 2.0 * _MASKED * frames * (head + dim * CQT["bins"])
    return 2 * first + 3 * total
