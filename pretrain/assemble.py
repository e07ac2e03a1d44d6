"""Config and checked inputs to running parts: the one screen where everything meets."""

from collections.abc import Iterator
from functools import partial
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from etude.data.pipeline import held_out_batches, training_batches
from etude.data.plan import BatchShare, Plan
from etude.models.encoder import Encoder
from etude.models.spectral import ConstantQ
from etude.pretrain.augment import mix_in_batch
from etude.pretrain.compiling import ReportCompiling
from etude.pretrain.config import (
    CodecTargetConfig,
    Config,
    CqtTargetConfig,
    KmeansTargetConfig,
    TargetConfig,
    TeacherTargetConfig,
)
from etude.pretrain.config_types import FurtherTargetConfig
from etude.pretrain.decoder import ConvDecoder
from etude.pretrain.deepspeed_settings import deepspeed_settings
from etude.pretrain.distributed import World, sum_over_ranks
from etude.pretrain.engine import Engine, move
from etude.pretrain.flops import crop_flops
from etude.pretrain.health import Health, StopAtCollapse
from etude.pretrain.hooks import (
    Hook,
    MetricsFile,
    Progress,
    SaveCheckpoints,
    Validate,
    WarnOfWaiting,
)
from etude.pretrain.incidents import Incidents
from etude.pretrain.inputs import Inputs
from etude.pretrain.masked_prediction import MaskedPrediction, Mixture
from etude.pretrain.metrics import MetricSums
from etude.pretrain.numerics import Skips
from etude.pretrain.peak import total_peak
from etude.pretrain.probing.hook import Probes
from etude.pretrain.profiling import Profile
from etude.pretrain.random import derive
from etude.pretrain.run_folder import RunFolder
from etude.pretrain.run_state import RunState
from etude.pretrain.schedules import Schedule, ramp, tri_stage, warmup_linear
from etude.pretrain.stop import StopRequest
from etude.pretrain.targets.base import Target
from etude.pretrain.targets.codec import CodecTarget, Decoder
from etude.pretrain.targets.cqt import CqtTarget
from etude.pretrain.targets.kmeans import KmeansTarget
from etude.pretrain.targets.teacher import TeacherTarget
from etude.pretrain.trainer import Trainer
from etude.pretrain.watchdog import Watchdog

_MOST_WAITING = 0.02
"""Share of the time that ranks may wait for data without a word."""


