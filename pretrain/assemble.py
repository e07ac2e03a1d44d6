"""Config to running parts: the one screen where everything meets.

check_inputs   what can be wrong is found before any model is built
build_objective, build_engine, train
"""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import assert_never

import torch
from torch import nn

from etude.data.errors import InputError
from etude.data.pipeline import held_out_batches, training_batches
from etude.data.plan import BatchShare, CropPlan
from etude.data.shards import Corpus, open_corpus
from etude.models.encoder import Encoder
from etude.models.spectral import ConstantQ
from etude.models.weights import load_encoder
from etude.pretrain.augment import mix_in_batch
from etude.pretrain.checkpoint import Checkpoints
from etude.pretrain.config import Config, CqtTargetConfig, KmeansTargetConfig, TargetConfig
from etude.pretrain.deepspeed_settings import deepspeed_settings
from etude.pretrain.distributed import World, sum_over_ranks
from etude.pretrain.engine import Engine
from etude.pretrain.errors import ConfigError
from etude.pretrain.hooks import Hook, MetricsFile, Progress, SaveCheckpoints, Validate
from etude.pretrain.masked_prediction import MaskedPrediction, Mixture
from etude.pretrain.metrics import MetricSums
from etude.pretrain.quantizer import FeatureQuantizer, load_quantizer
from etude.pretrain.random import derive
from etude.pretrain.run_folder import RunFolder, cut_metrics
from etude.pretrain.schedules import warmup_linear
from etude.pretrain.stop import StopRequest
from etude.pretrain.targets.base import Target
from etude.pretrain.targets.cqt import CqtTarget
from etude.pretrain.targets.kmeans import KmeansTarget
from etude.pretrain.trainer import Trainer

_log = logging.getLogger(__name__)

_AUTO_MICRO_BATCH = {"cpu": 8, "cuda": 32}


@dataclass(frozen=True)
class Inputs:
    """What a run reads, opened and checked."""

    corpus: Corpus
    train: CropPlan
    valid: CropPlan | None
    quantizers: dict[str, FeatureQuantizer]
    share: BatchShare
    notes: tuple[str, ...]
    """Things that are odd but not wrong."""


def check_inputs(config: Config, *, rank: int, ranks: int, device: str) -> Inputs:
    """Opens the corpus and label files and checks that all fits together.

    :raises ConfigError: if settings and inputs contradict each other.
    :raises InputError: if the corpus is missing or has no clip as long as a crop.
    """
    share = BatchShare(config.train.global_batch, _micro_batch(config, ranks, device), rank, ranks)
    deepspeed_settings(config, micro_batch=share.micro_batch, ranks=ranks)
    corpus = open_corpus(config.data.corpus)
    if corpus.sample_rate != config.model.sample_rate:
        raise ConfigError(
            f"the corpus {corpus.root} has {corpus.sample_rate} Hz, but model.sample_rate is "
            f"{config.model.sample_rate}. Prepare it with `--sample-rate "
            f"{config.model.sample_rate}`, or set model.sample_rate={corpus.sample_rate}."
        )
    if config.init_from is not None:
        find_encoder(config.init_from)
    plan = partial(
        CropPlan,
        crop_samples=config.crop_samples,
        hop_samples=config.model.grid.hop_samples,
        seed=config.seed,
    )
    train = plan(corpus.split("train"))
    valid = _valid_plan(corpus, plan, ranks)
    return Inputs(
        corpus=corpus,
        train=train,
        valid=valid,
        quantizers=_load_quantizers(config),
        share=share,
        notes=tuple(_notes(config, train, valid, share)),
    )


def build_objective(config: Config, inputs: Inputs) -> MaskedPrediction:
    """Encoder, targets and objective, initialised from the seed alone."""
    torch.manual_seed(config.seed)
    encoder = Encoder(config.model)
    objective = MaskedPrediction(
        encoder,
        {
            name: _build_target(name, target, config, inputs)
            for name, target in config.objective.targets.items()
        },
        weights={name: target.weight for name, target in config.objective.targets.items()},
        seed=config.seed,
        mask_prob=config.objective.mask.prob,
        mask_span=config.objective.mask.span_frames,
        mask_fraction=config.objective.mask.fraction,
        visible_weight=config.objective.visible_weight,
        feature_penalty=config.objective.feature_penalty,
        layer_drop=config.model.layer_drop,
        mixture=_build_mixture(config, inputs.share.micro_batch),
    )
    if config.init_from is not None:
        loaded = load_encoder(find_encoder(config.init_from))
        if loaded.config.grid != config.model.grid:
            raise ConfigError(f"init_from: {config.init_from} has another frame grid than model.")
        encoder.load_state_dict(loaded.state_dict())
    return objective


