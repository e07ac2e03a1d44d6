"""What a run reads, opened and checked: whatever can be wrong is found before a model is built."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from etude.data.errors import InputError
from etude.data.mix import MixedPlan
from etude.data.place import is_url
from etude.data.plan import BatchShare, CropPlan, Plan
from etude.data.shards import Corpus, open_corpus
from etude.data.tokens import Tokens, open_tokens
from etude.models.frames import FrameGrid
from etude.pretrain.config import CodecTargetConfig, Config, KmeansTargetConfig
from etude.pretrain.config_types import FurtherTargetConfig
from etude.pretrain.deepspeed_settings import deepspeed_settings, zero_settings
from etude.pretrain.distributed import ranks_on_this_node
from etude.pretrain.errors import ConfigError
from etude.pretrain.memory import (
    Device,
    count_parameters,
    estimate_memory,
    find_device,
    most_crops,
    stage_of,
)
from etude.pretrain.quantizer import FeatureQuantizer, load_quantizer
from etude.pretrain.starting import Start, load_start

if TYPE_CHECKING:
    from etude.pretrain.codec import Codec

_REMOTE_BLOCK = 16
"""``data.block_shards`` of a corpus at a URL, if not given."""


@dataclass(frozen=True)
class Inputs:
    """What a run reads, opened and checked."""

    corpora: tuple[Corpus, ...]
    """In the order of ``data.corpus``."""
    train: Plan
    valid: Plan | None
    quantizers: dict[str, FeatureQuantizer]
    tokens: tuple[dict[str, Tokens], ...]
    """Of each corpus, stored tokens by the codec's name."""
    codecs: "dict[str, Codec]"
    """Codecs whose weights were given, by the target's name."""
    classes: dict[str, int]
    """Classes (per codebook) of each target that has any, by the target's name."""
    share: BatchShare
    choice: str
    """The micro-batch, and why this one."""
    start: Start | None
    """The weights of ``init_from``."""
    notes: tuple[str, ...]
    """Things that are odd but not wrong."""

    @property
    def fingerprint(self) -> str:
        """What the order of a run depends on, beside its settings."""
        return "+".join(corpus.fingerprint for corpus in self.corpora)

    @property
    def names(self) -> list[str]:
        """A short name for each corpus: that of its folder, numbered where two are the same."""
        names: list[str] = []
        for corpus in self.corpora:
            name = corpus.place.rstrip("/").rpartition("/")[2] or corpus.place
            same = sum(other.partition("~")[0] == name for other in names)
            names.append(f"{name}~{same + 1}" if same else name)
        return names


def check_inputs(config: Config, *, rank: int, ranks: int, device: str) -> Inputs:
    """Opens the corpus and label files and checks that all fits together.

    :raises ConfigError: if settings and inputs contradict each other.
    :raises InputError: if the corpus is missing or has no clip as long as a crop.
    """
    chosen = _check_batch(config, ranks)
    zero_settings(config)
    corpora = tuple(_open(config, given.corpus) for given in config.data.corpora)
    start = None if config.init_from is None else load_start(config.init_from, config.model)
    quantizers = _load_quantizers(config)
    _check_further(config)
    codecs = _load_codecs(config)
    tokens = tuple(_open_tokens(config, corpus, codecs) for corpus in corpora)
    _check_same_codec(tokens)
    train = _train_plan(config, corpora, tokens)
    valid = _valid_plan(config, corpora, tokens, ranks)
    classes = _classes(config, quantizers, tokens, codecs)
    choice = "stated: train.micro_batch"
    if chosen is None:
        memory = find_device(config, device, ranks_here=ranks_on_this_node(ranks))
        chosen, choice = choose_micro_batch(config, classes, ranks=ranks, device=memory)
    deepspeed_settings(config, micro_batch=chosen, ranks=ranks)
    share = BatchShare(config.train.global_batch, chosen, rank, ranks)
    return Inputs(
        corpora=corpora,
        train=train,
        valid=valid,
        quantizers=quantizers,
        tokens=tokens,
        codecs=codecs,
        classes=classes,
        share=share,
        choice=choice,
        start=start,
        notes=(
            *_notes(config, train, valid, share, quantizers),
            *(start.account if start is not None else ()),
        ),
    )


