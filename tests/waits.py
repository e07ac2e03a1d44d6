"""Counts what would make the host wait for a GPU, on a CPU too."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "_local_scalar_dense",  # .item(), float(), bool(), int()
    "nonzero",
    "masked_select",
    "bincount",  # its size depends on the largest value
    "_unique2",
    "unique_consecutive",
    "equal",
    "is_nonzero",
    "repeat_interleave",
}


class Waits(TorchDispatchMode):
    """Counts operations for which the host would wait.

    :param known: tensors that live on the host, and may be read.
    """

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._known = {tensor.data_ptr() for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING and args[0].data_ptr() not in self._known:
            self.found[name] += 1
        if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple):
            indices = [one for one in args[1] if one is not None]
            if any(one.dtype in (torch.bool, torch.uint8) for one in indices):
                self.found[f"{name} by a mask"] += 1
        return func(*args, **(kwargs or {}))