def build_engine(objective: nn.Module, config: Config, world: World, share: BatchShare) -> Engine:
    """The engine that ``train.engine`` names."""
    if config.train.engine == "ddp":
        from etude.pretrain.engine_ddp import DdpEngine

        return DdpEngine(objective, config, world, micro_batches=share.micro_batches)
    # Imported here, because importing DeepSpeed takes seconds that `--dry-run` need not wait.
    from etude.pretrain.engine_deepspeed import DeepSpeedEngine

    settings = deepspeed_settings(config, micro_batch=share.micro_batch, ranks=share.ranks)
    return DeepSpeedEngine(objective, config, settings, world)


def train(config: Config, inputs: Inputs, world: World, folder: RunFolder) -> Trainer:
    """Trains to the end of the run, continuing where its folder stopped; returns the trainer."""
    checkpoints = Checkpoints(folder.checkpoints, keep=config.checkpoint.keep, world=world)
    found = checkpoints.newest_valid()
    objective = build_objective(config, inputs)
    with StopRequest(world.device) as stop:
        engine = build_engine(objective, config, world, inputs.share)
        step = 0
        if found is not None:
            path, state = found
            if state["corpus"] != inputs.corpus.fingerprint:
                raise ConfigError(
                    f"{path} was trained on another corpus than {inputs.corpus.root} is now: its "
                    "order could not go on. Choose another run.dir."
                )
            checkpoints.load_engine(path, engine)
            step = int(state["step"])
        if world.is_main:
            cut_metrics(folder.metrics, step)
            _log.info("continuing at update %d" if step else "starting at update %d", step)
        saver = SaveCheckpoints(
            checkpoints,
            objective,
            every=config.checkpoint.every_steps,
            max_steps=config.train.max_steps,
            state={"corpus": inputs.corpus.fingerprint},
        )
        trainer = Trainer(
            engine=engine,
            objective=objective,
            batches=training_batches(
                inputs.train,
                inputs.share,
                first_update=step,
                workers=config.data.workers,
                pin_memory=world.device.type == "cuda",
            ),
            schedule=warmup_linear(
                config.optim.lr,
                warmup_steps=config.optim.warmup_steps,
                schedule_steps=config.schedule_steps,
            ),
            hooks=_hooks(config, inputs, engine, world, folder),
            saver=saver,
            stop=stop,
            seed=config.seed,
            rank=world.rank,
            step=step,
            max_steps=config.train.max_steps,
            micro_batches=inputs.share.micro_batches,
            global_batch=config.train.global_batch,
            log_every=config.logging.every_steps,
            hours_per_update=hours_per_update(config),
            max_skipped_fraction=config.data.max_skipped_fraction,
            max_skipped_updates=config.train.max_skipped_updates,
        )
        if found is not None:
            trainer.checkpoint, trainer.checkpoint_step = found[0], step
            trainer.skipped_updates = int(found[1]["skipped_updates"])
        trainer.fit()
    return trainer


def hours_per_update(config: Config) -> float:
    """Audio that one update hears, in hours."""
    return config.train.global_batch * config.data.crop_seconds / 3600


def find_encoder(path: Path) -> Path:
    """The folder with the newest encoder of a run, a checkpoint or an encoder folder.

    :raises InputError: if there is none.
    """
    for folder in (path, *sorted(path.glob("checkpoints/step-????????"), reverse=True)):
        if (folder / "encoder.json").is_file():
            return folder
    raise InputError(
        f"{path} holds no encoder: expected a run folder with checkpoints, or a folder with "
        "encoder.json and encoder.safetensors."
    )


def _hooks(
    config: Config, inputs: Inputs, engine: Engine, world: World, folder: RunFolder
) -> list[Hook]:
    hooks: list[Hook] = []
    if inputs.valid is not None:
        measure = partial(
            _validate, engine, inputs.valid, config.data.max_valid_crops, inputs.share
        )
        every, last = config.logging.valid_every_steps, config.train.max_steps
        hooks.append(Validate(measure, every=every, max_steps=last))
    if world.is_main:
        events = folder.tensorboard if config.logging.tensorboard else None
        hooks.append(MetricsFile(folder.metrics, events))
        hooks.append(Progress(config.train.max_steps, config.train.global_batch))
    return hooks


