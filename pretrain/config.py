"""The settings of a whole run: one typed tree, read before anything heavy is imported (no torch).

A YAML file may name another as ``base:`` and give only what differs; ``key.path=value`` on the
command line overrides both. Unknown keys, wrong types and impossible combinations end here, with
the nearest existing key and where the value came from.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from etude.data.place import is_url
from etude.models.config import EncoderConfig
from etude.pretrain.config_data import DataConfig
from etude.pretrain.config_probe import ProbeConfig
from etude.pretrain.config_types import (
    Count,
    Decay,
    Fraction,
    FurtherTargetConfig,
    Natural,
    NonNegative,
    Positive,
    Section,
)


class RunConfig(Section):
    """Where a run lives."""

    dir: Path
    """Folder of the run: config, metrics, checkpoints. The same folder again continues the run."""


class KmeansTargetConfig(Section):
    """K-means labels of spectral features (MERT-v0)."""

    kind: Literal["kmeans"]

    weight: Positive = 1.0
    """Factor of this target's cross-entropy."""

    centroids: Path | None = None
    """File written by ``launch/cluster.py``; if not given, ``CORPUS/kmeans-NAME.safetensors`` in
    the first corpus."""

    final_dim: Count = 256
    """Width in which logits are compared (HuBERT base 256)."""

    temperature: Positive = 0.1
    """Divides the cosine (fairseq's ``logit_temp``)."""


class CodecTargetConfig(Section):
    """Tokens of a neural audio codec, all codebooks at once (MERT-v1)."""

    kind: Literal["codec"]

    weight: Positive = 1.0
    """Factor of the cross-entropy, which is summed over codebooks."""

    codec: Literal["encodec_24khz"] = "encodec_24khz"
    """Which codec; stored tokens lie in ``CORPUS/targets/CODEC``."""

    codebooks: Annotated[int, Field(ge=1, le=32)] = 8
    """Codebooks predicted, from the coarsest on (8: 6 kbit/s)."""

    source: Literal["stored", "online"] = "stored"
    """``stored``: made by ``launch/encode.py`` from whole tracks; ``online``: each crop is encoded
    in training, which costs time and differs from stored tokens near a crop's start."""

    weights: Path | None = None
    """The codec's weights. Needed ``online``; with stored tokens they are checked against them."""

    final_dim: Count = 64
    """Width per codebook in which logits are compared (MERT 95M 64, 330M 128)."""

    temperature: Positive = 0.1
    """Divides the cosine (fairseq's ``logit_temp``)."""


class CqtTargetConfig(Section):
    """Regression of the constant-Q spectrum. Defaults are the published settings."""

    kind: Literal["cqt"]

    weight: Positive = 1.0
    """Factor of the mean squared error."""

    bins: Count = 336
    """Frequency bins."""

    bins_per_octave: Count = 48
    """Bins per octave."""

    fmin: Positive = 32.7
    """Lowest frequency in hertz (C1)."""

    scale: Literal["linear", "log"] = "linear"
    """``linear`` magnitude as published, or ``log``: log(1 + 100 m), less ruled by loud clips."""

    level: Literal["as_is", "crop"] = "as_is"
    """``as_is`` as published, or ``crop``: each crop's spectrum is brought to mean 0 and deviation
    1, since the front end's group norm hides the level from the encoder anyway."""

    algorithm: Literal["fft", "CQT1992v2", "CQT2010v2"] = "fft"
    """``fft``: the published ``CQT1992v2`` of nnAudio, computed another way and equal to 2e-6
    (relative L2); nnAudio's class itself; or its less exact ``CQT2010v2`` (docs/cqt.md)."""