def build_objective(config: Config, inputs: Inputs) -> MaskedPrediction:
    """Encoder, targets and objective, initialised from the seed alone."""
    torch.manual_seed(config.seed)
    encoder = Encoder(config.model)
    if inputs.start is not None:
        # Before the targets: a teacher starts as a copy.
        encoder.load_state_dict(inputs.start.state)
    return MaskedPrediction(
        encoder,
        {
            name: _build_target(name, target, config, inputs, encoder)
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
        views=config.objective.views,
        decoder=_build_decoder(config),
    )


def hours_per_update(config: Config) -> float:
    """Audio that one update hears, in hours."""
    return config.train.global_batch * config.data.crop_seconds / 3600


def build_engine(objective: nn.Module, config: Config, world: World, share: BatchShare) -> Engine:
    """The engine that ``train.engine`` names."""
    if config.train.engine == "ddp":
        from etude.pretrain.engine_ddp import DdpEngine

        return DdpEngine(objective, config, world, micro_batches=share.micro_batches)
    # Imported here, because importing DeepSpeed takes seconds that `--dry-run` need not wait.
    from etude.pretrain.engine_deepspeed import DeepSpeedEngine

    settings = deepspeed_settings(config, micro_batch=share.micro_batch, ranks=share.ranks)
    return DeepSpeedEngine(objective, config, settings, world)


def build_trainer(
    config: Config,
    inputs: Inputs,
    world: World,
    folder: RunFolder,
    *,
    state: RunState,
    engine: Engine,
    objective: MaskedPrediction,
    saver: SaveCheckpoints,
    stop: StopRequest,
    watchdog: Watchdog,
) -> Trainer:
    """What trains from ``state`` on."""
    global_batch = config.train.global_batch
    return Trainer(
        engine=engine,
        objective=objective,
        batches=training_batches(
            inputs.train,
            inputs.share,
            first_update=state.step + state.passed_over,
            workers=config.data.workers,
            pin_memory=world.device.type == "cuda",
            stock=config.data.reader == "webdataset",
        ),
        schedule=_build_schedule(config),
        hooks=_hooks(config, inputs, engine, objective, saver, world, folder, stop, watchdog),
        saver=saver,
        stop=stop,
        watchdog=watchdog,
        incidents=Incidents(
            folder.incidents if world.is_main else None,
            partial(_crops_of, inputs, global_batch, config.data.reader),
        ),
        skips=Skips(limit=config.train.max_skipped_updates, window=config.train.skip_window),
        seed=config.seed,
        rank=world.rank,
        state=state,
        max_steps=config.train.max_steps,
        micro_batches=inputs.share.micro_batches,
        global_batch=global_batch,
        log_every=config.logging.every_steps,
        hours_per_update=hours_per_update(config),
        epochs=partial(_epochs, inputs, global_batch),
        utilisation=partial(_utilisation, _flops(config, inputs), total_peak(config, world)),
        max_skipped_fraction=config.data.max_skipped_fraction,
        spike_sigma=config.health.spike_sigma,
    )


def _crops_of(inputs: Inputs, global_batch: int, reader: str, update: int) -> list[dict[str, Any]]:
    """The planned crops of an update; webdataset's reader follows no plan."""
    if reader == "webdataset":
        return []
    crops = []
    for position in range(update * global_batch, (update + 1) * global_batch):
        planned = inputs.train.crop(position)
        part = inputs.train.parts[planned.part]
        shard, row = part.split.place(planned.clip)
        seconds = planned.start / part.split.corpus.sample_rate
        crops.append({"shard": shard, "clip": row, "start_seconds": seconds})
    return crops


def _epochs(inputs: Inputs, global_batch: int, step: int) -> dict[str, float]:
    """How often each corpus has been heard after ``step`` updates."""
    heard = inputs.train.epochs(step * global_batch)
    if len(heard) == 1:
        return {"data/epochs": heard[0]}
    return {f"data/{name}/epochs": n for name, n in zip(inputs.names, heard, strict=True)}


def _flops(config: Config, inputs: Inputs) -> float:
    """Of one crop."""
    return crop_flops(
        config.model, config.objective, samples=config.crop_samples, classes=inputs.classes
    ).total


def _utilisation(flops: float, peak: float | None, crops_per_second: float) -> dict[str, float]:
    return {} if peak is None else {"perf/mfu": crops_per_second * flops / peak}


def _hooks(
    config: Config,
    inputs: Inputs,
    engine: Engine,
    objective: MaskedPrediction,
    saver: SaveCheckpoints,
    world: World,
    folder: RunFolder,
    stop: StopRequest,
    watchdog: Watchdog,
) -> list[Hook]:
    hooks: list[Hook] = []
    health, last = config.health, config.train.max_steps
    if inputs.valid is not None:
        measure = partial(
            _validate, engine, inputs.valid, config.data.max_valid_crops, inputs.share, watchdog
        )
        every = config.logging.valid_every_steps
        hooks.append(Validate(measure, every=every, max_steps=last))
        if health.every_steps:
            inspect = partial(
                _inspect, objective, inputs.valid, health.crops, inputs.share, world.device
            )
            hooks.append(Health(inspect, every=health.every_steps, max_steps=last))
    if world.is_main:
        events = folder.tensorboard if config.logging.tensorboard else None
        metrics = MetricsFile(folder.metrics, events)
        hooks.append(metrics)
        if config.logging.look_every_steps and inputs.valid is not None:
            hooks.append(_look(config, inputs.valid, objective, world, folder, metrics, watchdog))
        if config.probe.every_steps:
            hooks.append(
                Probes(
                    config.probe,
                    folder,
                    objective.encoder,
                    metrics,
                    beat=partial(watchdog.at, "waiting for a probe"),
                    stopping=lambda: stop.reason is not None,
                )
            )
        hooks.append(Progress(last, config.train.global_batch))
        if config.train.profile:
            hooks.append(Profile(folder.profile, objective, world.device))
        if world.device.type == "cuda":  # on a CPU, loading and training share the cores
            hooks.append(WarnOfWaiting(_MOST_WAITING))
        if config.train.compiles_on(world.device.type):
            hooks.append(ReportCompiling())
    limits = {"target_std": health.min_target_std, "prediction_std": health.min_prediction_std}
    hooks.append(StopAtCollapse(limits, after_steps=health.after_steps, saver=saver))
    return hooks


def _look(
    config: Config,
    valid: Plan,
    objective: MaskedPrediction,
    world: World,
    folder: RunFolder,
    metrics: MetricsFile,
    watchdog: Watchdog,
) -> Hook:
    # Imported here: matplotlib, which most runs do without.
    from etude.pretrain.looks.hook import Look
    from etude.pretrain.looks.judging import judge

    logging = config.logging
    judged = partial(
        judge,
        objective,
        valid,
        crops=logging.look_crops,
        device=world.device,
        beat=partial(watchdog.at, "looking"),
    )
    return Look(
        judged,
        objective,
        folder,
        metrics,
        every=logging.look_every_steps,
        shown=logging.look_shown,
        max_steps=config.train.max_steps,
    )


def _validate(
    engine: Engine, plan: Plan, crops: int, share: BatchShare, watchdog: Watchdog
) -> dict[str, float]:
    sums = MetricSums()
    for batch in held_out_batches(
        plan, crops=crops, micro_batch=share.micro_batch, rank=share.rank, ranks=share.ranks
    ):
        watchdog.at("validation")
        sums.add(engine.evaluate(batch).metrics)
    sums.replace(sum_over_ranks(sums.tensors()))
    return sums.results()


def _inspect(
    objective: MaskedPrediction, plan: Plan, crops: int, share: BatchShare, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Features of the first held-out crops: conv, the first, middle and last layer, the targets.

    Every rank looks at all of them: they are few, and a sum over ranks would need matrices.
    """
    objective.eval()
    layers = len(objective.encoder.layers)
    hidden = {f"layer{i}" for i in range(layers + 1)} - {
        f"layer{i}" for i in (0, layers // 2, layers)
    }
    for batch in held_out_batches(
        plan, crops=crops, micro_batch=share.micro_batch, rank=0, ranks=1
    ):
        features = objective.inspect(move(batch, device))
        shown = {name: value for name, value in features.items() if name not in hidden}
        if batch.num_samples is None:
            yield shown
            continue
        for row, samples in enumerate(batch.num_samples.tolist()):  # without the padding
            count = objective.encoder.grid.num_frames(samples)
            yield {name: value[row : row + 1, :count] for name, value in shown.items()}


def _build_target(
    name: str, target: TargetConfig, config: Config, inputs: Inputs, encoder: Encoder
) -> Target:
    match target:
        case KmeansTargetConfig():
            return KmeansTarget(
                inputs.quantizers[name],
                config.model.dim,
                final_dim=target.final_dim,
                temperature=target.temperature,
            )
        case CodecTargetConfig():
            stored = target.codec if target.source == "stored" else None
            return CodecTarget(
                config.model.dim,
                codebooks=target.codebooks,
                codebook_size=inputs.classes[name],
                final_dim=target.final_dim,
                temperature=target.temperature,
                stored=stored,
                tokenizer=None if stored else inputs.codecs[name],
                decoder=_build_decoder_of_tokens(target, config),
            )
        case CqtTargetConfig():
            transform = ConstantQ(
                config.model.grid,
                bins=target.bins,
                bins_per_octave=target.bins_per_octave,
                fmin=target.fmin,
                scale=target.scale,
                level=target.level,
                algorithm=target.algorithm,
            )
            return CqtTarget(transform, config.model.dim, bins=target.bins)
        case TeacherTargetConfig():
            return TeacherTarget(
                encoder,
                top_layers=target.top_layers,
                feature=target.feature,
                norm=target.layer_norm,
                decay=ramp(target.decay, target.end_decay, steps=target.anneal_steps),
                average_positions=target.positions == "averaged",
                predictor_dim=target.predictor_dim,
                distance=target.distance,
                pooled=target.pooled,
                hears_clean=target.input == "clean",
                sees_other_view=target.view == "other",
            )
        case FurtherTargetConfig():
            return target.build(config.model, seed=derive(config.seed, "target", name))
        case _:
            assert_never(target)


def _build_decoder_of_tokens(target: CodecTargetConfig, config: Config) -> Decoder | None:
    if target.weights is None or not config.logging.look_every_steps:
        return None
    # Imported here: a run on stored tokens needs no codec.
    from etude.pretrain.codec_decoder import TokenDecoder

    return TokenDecoder(target.weights)


def _build_decoder(config: Config) -> ConvDecoder | None:
    decoder = config.objective.decoder
    if decoder is None:
        return None
    return ConvDecoder(
        config.model.dim,
        inner=decoder.dim,
        layers=decoder.layers,
        kernel=decoder.kernel,
        groups=decoder.groups,
    )


def _build_schedule(config: Config) -> Schedule:
    optim = config.optim
    if optim.schedule == "tri_stage":
        assert optim.hold_steps is not None
        return tri_stage(
            optim.lr,
            warmup_steps=optim.warmup_steps,
            hold_steps=optim.hold_steps,
            schedule_steps=config.schedule_steps,
        )
    return warmup_linear(
        optim.lr, warmup_steps=optim.warmup_steps, schedule_steps=config.schedule_steps
    )


def _build_mixture(config: Config, micro_batch: int) -> Mixture | None:
    mixture = config.objective.mixture
    if not mixture.prob:
        return None
    if micro_batch % mixture.group:
        return _not_mixed
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


def _not_mixed(waveform: Tensor, sample_ids: Tensor) -> Tensor:
    """Where the group does not divide the micro-batch: `mixture/mixed` is logged, and is 0."""
    return waveform
