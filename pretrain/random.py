"""Counter-based random numbers: every draw is a pure function of what it is for.

Masks, mixtures, layer drop and dropout seeds depend on (seed, purpose, update or sample) alone.
Hence they are the same for any number of ranks and workers, on CPU and GPU, and there is no
generator whose state a checkpoint would have to carry.

The generator is SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014) used as a hash of a counter. torch has no unsigned 64-bit arithmetic, but signed
multiplication wraps to the same bits.
"""

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def derive(seed: int, *words: int | str) -> int:
    """Returns a 64-bit key for ``words`` (a purpose's name, an update …) under ``seed``."""
    state = _mix(seed)
    for word in words:
        if isinstance(word, str):
            for byte in word.encode():
                state = _mix(state ^ byte)
        else:
            state = _mix(state ^ _mix(word))
    return state


def uniform(key: int, ids: Tensor, count: int) -> Tensor:
    """Returns ``count`` uniform numbers in [0, 1) for each id.

    :param key: from :func:`derive`.
    :param ids: int64 (B,); the counter's high part, e.g. the sample's id.
    :returns: float32 (B, count), equal on every device.
    """
    counter = torch.arange(count, device=ids.device, dtype=torch.int64)
    state = _mix_tensor(ids + _signed(key))
    state = _mix_tensor(state[:, None] + counter * _signed(_GAMMA))
    # 24 bits fill float32's mantissa: no draw rounds up to 1.
    return ((state >> 40) & 0xFFFFFF).float() * 2.0**-24


def uniform_number(key: int, index: int) -> float:
    """One uniform number in [0, 1), equal to ``uniform(key, tensor([index]), 1)``."""
    return (_mix(_mix((index + key) & _MASK)) >> 40) * 2.0**-24


def seed_dropout(seed: int, update: int, micro_batch: int, rank: int) -> None:
    """Reseeds torch's generators for one forward pass.

    Dropout is the only user of torch's own generators; seeded anew for each micro-batch, they too
    are a pure function of the position in the run.
    """
    torch.manual_seed(derive(seed, "dropout", update, micro_batch, rank) & ((1 << 63) - 1))


def _mix(value: int) -> int:
    value = (value + _GAMMA) & _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def _mix_tensor(value: Tensor) -> Tensor:
    value = value + _signed(_GAMMA)
    value = (value ^ _shift(value, 30)) * _signed(_MIX_1)
    value = (value ^ _shift(value, 27)) * _signed(_MIX_2)
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    # `>>` on int64 copies the sign bit down; SplitMix64 wants zeros there.
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