class TeacherTargetConfig(Section):
    """Regression of an EMA teacher's layers. Defaults are music2vec's (data2vec's, for audio)."""

    kind: Literal["teacher"]

    weight: Positive = 1.0
    """Factor of the distance."""

    top_layers: Count = 8
    """Layers of the teacher that are averaged, from the last one down."""

    feature: Literal["ffn", "hidden"] = "ffn"
    """``ffn``: what a layer's feed-forward block adds; ``hidden``: what the layer puts out."""

    layer_norm: Literal["instance", "layer", "none"] = "instance"
    """Of each layer before averaging: over time per dimension, over dimensions per frame, none."""

    decay: Fraction = 0.999
    """Decay of the average at first."""

    end_decay: Fraction = 0.9999
    """Decay after ``anneal_steps``."""

    anneal_steps: Natural = 30_000
    """Updates over which the decay moves linearly."""

    positions: Literal["copied", "averaged"] = "copied"
    """Whether the teacher's positional convolutions are the student's (fairseq's
    ``ema_layers_only``) or averaged like the layers."""

    input: Literal["heard", "clean"] = "heard"
    """Where a mixture is on: whether the teacher, too, hears it, or the clean crop, which costs a
    second pass of the front end."""

    view: Literal["whole", "other"] = "whole"
    """What the teacher sees: the whole crop, or another masked view of it (BYOL; needs
    ``objective.views`` of 2 or more)."""

    predictor_dim: Natural = 0
    """Inner width of a predictor with one hidden layer (BYOL); 0 is one linear layer (data2vec)."""

    distance: Literal["mse", "cosine"] = "mse"
    """``mse``: squares summed over dimensions, over sqrt(dim); ``cosine``: 2 - 2 cos (BYOL)."""

    pooled: bool = False
    """Whether the means over all frames of a crop are compared instead of masked frames; then
    ``objective.visible_weight`` has nothing to act on."""


KnownTargetConfig = KmeansTargetConfig | CodecTargetConfig | CqtTargetConfig | TeacherTargetConfig

if TYPE_CHECKING:
    TargetConfig = KnownTargetConfig | FurtherTargetConfig
else:
    # Of further targets, those that a file names are added when it is read (``config_file.py``).
    TargetConfig = Annotated[KnownTargetConfig, Field(discriminator="kind")]


