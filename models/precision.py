"""In which type something is computed: plain float32 for labels, autocast's for products."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def plain_float32(device: torch.device) -> Iterator[None]:
    """No autocast and no TF32: labels must not depend on how the model around them computes.

    TF32 alone has an error a hundred times that of a constant-Q transform.
    """
    matmul, conv = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = conv


def product_dtype(values: Tensor, weight: Tensor) -> torch.dtype:
    """The type in which autocast would multiply ``values`` by ``weight``."""
    device = values.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype
