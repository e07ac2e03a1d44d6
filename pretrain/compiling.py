"""torch.compile of the parts that repeat; where it does not work, training goes on without.

Region by region: the layers of a transformer share one graph, so that compiling takes as long as
for one of them, and no graph spans what DeepSpeed or DDP do between them.
"""

import logging
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._dynamo.callback import CallbackArgs, callback_handler

from etude.models.context import Context
from etude.models.frontend import WaveformFrontend
from etude.pretrain.hooks import Hook
from etude.pretrain.targets.heads import CosineHead

if TYPE_CHECKING:
    from etude.pretrain.trainer import Trainer

_log = logging.getLogger(__name__)

_MOST_GRAPHS = 8
"""Graphs per piece of code: training, evaluation, other lengths. Beyond, it runs as written."""


def compile_regions(objective: nn.Module, device: torch.device) -> bool:
    """Lets front ends, layers of transformers and losses of heads compile at their first call.

    :returns: whether it can: a machine may lack the C++ compiler or Triton that this needs.
    """
    if (lacking := _find_obstacle(device)) is not None:
        _log.warning(
            "train.compile: torch.compile does not work here, going on without: %s", lacking
        )
        return False
    torch._dynamo.config.recompile_limit = _MOST_GRAPHS
    # A region that cannot be compiled runs as written, with torch's own word about it.
    torch._dynamo.config.suppress_errors = True
    for module in objective.modules():
        if isinstance(module, WaveformFrontend):
            module.compile()  # type: ignore[no-untyped-call]
        elif isinstance(module, Context):
            for layer in module.layers:
                layer.compile()  # type: ignore[no-untyped-call]
        elif isinstance(module, CosineHead):
            module.judge = torch.compile(module.judge)
    return True


class ReportCompiling(Hook):
    """Tells how long compiling took, whenever more of it was done."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.graphs = 0
        self._told = 0
        self._began: float | None = None

    def start(self, trainer: "Trainer") -> None:
        """Listens from here on."""
        callback_handler.register_start_callback(self._start)
        callback_handler.register_end_callback(self._end)

    def step_end(self, trainer: "Trainer") -> None:
        """After the first update, and after any that met another shape."""
        if self.graphs > self._told:
            self._told = self.graphs
            _log.info(
                "torch.compile: %d graphs in %.0f s until update %d",
                self.graphs,
                self.seconds,
                trainer.step,
            )

    def close(self, trainer: "Trainer") -> None:
        """Listens no longer."""
        callback_handler.remove_start_callback(self._start)
        callback_handler.remove_end_callback(self._end)

    def _start(self, arguments: CallbackArgs) -> None:
        self._began = self._began or time.perf_counter()

    def _end(self, arguments: CallbackArgs) -> None:
        if self._began is not None:
            self.seconds += time.perf_counter() - self._began
            self.graphs += 1
            self._began = None


def _find_obstacle(device: torch.device) -> str | None:
    """Why torch.compile does not work on ``device``; ``None`` if it does."""

    def small(values: Tensor) -> Tensor:
        return (values * 2.0 + 1.0).relu()

    try:
        torch.compile(small)(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001 - compilers fail in ways of their own
        lines = [line for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    return None