def _validate(engine: Engine, plan: CropPlan, crops: int, share: BatchShare) -> dict[str, float]:
    sums = MetricSums()
    for batch in held_out_batches(
        plan, crops=crops, micro_batch=share.micro_batch, rank=share.rank, ranks=share.ranks
    ):
        sums.add(engine.evaluate(batch).metrics)
    sums.replace(sum_over_ranks(sums.tensors()))
    return sums.results()


def _build_target(name: str, target: TargetConfig, config: Config, inputs: Inputs) -> Target:
    match target:
        case KmeansTargetConfig():
            return KmeansTarget(
                inputs.quantizers[name],
                config.model.dim,
                final_dim=target.final_dim,
                temperature=target.temperature,
            )
        case CqtTargetConfig():
            transform = ConstantQ(
                config.model.grid,
                bins=target.bins,
                bins_per_octave=target.bins_per_octave,
                fmin=target.fmin,
                scale=target.scale,
                level=target.level,
            )
            return CqtTarget(transform, config.model.dim, bins=target.bins)
        case _:
            assert_never(target)


def _build_mixture(config: Config, micro_batch: int) -> Mixture | None:
    mixture = config.objective.mixture
    if not mixture.prob or micro_batch % mixture.group:
        return None
    return partial(
        mix_in_batch,
        key=derive(config.seed, "mixture"),
        group=mixture.group,
        prob=mixture.prob,
        min_samples=round(mixture.min_seconds * config.model.sample_rate),
        max_samples=round(mixture.max_seconds * config.model.sample_rate),
        max_excerpts=mixture.max_excerpts,
        gain=mixture.gain,
    )


def _load_quantizers(config: Config) -> dict[str, FeatureQuantizer]:
    quantizers = {}
    for name, target in config.objective.targets.items():
        if isinstance(target, KmeansTargetConfig):
            quantizer = load_quantizer(target.centroids)
            if quantizer.settings.grid != config.model.grid:
                raise ConfigError(
                    f"objective.targets.{name}: {target.centroids} was fitted for frames of "
                    f"{quantizer.settings.grid.frame_rate:g} Hz at "
                    f"{quantizer.settings.sample_rate} Hz audio, but the model has "
                    f"{config.model.grid.frame_rate:g} Hz at {config.model.sample_rate} Hz. Fit it "
                    "anew with launch/cluster.py."
                )
            quantizers[name] = quantizer
    return quantizers


def _micro_batch(config: Config, ranks: int, device: str) -> int:
    total = config.train.global_batch
    if total % ranks:
        raise ConfigError(
            f"train.global_batch ({total}) must be divisible by the number of ranks ({ranks}): "
            f"take {total - total % ranks or ranks} or {total + ranks - total % ranks}."
        )
    per_rank = total // ranks
    chosen = config.train.micro_batch
    if chosen == "auto":
        # Largest divisor that memory should hold; a multiple of the mixture's group if possible.
        limit = _AUTO_MICRO_BATCH[device]
        divisors = [n for n in range(1, per_rank + 1) if per_rank % n == 0 and n <= limit]
        group = config.objective.mixture.group if config.objective.mixture.prob else 1
        return max(divisors, key=lambda n: (n % group == 0, n))
    if per_rank % chosen:
        raise ConfigError(
            f"train.global_batch ({total}) over {ranks} ranks is {per_rank} crops, which "
            f"train.micro_batch ({chosen}) must divide: take a global batch of "
            f"{max(1, per_rank // chosen) * chosen * ranks}, or another micro-batch."
        )
    return chosen


def _valid_plan(corpus: Corpus, plan: "partial[CropPlan]", ranks: int) -> CropPlan | None:
    try:
        valid = plan(corpus.split("valid"))
    except InputError:
        # No held-out clip is long enough: training goes on, and a note says what is missing.
        return None
    return valid if len(valid.clips) >= ranks else None


def _notes(config: Config, train: CropPlan, valid: CropPlan | None, share: BatchShare) -> list[str]:
    notes = []
    if config.schedule_steps <= config.optim.warmup_steps:
        notes.append(
            f"the warm-up ({config.optim.warmup_steps} updates) is as long as the run or longer: "
            "the learning rate never reaches its peak."
        )
    if train.too_short:
        notes.append(
            f"{train.too_short} of {len(train.split)} training clips are shorter than a crop of "
            f"{config.data.crop_seconds:g} s and are left out."
        )
    if valid is None:
        notes.append("there are fewer held-out clips as long as a crop than ranks: no validation.")
    mixture = config.objective.mixture
    if mixture.prob and share.micro_batch % mixture.group:
        notes.append(
            f"the in-batch mixture is off: its group ({mixture.group} crops) does not divide the "
            f"micro-batch ({share.micro_batch})."
        )
    return notes
