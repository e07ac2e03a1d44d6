"""The DeepSpeed dictionary, generated from the run's config; no DeepSpeed or torch is imported.

DeepSpeed accepts unknown top-level keys in silence, so a user's own settings are checked here.
"""

import difflib
import json
from collections.abc import Mapping
from typing import Any

from etude.pretrain.config import Config
from etude.pretrain.errors import ConfigError

_OURS = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.global_batch and train.micro_batch",
    "gradient_clipping": "optim.clip_norm",
    "optimizer": "optim",
    "scheduler": "optim.warmup_steps and optim.schedule_steps",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "torch_autocast": "train.precision",
}

_KNOWN = {
    *_OURS,
    "zero_optimization",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "sparse_gradients",
    "steps_per_print",
    "wall_clock_breakdown",
    "dump_state",
    "memory_breakdown",
    "flops_profiler",
    "comms_logger",
    "tensorboard",
    "wandb",
    "csv_monitor",
    "zero_allow_untested_optimizer",
    "seq_parallel_communication_data_type",
    "checkpoint",
    "data_types",
    "aio",
    "compile",
}


# Buckets of 5e8 elements, the default, cost 2 GB per rank; ours hold the 95M model's gradients in a
# few pieces.
_ZERO = {"stage": 0, "reduce_bucket_size": 25_000_000, "allgather_bucket_size": 25_000_000}


def zero_settings(config: Config) -> dict[str, Any]:
    """The section ``zero_optimization``, ours and the user's, before a micro-batch is known.

    :raises ConfigError: as :func:`deepspeed_settings`.
    """
    own = _own_settings(config).get("zero_optimization", {})
    if not isinstance(own, dict):
        raise ConfigError(f"deepspeed.zero_optimization must be a mapping, but is {own!r}.")
    settings = {**_ZERO, **own}
    stage = settings["stage"]
    if stage not in (0, 1, 2):
        raise ConfigError(
            f"deepspeed.zero_optimization.stage is {stage!r}: Etude supports 0, 1 and 2. Stage 3 "
            "saves nothing below a billion parameters and would scatter an EMA teacher."
        )
    return settings


def deepspeed_settings(config: Config, *, micro_batch: int, ranks: int) -> dict[str, Any]:
    """The settings for ``deepspeed.initialize``.

    ``bf16.enabled`` would cast every parameter, a frozen EMA teacher included, which then stops
    moving; ``torch_autocast`` keeps them in float32. Its empty list of safe modules keeps the
    gradients in float32 on the wire too.

    :raises ConfigError: if the user's own settings are unknown or contradict the run's config.
    """
    settings: dict[str, Any] = {
        "train_batch_size": config.train.global_batch,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": config.train.global_batch // (micro_batch * ranks),
        "gradient_clipping": config.optim.clip_norm,
        "steps_per_print": 1_000_000_000,
        "zero_optimization": zero_settings(config),
        "torch_autocast": {
            "enabled": config.train.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }
    for key, value in _own_settings(config).items():
        if key in _OURS and value not in ("auto", settings.get(key)):
            raise ConfigError(
                f"deepspeed.{key} is {value!r}, but it follows from {_OURS[key]}: set that, and "
                f"leave deepspeed.{key} out (or `auto`)."
            )
        if key not in _OURS:
            old = settings.get(key)
            if isinstance(old, dict) and not isinstance(value, dict):
                raise ConfigError(f"deepspeed.{key} must be a mapping, but is {value!r}.")
            settings[key] = {**old, **value} if isinstance(old, dict) else value
    return settings


def _own_settings(config: Config) -> Mapping[str, Any]:
    own: Any = config.deepspeed
    if not isinstance(own, dict):
        try:
            own = json.loads(own.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:  # ValueError: no JSON, or no text
            raise ConfigError(f"deepspeed: {config.deepspeed} cannot be read: {error}.") from error
        if not isinstance(own, dict):
            raise ConfigError(f"deepspeed: {config.deepspeed} must hold a JSON object.")
    for key in own:
        if key not in _KNOWN:
            near = difflib.get_close_matches(key, _KNOWN, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise ConfigError(
                f"deepspeed.{key} is no setting of DeepSpeed that is known here.{hint}"
            )
    return own