def _load_quantizers(config: Config) -> dict[str, FeatureQuantizer]:
    quantizers = {}
    for name, target in config.objective.targets.items():
        if isinstance(target, KmeansTargetConfig):
            path = config.centroids(name)
            quantizer = load_quantizer(path)
            if quantizer.stages is not None:
                raise ConfigError(
                    f"objective.targets.{name}: {path} is a residual quantiser, which a target of "
                    "kind mel_rvq learns. Fit k-means labels by launch/cluster.py without --stages."
                )
            if quantizer.settings.grid != config.model.grid:
                raise ConfigError(
                    f"objective.targets.{name}: {path} was fitted for frames of "
                    f"{_describe_grid(quantizer.settings.grid)}, but the model has "
                    f"{_describe_grid(config.model.grid)}. Fit it anew with `launch/cluster.py "
                    "--config` of this run."
                )
            quantizers[name] = quantizer
    return quantizers


def _check_further(config: Config) -> None:
    for name, target in config.objective.targets.items():
        if isinstance(target, FurtherTargetConfig):
            try:
                target.check(config.model)
            except ConfigError as error:
                raise ConfigError(f"objective.targets.{name}: {error}") from error


def _describe_grid(grid: FrameGrid) -> str:
    return (
        f"{grid.frame_rate:g} Hz at {grid.sample_rate} Hz audio (convolutions of "
        f"{tuple(grid.kernels)} by {tuple(grid.strides)})"
    )


def _check_batch(config: Config, ranks: int) -> int | None:
    """The micro-batch that is given, if it is."""
    total = config.train.global_batch
    if total % ranks:
        raise ConfigError(
            f"train.global_batch ({total}) must be divisible by the number of ranks ({ranks}): "
            f"take {total - total % ranks or ranks} or {total + ranks - total % ranks}."
        )
    per_rank = total // ranks
    chosen = config.train.micro_batch
    if chosen == "auto":
        return None
    if per_rank % chosen:
        raise ConfigError(
            f"train.global_batch ({total}) over {ranks} ranks is {per_rank} crops, which "
            f"train.micro_batch ({chosen}) must divide: take a global batch of "
            f"{max(1, per_rank // chosen) * chosen * ranks}, or another micro-batch."
        )
    return chosen


def choose_micro_batch(
    config: Config, classes: dict[str, int], *, ranks: int, device: Device
) -> tuple[int, str]:
    """The most crops that memory should hold, of those that divide a rank's share of the batch.

    A multiple of the mixture's group where there is one, since a mixture that memory switches off
    would be another method.

    :returns: the micro-batch, and why this one.
    :raises ConfigError: if not even the fewest fit.
    """
    per_rank = config.train.global_batch // ranks
    divisors = [n for n in range(1, per_rank + 1) if per_rank % n == 0]
    group = config.objective.mixture.group if config.objective.mixture.prob else 1
    candidates = [n for n in divisors if n % group == 0] or divisors
    parameters = count_parameters(config, classes)

    def needed(crops: int) -> float:
        return estimate_memory(
            config,
            parameters,
            micro_batch=crops,
            ranks=ranks,
            stage=stage_of(config),
            device=device.kind,
        ).total

    fitting = [n for n in candidates if needed(n) <= device.usable]
    if not fitting:
        fewest = candidates[0]
        reason = f" (objective.mixture.group is {group})" if fewest > 1 else ""
        raise ConfigError(
            f"train.micro_batch: auto finds no room: {fewest} crop{'s' if fewest > 1 else ''} of "
            f"{config.data.crop_seconds:g} s{reason} would take about "
            f"{needed(fewest) / 1e9:.1f} GB on each rank, but {device} are "
            f"{device.usable / 1e9:.1f} GB. Take shorter crops, a smaller model or ZeRO stage 1 "
            "(deepspeed.zero_optimization.stage), or give train.micro_batch if you know better."
        )
    most, limit = most_crops(config, device.kind)
    chosen = max([n for n in fitting if n <= most] or fitting[:1])
    size = f"about {needed(chosen) / 1e9:.1f} GB of {device}"
    larger = [n for n in candidates if n > chosen]
    if not larger:
        why = f"all that {ranks} rank{'s' if ranks > 1 else ''} share out"
    elif larger[0] > most:
        why = limit
    else:
        why = f"{larger[0]} would need {needed(larger[0]) / 1e9:.1f} GB"
    return chosen, f"auto, by estimate: {size}; {why}"


