"""Plain torch: DistributedDataParallel and AdamW. The reference that DeepSpeed is held against."""

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from etude.data.batch import AudioBatch
from etude.pretrain.config import Config
from etude.pretrain.distributed import COLLECTIVE_TIMEOUT, World
from etude.pretrain.engine import (
    UpdateResult,
    Write,
    build_optimizer,
    host_copy,
    move,
    read_tensors,
    set_training,
    skip_where_not_finite,
)
from etude.pretrain.objective import StepOutput

_STATE = "engine.pt"


class DdpEngine:
    """One objective under torch's own data parallelism."""

    def __init__(
        self, objective: nn.Module, config: Config, world: World, *, micro_batches: int
    ) -> None:
        if not dist.is_initialized():
            backend = "nccl" if world.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
        self._world = world
        self._clip_norm = config.optim.clip_norm
        self._autocast = config.train.precision == "bf16"
        self._micro_batches = micro_batches
        self._accumulated = 0
        self.objective = objective.to(world.device)
        self._optimizer = build_optimizer(objective, config.optim, world.device)
        self._parallel = DistributedDataParallel(objective) if world.size > 1 else None

    def accumulate(self, batch: AudioBatch) -> StepOutput:
        """Forward and backward; gradients travel with the update's last micro-batch alone."""
        set_training(self.objective)
        self._accumulated += 1
        last = self._accumulated == self._micro_batches
        waiting = nullcontext() if self._parallel is None or last else self._parallel.no_sync()
        with waiting:
            with torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._autocast):
                output: StepOutput = (self._parallel or self.objective)(
                    move(batch, self._world.device)
                )
            (output.loss / self._micro_batches).backward()  # type: ignore[no-untyped-call]
        return output

    def update(self, lr: float) -> UpdateResult:
        """Clips and applies the gradient unless it is not finite."""
        self._accumulated = 0
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        limit = self._clip_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.objective.parameters(), limit)
        skipped = skip_where_not_finite(self._optimizer, norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return UpdateResult(norm, bool(skipped))  # the one wait of an update

    @torch.no_grad()
    def evaluate(self, batch: AudioBatch) -> StepOutput:
        """Forward alone, in evaluation mode."""
        self.objective.eval()
        batch = move(batch, self._world.device)
        with torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._autocast):
            output: StepOutput = self.objective(batch)
        return output

    def snapshot(self) -> Write:
        """Rank 0 copies module and optimizer, which are the same on all ranks."""
        if not self._world.is_main:
            return lambda folder: None
        state = host_copy(
            {
                "module": self.objective.state_dict(),
                "optimizer": self._optimizer.state_dict(),
            }
        )
        return lambda folder: torch.save(state, folder / _STATE)

    def load(self, folder: Path) -> None:
        """Reads what a :meth:`snapshot` wrote; nothing in it is executed."""
        state = read_tensors(folder / _STATE, self._world.device)
        self.objective.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