class MaskConfig(Section):
    """Which frames are hidden."""

    prob: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """Number of span starts times span length over frames; spans overlap, so fewer are masked."""

    span_frames: Count = 5
    """Frames per masked span (5 frames = 67 ms at 75 Hz)."""

    fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Masked share of the frames, instead of the one that ``prob`` gives (58 % for .8 and 5)."""


class MixtureConfig(Section):
    """In-batch mixture: excerpts of other crops on the input, never on the targets."""

    prob: Fraction = 0.0
    """Probability that a crop is mixed (MERT-v1 .5)."""

    group: Annotated[int, Field(ge=2)] = 8
    """Consecutive crops of the global batch that share a pool; must divide the micro-batch."""

    min_seconds: Positive = 0.5
    """Shortest excerpt."""

    max_seconds: Positive = 1.0
    """Longest excerpt (MERT 95M 1.0, 330M 1.5)."""

    max_excerpts: Count = 3
    """Most excerpts per crop; their number is uniform from 1."""

    gain: Positive = 1.0
    """Factor on the excerpts."""


class DecoderConfig(Section):
    """Convolutions that fill in the frames an encoder skipped. Defaults: data2vec 2.0, audio."""

    layers: Count = 4
    """Convolutions."""

    dim: Count = 384
    """Their width."""

    kernel: Count = 7
    """Frames seen by each; odd."""

    groups: Count = 16
    """Groups of each; must divide ``dim``."""

    @model_validator(mode="after")
    def _check(self) -> "DecoderConfig":
        if self.dim % self.groups:
            raise ValueError(f"groups ({self.groups}) must divide dim ({self.dim})")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, but is {self.kernel}")
        return self


class ObjectiveConfig(Section):
    """Masked prediction of one or more targets."""

    targets: Annotated[dict[str, TargetConfig], Field(min_length=1)]
    """Name to target; the name is the prefix of its metrics."""

    mask: MaskConfig = MaskConfig()
    mixture: MixtureConfig = MixtureConfig()

    visible_weight: NonNegative = 0.0
    """Factor of the targets' losses on visible frames (fairseq's ``pred_nomask_weight``, MERT 0)
    where the front end can learn from every frame directly."""

    views: Count = 1
    """Ways in which each crop is masked per update; its targets are computed once and shared
    (data2vec 2.0: 8)."""

    decoder: DecoderConfig | None = None
    """Where given, the transformer's layers skip the masked frames, and convolutions fill them in
    (data2vec 2.0)."""

    feature_penalty: NonNegative = 10.0
    """Factor of the mean square of the conv features (fairseq's ``features_pen``)."""


class TrainConfig(Section):
    """How much, and on what."""

    max_steps: Count
    """Optimizer updates of this run."""

    micro_batch: Count | Literal["auto"] = "auto"
    """Crops per rank and forward pass; ``auto`` takes the largest share of the global batch that
    memory should hold, by estimate (docs/planning.md). Accumulation makes up for the rest."""

    global_batch: Count
    """Crops per update over all ranks; gradient accumulation follows from it."""

    precision: Literal["fp32", "bf16"] = "bf16"
    """``bf16``: matrix products by autocast; parameters, losses and spectra stay float32."""

    engine: Literal["deepspeed", "ddp"] = "deepspeed"
    """What drives the optimizer: DeepSpeed, or plain torch DistributedDataParallel."""

    compile: bool | Literal["auto"] = "auto"
    """Whether front end and layers go through torch.compile, which takes 10 s or more at the start
    and needs a C++ compiler or, on a GPU, Triton; without them training goes on as written.
    ``auto``: on a GPU, where it pays (docs/performance.md)."""

    cuda_graph: bool | Literal["auto"] = "auto"
    """Whether a GPU records a step at the second update and launches it as one from then on: faster
    where few crops per GPU leave it waiting for the host. ``auto`` does. Not with ``profile``; no
    effect on a CPU."""

    max_skipped_updates: Natural = 10
    """Most updates with a non-finite gradient among the last ``skip_window`` that are borne."""

    skip_window: Count = 100
    """Updates among which they are counted."""

    max_rollbacks: Natural = 1
    """How often a run with more of them goes back to the newest checkpoint from before the first
    of them and passes over the data, before it stops (status 4)."""

    hang_seconds: Positive = 600.0
    """A rank that makes no progress for so long ends the run (status 76), and says why it waits."""

    profile: bool = False
    """Whether a few updates after the first ones are recorded into ``RUN/profile/``: a trace, and
    the time that each part of an update takes (docs/planning.md)."""

    def compiles_on(self, device: str) -> bool:
        """Whether a run on ``cuda`` or ``cpu`` goes through torch.compile."""
        return device == "cuda" if self.compile == "auto" else self.compile

    def records_on(self, device: str) -> bool:
        """Whether it records its steps; not if profiled, for a profile tells their parts apart."""
        return device == "cuda" and self.cuda_graph is not False and not self.profile


class OptimConfig(Section):
    """AdamW (fairseq's ``adam`` is decoupled too, on all parameters) with warm-up and decay."""

    lr: Positive
    """Peak learning rate."""

    schedule: Literal["linear", "tri_stage"] = "linear"
    """``linear``: up, then down to 0 (MERT); ``tri_stage``: up from 1 % of the peak, held, and
    exponentially down to 1 % (music2vec)."""

    warmup_steps: Natural
    """Updates up to the peak."""

    hold_steps: Natural | None = None
    """Updates at the peak of ``tri_stage``."""

    schedule_steps: Count | None = None
    """Updates after which the schedule ends; ``train.max_steps`` if not given. A released model
    may have stopped long before."""

    betas: tuple[Decay, Decay] = (0.9, 0.98)
    eps: Positive = 1e-6
    weight_decay: NonNegative = 0.01

    clip_norm: NonNegative = 10.0
    """Largest norm of the gradient; 0 does not clip."""


class HealthConfig(Section):
    """Whether representations collapse, which no loss tells. Defaults: fairseq's data2vec."""

    every_steps: Natural = 1_000
    """Updates between looks at conv features, layers and teacher on held-out crops; 0: never."""

    crops: Count = 16
    """Held-out crops of a look."""

    min_target_std: NonNegative = 0.1
    """Training stops (status 4) where a teacher's ``target_std`` falls below; 0: never."""

    min_prediction_std: NonNegative = 0.01
    """The same of ``prediction_std``."""

    after_steps: Natural = 5_000
    """Updates before which nothing is stopped: targets of a fresh model say little."""

    spike_sigma: NonNegative = 6.0
    """Losses and gradient norms so many standard deviations above the mean of the last 128 updates
    are counted and written to ``incidents.jsonl``; 0: none."""


class CheckpointConfig(Section):
    """When to save."""

    every_steps: Count = 5_000
    """Updates between checkpoints; one is always saved at the end and when asked to stop."""

    keep: Count = 2
    """Newest checkpoints that are kept."""

    asynchronous: bool = True
    """Whether training goes on while a checkpoint is written. It waits for the copies in memory
    alone, and a kill may cost an interval and what it took to write."""


class LoggingConfig(Section):
    """What to report."""

    every_steps: Count = 100
    """Updates between lines of ``metrics.jsonl``; metrics are means over this interval."""

    valid_every_steps: Count = 1_000
    """Updates between validations; one is always made at the end."""

    look_every_steps: Natural = 0
    """Updates between looks at what is predicted of held-out crops, with pictures and sound
    (docs/looking.md); one is also made at the end; 0: never."""

    look_crops: Count = 32
    """Held-out crops that a look judges, one by one, on rank 0, while the other ranks wait."""

    look_shown: Count = 1
    """How many are shown of the first ones, of those with the highest loss and of those with the
    lowest."""

    tensorboard: bool = True
    """Whether to write TensorBoard event files beside ``metrics.jsonl``."""


class PerfConfig(Section):
    """What is known of the machine: for ``perf/mfu``, ``micro_batch: auto`` and ``--dry-run``."""

    peak_tflops: Positive | None = None
    """Matrix products of one device in ``train.precision``, in 10^12 operations per second, over
    which ``perf/mfu`` is a share. If not given, a GPU is measured at the start; on a CPU there is
    no ``perf/mfu``."""

    assumed_tflops: Positive | None = None
    """What a device is assumed to sustain in training, in 10^12 operations per second of the model:
    ``--dry-run`` predicts from it as long as the run has measured nothing."""

    device_gbytes: Positive | None = None
    """Memory of each rank's device in 10^9 bytes, instead of what is found."""

    gpus_per_node: Count = 8
    """Ranks up to which ``--dry-run`` counts with the link, and beyond which with the network."""

    link_gbytes_per_second: Positive = 300.0
    """Bytes that a rank of a node sends in an all-reduce, in 10^9 per second (NVLink of an H100:
    450 by its data sheet, of which two thirds are assumed)."""

    network_gbytes_per_second: Positive = 50.0
    """The same between nodes, for each rank (400 Gbit/s)."""


class Config(Section):
    """One run."""

    run: RunConfig
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1337
    """Everything random follows from it: initialisation, order, crops, masks, mixture, dropout."""

    data: DataConfig
    model: EncoderConfig = EncoderConfig()
    objective: ObjectiveConfig
    train: TrainConfig
    optim: OptimConfig
    health: HealthConfig = HealthConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    probe: ProbeConfig = ProbeConfig()
    perf: PerfConfig = PerfConfig()

    init_from: Path | None = None
    """Whose encoder weights to start from; heads start anew: a run or checkpoint folder, a Hugging
    Face folder or hub id (MERT, HuBERT, music2vec), or a checkpoint of the original fairseq."""

    deepspeed: dict[str, Any] | Path = {}
    """DeepSpeed's own settings, or the path of its JSON, merged into the generated ones."""

    @model_validator(mode="after")
    def _check_together(self) -> "Config":
        self._check_mask(self.data.crop_seconds, "data.crop_seconds")
        mixture = self.objective.mixture
        if (
            mixture.prob
            and not mixture.min_seconds <= mixture.max_seconds <= self.data.crop_seconds
        ):
            raise ValueError(
                f"objective.mixture excerpts must satisfy min_seconds ({mixture.min_seconds}) <= "
                f"max_seconds ({mixture.max_seconds}) <= data.crop_seconds "
                f"({self.data.crop_seconds})"
            )
        if self.objective.decoder is not None and self.model.positions == "rotary":
            raise ValueError(
                "objective.decoder takes masked frames out of the layers, where model.positions: "
                "rotary would number the others anew: leave one of them out"
            )
        for name, target in self.objective.targets.items():
            if isinstance(target, TeacherTargetConfig):
                if target.top_layers > self.model.layers:
                    raise ValueError(
                        f"objective.targets.{name}.top_layers ({target.top_layers}) must not "
                        f"exceed model.layers ({self.model.layers})"
                    )
                if target.view == "other" and self.objective.views < 2:
                    raise ValueError(
                        f"objective.targets.{name}.view: other needs objective.views of 2 or "
                        f"more, but it is {self.objective.views}"
                    )
            if isinstance(target, CodecTargetConfig):
                if target.source == "online" and target.weights is None:
                    raise ValueError(
                        f"objective.targets.{name}: source: online needs weights, the path of the "
                        "codec's weights"
                    )
            if isinstance(target, CqtTargetConfig):
                top = target.fmin * 2 ** ((target.bins - 1) / target.bins_per_octave)
                if top >= self.model.sample_rate / 2:
                    raise ValueError(
                        f"objective.targets.{name}: the top bin of the CQT would be at {top:.0f} "
                        f"Hz, above half the sample rate ({self.model.sample_rate / 2:.0f} Hz): "
                        "take fewer bins or more per octave"
                    )
        self._check_data()
        self._check_padding()
        self._check_schedule()
        return self

    def _check_data(self) -> None:
        first = self.data.corpora[0].corpus
        for name, target in self.objective.targets.items():
            if not is_url(first):
                continue
            if isinstance(target, KmeansTargetConfig) and target.centroids is None:
                raise ValueError(
                    f"objective.targets.{name}.centroids must be given where the first corpus is "
                    "at a URL: fit it on a copy of a part of the corpus with launch/cluster.py"
                )
        if self.data.reader == "webdataset":
            self._check_stock_reader()

    def _check_stock_reader(self) -> None:
        if len(self.data.corpora) > 1 or is_url(self.data.corpora[0].corpus):
            raise ValueError("data.reader: webdataset reads one corpus, in a folder")
        if self.data.min_clip_seconds is not None or self.data.crops_per_clip > 1:
            raise ValueError(
                "data.reader: webdataset goes with neither data.min_clip_seconds nor "
                "data.crops_per_clip"
            )
        for name, target in self.objective.targets.items():
            if isinstance(target, CodecTargetConfig) and target.source == "stored":
                raise ValueError(
                    f"data.reader: webdataset reads audio alone, but objective.targets.{name} has "
                    "source: stored"
                )

    def _check_padding(self) -> None:
        shortest = self.data.min_clip_seconds
        if shortest is None:
            return
        if shortest > self.data.crop_seconds:
            raise ValueError(
                f"data.min_clip_seconds ({shortest}) must not exceed data.crop_seconds "
                f"({self.data.crop_seconds})"
            )
        if self.model.conv_norm == "group":
            raise ValueError(
                "data.min_clip_seconds pads short clips, which needs model.conv_norm: layer: a "
                "group norm over time takes its statistics from the padding too"
            )
        if self.objective.decoder is not None:
            raise ValueError(
                "data.min_clip_seconds pads short clips, and objective.decoder needs equally many "
                "visible frames in each: leave one of them out"
            )
        for name, target in self.objective.targets.items():
            stored = isinstance(target, CodecTargetConfig) and target.source == "stored"
            framewise = isinstance(target, TeacherTargetConfig) and not target.pooled
            if not (stored or framewise):
                raise ValueError(
                    f"data.min_clip_seconds pads short clips, which objective.targets.{name} "
                    "would hear: it goes with teachers that are not pooled and with stored tokens"
                )
        self._check_mask(shortest, "data.min_clip_seconds")

    def _check_mask(self, seconds: float, key: str) -> None:
        mask = self.objective.mask
        frames = self.model.grid.num_frames(round(seconds * self.model.sample_rate))
        spans = max(1, round(mask.prob * frames / mask.span_frames))
        if frames - mask.span_frames + 1 < spans or frames < 2:
            raise ValueError(
                f"{key} ({seconds}) gives {frames} frames, too few for {spans} masked spans of "
                f"{mask.span_frames} frames: take longer crops, or lower objective.mask.prob or "
                "objective.mask.span_frames"
            )

    def _check_schedule(self) -> None:
        optim = self.optim
        if self.schedule_steps <= optim.warmup_steps and optim.schedule_steps is not None:
            raise ValueError(
                f"optim.schedule_steps ({self.schedule_steps}) must exceed optim.warmup_steps "
                f"({optim.warmup_steps})"
            )
        if (optim.schedule == "tri_stage") != (optim.hold_steps is not None):
            raise ValueError(
                "optim.hold_steps goes with optim.schedule: tri_stage, which needs it; it is "
                f"{optim.hold_steps} with {optim.schedule}"
            )
        if optim.hold_steps and optim.warmup_steps + optim.hold_steps > self.schedule_steps:
            raise ValueError(
                f"optim.warmup_steps ({optim.warmup_steps}) and optim.hold_steps "
                f"({optim.hold_steps}) must not exceed the schedule's {self.schedule_steps} updates"
            )

    @property
    def schedule_steps(self) -> int:
        """Length of the learning rate's schedule in updates."""
        return self.optim.schedule_steps or self.train.max_steps

    def centroids(self, name: str) -> Path:
        """The k-means file of the target ``name``."""
        target = self.objective.targets[name]
        assert isinstance(target, KmeansTargetConfig)
        return target.centroids or Path(self.data.corpora[0].corpus) / f"kmeans-{name}.safetensors"

    @property
    def min_clip_samples(self) -> int:
        """Length of the shortest clip that is heard, in samples."""
        seconds = self.data.min_clip_seconds
        return self.crop_samples if seconds is None else round(seconds * self.model.sample_rate)

    @property
    def crop_samples(self) -> int:
        """Length of a crop in samples."""
        return round(self.data.crop_seconds * self.model.sample_rate)