def _classes(
    config: Config,
    quantizers: dict[str, FeatureQuantizer],
    tokens: Sequence[dict[str, Tokens]],
    codecs: "dict[str, Codec]",
) -> dict[str, int]:
    classes = {name: quantizer.num_classes for name, quantizer in quantizers.items()}
    for name, target in config.objective.targets.items():
        if isinstance(target, CodecTargetConfig):
            stored = target.source == "stored"
            classes[name] = (
                tokens[0][target.codec].settings.codebook_size
                if stored
                else codecs[name].codebook_size
            )
    return classes


def _open(config: Config, place: str) -> Corpus:
    if is_url(place):
        # Imported here: with its clients for stores, which a folder does not need.
        from etude.data.remote import Cache, open_remote

        cache = Cache(config.data.cache.expanduser(), round(config.data.cache_gb * 1e9))
        corpus = open_remote(place.rstrip("/"), cache)
    else:
        corpus = open_corpus(Path(place))
    if corpus.sample_rate != config.model.sample_rate:
        raise ConfigError(
            f"the corpus {place} has {corpus.sample_rate} Hz, but model.sample_rate is "
            f"{config.model.sample_rate}. Prepare it with `--sample-rate "
            f"{config.model.sample_rate}`, or set model.sample_rate={corpus.sample_rate}."
        )
    return corpus


def _plan(config: Config, corpus: Corpus, tokens: dict[str, Tokens], split: str) -> CropPlan:
    blocks = config.data.block_shards
    if blocks is None:
        blocks = 0 if corpus.store is None else _REMOTE_BLOCK
    return CropPlan(
        corpus.split(split),
        crop_samples=config.crop_samples,
        hop_samples=config.model.grid.hop_samples,
        seed=config.seed,
        tokens={name: opened.split(split) for name, opened in tokens.items()},
        min_samples=config.min_clip_samples,
        crops_per_clip=config.data.crops_per_clip,
        block_shards=blocks,
    )


