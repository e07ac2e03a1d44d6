"""The DeepSpeed engine: the only file that imports deepspeed."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from etude.data.batch import AudioBatch
from etude.pretrain.config import Config
from etude.pretrain.distributed import COLLECTIVE_TIMEOUT, World
from etude.pretrain.engine import (
    UpdateResult,
    Write,
    build_optimizer,
    gradient_norm,
    host_copy,
    move,
    read_tensors,
    set_training,
    skip_where_not_finite,
)
from etude.pretrain.errors import CheckpointError
from etude.pretrain.objective import StepOutput

# DeepSpeed and its launcher log every detail at INFO, before any handler of ours.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
import deepspeed  # noqa: E402
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine  # noqa: E402
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler  # noqa: E402
from deepspeed.runtime.zero.config import ZeroStageEnum  # noqa: E402
from deepspeed.runtime.zero.utils import ZeRORuntimeException  # noqa: E402
from deepspeed.utils.tensor_fragment import fragment_address  # noqa: E402

_TAG = "engine"
_HERE = "checkpoint"
"""Stands for the folder that is not known yet when DeepSpeed's states are copied."""


class DeepSpeedEngine:
    """One objective under DeepSpeed, ZeRO stage 0, 1 or 2.

    :param settings: from :func:`etude.pretrain.deepspeed_settings.deepspeed_settings`.
    """

    def __init__(
        self, objective: nn.Module, config: Config, settings: dict[str, Any], world: World
    ) -> None:
        _start_process_group(world)
        self._world = world
        self._autocast = config.train.precision == "bf16"
        self._clip_norm = config.optim.clip_norm
        if settings["zero_optimization"]["stage"] == 0:
            # Done here, with the norm that is computed anyway.
            settings = {**settings, "gradient_clipping": 0.0}
        objective.to(world.device)
        self._optimizer = build_optimizer(objective, config.optim, world.device)
        self._engine: Any = deepspeed.initialize(
            model=objective,
            optimizer=self._optimizer,
            config=settings,
            dist_init_required=False,
        )[0]
        self._files = _SafeCheckpointEngine(self._engine._config)
        self._engine.checkpoint_engine = self._files
        # ZeRO would lay two scripts beside its files, which are not there yet when it does.
        self._engine._copy_recovery_script = lambda folder: None
        self._stage: int = self._engine.zero_optimization_stage()
        if self._stage == 0 and world.size == 1:
            # One rank has nobody to share gradients with, but would copy them all into buckets and
            # back: about 4 % of an update at 95M.
            self._engine.enable_backward_allreduce = False
        self.objective = objective

    def accumulate(self, batch: AudioBatch) -> StepOutput:
        """Forward and backward of one micro-batch; DeepSpeed divides by their number."""
        set_training(self.objective)
        output: StepOutput = self._engine(move(batch, self._world.device))
        self._engine.backward(output.loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts the micro-batch; nothing is applied
        return output

    def update(self, lr: float) -> UpdateResult:
        """Applies the gradient unless it is not finite."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        if self._stage == 0:
            # Stage 0 would apply a non-finite gradient, and the parameters would be gone. After
            # the reduction every rank has the same gradient and so takes the same decision.
            norm = gradient_norm(self.objective)
            skipped = skip_where_not_finite(self._optimizer, norm)
            if self._clip_norm:
                parameters = self.objective.parameters()
                torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, norm)
            self._engine.step()
            return UpdateResult(norm, bool(skipped))  # the one wait of an update
        # The partitioned optimizer waits twice for the norm; a look of ours would be a third.
        self._engine.step()
        norm = torch.as_tensor(self._engine.get_global_grad_norm())
        return UpdateResult(norm, skipped=not self._engine.was_step_applied())

    @torch.no_grad()
    def evaluate(self, batch: AudioBatch) -> StepOutput:
        """Forward alone, in evaluation mode."""
        self.objective.eval()
        batch = move(batch, self._world.device)
        with torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._autocast):
            output: StepOutput = self.objective(batch)
        return output

    def snapshot(self) -> Write:
        """Copies what DeepSpeed would write; which of it is valid is the checkpoint's business."""
        self._engine.save_checkpoint(_HERE, tag=_TAG, save_latest=False)
        files = self._files.taken()

        def write(folder: Path) -> None:
            for path, state in files.items():
                target = folder / Path(path).relative_to(_HERE)
                target.parent.mkdir(parents=True, exist_ok=True)
                torch.save(state, target)

        return write

    def load(self, folder: Path) -> None:
        """Reads DeepSpeed's files without executing anything in them.

        :raises CheckpointError: if they do not fit this run, such as another number of ranks with
            a partitioned optimizer.
        """
        try:
            loaded, _ = self._engine.load_checkpoint(str(folder), tag=_TAG)
        except (ZeRORuntimeException, RuntimeError, AssertionError, ValueError, KeyError) as error:
            cause = str(error).rstrip(".")
            raise CheckpointError(
                f"{folder} cannot be continued from: {cause}. With ZeRO stage {self._stage} the "
                "number of ranks must be the one it was saved with; stage 0 takes any."
            ) from error
        if loaded is None:
            raise CheckpointError(f"{folder} holds no DeepSpeed state.")


class _SafeCheckpointEngine(TorchCheckpointEngine):  # type: ignore[misc]
    """DeepSpeed's own engine unpickles whatever it finds, and writes while training waits.

    This one reads tensors and DeepSpeed's enums alone, and copies what is to be written.
    """

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self._states: dict[str, Any] = {}

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Folders are made when the copies are written."""

    def save(self, state_dict: Any, path: str) -> None:
        self._states[path] = host_copy(state_dict)

    def taken(self) -> dict[str, Any]:
        """What was saved since the last call, by path."""
        states, self._states = self._states, {}
        return states

    def load(self, path: str, map_location: Any = None) -> Any:
        allowed = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
        with torch.serialization.safe_globals(allowed):
            return read_tensors(Path(path), map_location)


def _start_process_group(world: World) -> None:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if world.device.type == "cpu":
        # Its shared-memory all-reduce compiles for a minute at the first start, and a start killed
        # meanwhile leaves a lock on which every later one hangs. gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        backend = "nccl" if world.device.type == "cuda" else "gloo"
        deepspeed.init_distributed(dist_backend=backend, timeout=COLLECTIVE_TIMEOUT, verbose=False)