def _train_plan(
    config: Config, corpora: Sequence[Corpus], tokens: Sequence[dict[str, Tokens]]
) -> Plan:
    parts = [
        _plan(config, corpus, opened, "train")
        for corpus, opened in zip(corpora, tokens, strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    shares = [given.weight for given in config.data.corpora]
    if config.data.weighting == "hours":
        shares = [weight * part.seconds for weight, part in zip(shares, parts, strict=True)]
    return MixedPlan(parts, shares, seed=config.seed)


def _valid_plan(
    config: Config, corpora: Sequence[Corpus], tokens: Sequence[dict[str, Tokens]], ranks: int
) -> Plan | None:
    parts = []
    for corpus, opened in zip(corpora, tokens, strict=True):
        try:
            parts.append(_plan(config, corpus, opened, "valid"))
        except InputError:
            # No held-out clip is long enough: training goes on, and a note says what is missing.
            continue
    # A rank without a crop would have nothing to add to the sum that the others wait for.
    if min(sum(len(part.clips) for part in parts), config.data.max_valid_crops) < ranks:
        return None
    return parts[0] if len(parts) == 1 else MixedPlan(parts, [1.0] * len(parts), seed=config.seed)


def _check_same_codec(tokens: Sequence[dict[str, Tokens]]) -> None:
    for opened in tokens[1:]:
        for name, one in tokens[0].items():
            if opened[name].settings != one.settings:
                raise ConfigError(
                    f"the tokens {name!r} of several corpora must come from the same codec and "
                    f"weights, but those of {opened[name].root} differ from {one.root}'s "
                    f"({opened[name].settings} and {one.settings}). Encode one of them again."
                )


def _load_codecs(config: Config) -> "dict[str, Codec]":
    given = {
        name: target
        for name, target in config.objective.targets.items()
        if isinstance(target, CodecTargetConfig) and target.weights is not None
    }
    if not given:
        return {}
    # Imported here: a run on stored tokens needs no codec.
    from etude.pretrain.codec import load_codec

    codecs = {}
    for name, target in given.items():
        assert target.weights is not None
        codec = load_codec(target.weights, kind=target.codec)
        _check_frames(config, name, target, codec.sample_rate, codec.hop_samples)
        if target.codebooks > codec.num_codebooks:
            raise ConfigError(
                f"objective.targets.{name}.codebooks is {target.codebooks}, but {target.codec} "
                f"makes {codec.num_codebooks}."
            )
        codecs[name] = codec
    return codecs


def _open_tokens(config: Config, corpus: Corpus, codecs: "dict[str, Codec]") -> dict[str, Tokens]:
    opened: dict[str, Tokens] = {}
    for name, target in config.objective.targets.items():
        if not isinstance(target, CodecTargetConfig) or target.source != "stored":
            continue
        tokens = open_tokens(corpus, target.codec)
        settings = tokens.settings
        _check_frames(config, name, target, settings.sample_rate, settings.hop_samples)
        if target.codebooks > settings.codebooks:
            raise ConfigError(
                f"objective.targets.{name}.codebooks is {target.codebooks}, but {tokens.root} has "
                f"{settings.codebooks}."
            )
        if name in codecs and codecs[name].weights_sha256 != settings.weights_sha256:
            raise ConfigError(
                f"{tokens.root} was made by other weights ({settings.weights_sha256[:12]}) than "
                f"objective.targets.{name}.weights ({codecs[name].weights_sha256[:12]}). Give the "
                "weights it was made with, or encode the corpus again."
            )
        opened[target.codec] = tokens
    return opened


def _check_frames(
    config: Config, name: str, target: CodecTargetConfig, sample_rate: int, hop_samples: int
) -> None:
    grid = config.model.grid
    if (sample_rate, hop_samples) != (grid.sample_rate, grid.hop_samples):
        raise ConfigError(
            f"objective.targets.{name}: {target.codec} makes a frame of {hop_samples} samples at "
            f"{sample_rate} Hz, but the model one of every {grid.hop_samples} at "
            f"{grid.sample_rate} Hz: they must be the same."
        )


def _notes(
    config: Config,
    train: Plan,
    valid: Plan | None,
    share: BatchShare,
    quantizers: dict[str, FeatureQuantizer],
) -> list[str]:
    notes = []
    fingerprints = {part.split.corpus.fingerprint for part in train.parts}
    for name, quantizer in quantizers.items():
        if quantizer.corpus is not None and {quantizer.corpus} != fingerprints:
            notes.append(
                f"the classes of objective.targets.{name} were fitted to another corpus: they may "
                "be used unevenly on this one."
            )
    if config.train.max_steps <= config.optim.warmup_steps:
        notes.append(
            f"the warm-up ({config.optim.warmup_steps} updates) is as long as the run "
            f"({config.train.max_steps}) or longer: the learning rate never reaches its peak."
        )
    for part in train.parts:
        if part.too_short:
            notes.append(
                f"{part.too_short} of {len(part.split)} training clips of "
                f"{part.split.corpus.place} are shorter than "
                f"{config.min_clip_samples / config.model.sample_rate:g} s and are left out."
            )
    if valid is None:
        looks = (
            " and no looks (logging.look_every_steps)" if config.logging.look_every_steps else ""
        )
        notes.append(f"there are fewer held-out crops than ranks: no validation{looks}.")
    mixture = config.objective.mixture
    if mixture.prob and share.micro_batch % mixture.group:
        notes.append(
            f"the in-batch mixture is off: its group ({mixture.group} crops) does not divide the "
            f"micro-batch ({share.micro_batch})."
        )
    return notes
