"""Memory of a run by arithmetic, before anything is built: what ``train.micro_batch: auto`` asks.

    weights        4 bytes per parameter; under ZeRO 1 and 2 also each rank's own copy of its part
    gradients      4 bytes; ZeRO 2 keeps each rank's part; DDP has them in its buckets once more,
                   a step that is recorded as a CUDA graph in its own
    optimizer      AdamW's two moments, 8 bytes; ZeRO 1 and 2 keep each rank's part
    teacher        4 bytes per parameter that is not trained
    copies         under autocast 2 bytes per weight of a product, kept until backward is over
    activations    what forward keeps for backward, per crop of the micro-batch
    workspace      what comes and goes, at the moment when most is there; and libraries

What forward keeps is counted in values per frame and width, below (``_LAYER`` and what follows).
They were read off ``torch.autograd.graph.saved_tensors_hooks``; ``tests/saved_bytes.py`` counts
again, for any configuration, and ``tests/pretrain/test_memory.py`` holds the two together.
"""

import os
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from etude.models.config import EncoderConfig
from etude.models.conv_limits import LONGEST_PATCH, PART_BYTES
from etude.pretrain.config import (
    CodecTargetConfig,
    Config,
    CqtTargetConfig,
    KmeansTargetConfig,
    TargetConfig,
    TeacherTargetConfig,
)
from etude.pretrain.config_types import FurtherTargetConfig
from etude.pretrain.deepspeed_settings import zero_settings
from etude.pretrain.flops import masked_frames

# What forward keeps for backward, in values (2 bytes under bfloat16 autocast, else 4) unless said.

_CONV = {"fast": 1.0, "plain": 3.0}
"""Per frame and channel of each convolution: ``fast`` keeps the input of the next, and of the first
layer nothing."""

_CONV_OUT = 3.0
"""Per frame and channel of the last convolution: GELU, norm and projection; in bfloat16 also the
float32 of the feature penalty."""

_POSITIONS, _STACKED = 2.0, 3.0
"""Per frame and width of the positional convolution, or of each of a stack."""

_LAYER, _LAYER_FFN = 8.0, 2.0
"""Per frame and width, and per frame and inner width, of each layer; of the inner frames ``fast``
keeps half where nothing is dropped of them."""

_CONFORMER, _CONFORMER_DROPOUT = 11.0, 2.0
"""Per frame and width of each conformer layer, beside a transformer layer's; its two feed-forward
blocks keep their inner frames twice."""

_LAYER_DROPOUT = 2.0
"""Per frame and width of each layer with dropout: masks, which are bytes on a GPU."""

_CPU_ATTENTION, _CPU_ATTENTION_MAPS = 3.0, 3.0
"""With attention dropout on a CPU: per frame and width in bfloat16, which is cast, and float32 per
head and pair of frames. A GPU's attention keeps no map."""

_COMPILED = 1.55
"""What compiled layers keep on a GPU, of what they keep as written: torch.compile chooses. Read off
peaks on an H200 (docs/planning.md). Compiled convolutions keep what they would make again."""

# What comes and goes.

_CONV_PASSING = 4.0
"""Values per frame and channel of the largest convolution, while its backward runs; ``fast`` takes
a few crops at a time."""

_LAYER_PASSING = 4.0
"""Values per frame and inner width of one layer, while its backward runs."""

_ONLINE_CODEC = 3 * 32 * 4
"""Bytes per sample of audio while a codec encodes it (EnCodec: 32 channels at the audio's rate)."""

_LIBRARIES = 1.0e9
"""A GPU's context and the libraries' own workspaces, or a process that has imported everything."""

_MOST_ON_CPU = 8
_INDEXED = 2**31 - 1
"""Values of a tensor that 32 bits can count."""

MARGINS = {"cuda": 0.9, "cpu": 0.7}
"""Share of a device's memory that may be planned with: allocators fragment, and a CPU's memory is
everybody's."""


@dataclass(frozen=True)
class Parameters:
    """How many numbers a run has."""

    trained: int
    products: int
    """Of the trained, those of matrices, which autocast copies."""
    largest: int
    """Of the largest matrix."""
    kept: int
    """Of teachers."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, by what they are for; see the head of this file."""

    weights: float
    gradients: float
    optimizer: float
    teacher: float
    copies: float
    activations: float
    workspace: float

    @property
    def total(self) -> float:
        """All of them."""
        return float(sum(astuple(self)))


def count_parameters(config: Config, classes: dict[str, int]) -> Parameters:
    """Counts from the geometry; a model of that many numbers need not fit anywhere.

    :param classes: classes (per codebook) of each target that has any.
    """
    model = config.model
    context, context_products = _context_parameters(model)
    front_end, front_end_products, largest = _front_end_parameters(model)
    trained = context + front_end + model.dim  # the mask embedding
    products = context_products + front_end_products
    kept = 0
    for name, target in config.objective.targets.items():
        head, matrices = _head_parameters(target, model.dim, classes.get(name, 0))
        trained, products = trained + head, products + matrices
        kept += context if isinstance(target, TeacherTargetConfig) else 0
    if (decoder := config.objective.decoder) is not None:
        matrices = 2 * model.dim * decoder.dim
        matrices += decoder.layers * decoder.kernel * decoder.dim**2 // decoder.groups
        trained += matrices + 2 * model.dim + (1 + decoder.layers) * decoder.dim
        products += matrices
    return Parameters(trained, products, max(largest, model.dim * model.ffn_dim), kept)


def estimate_memory(
    config: Config,
    parameters: Parameters,
    *,
    micro_batch: int,
    ranks: int,
    stage: int | None,
    device: str,
) -> Memory:
    """Memory of each rank.

    :param stage: ZeRO's; ``None`` is plain DDP.
    :param device: ``cuda`` or ``cpu``, whose attention keeps other things.
    """
    bucket = 4.0 * float(zero_settings(config)["reduce_bucket_size"])
    whole = 4.0 * parameters.trained
    part = whole / ranks
    # Beside what is always there: while gradients are reduced, and while AdamW works.
    passing = 0.0 if device == "cuda" else whole  # not fused on a CPU
    match stage:
        case None:
            weights, gradients, moments = whole, whole * (1 if ranks == 1 else 2), 2 * whole
        case 0:
            weights, gradients, moments = whole, whole, 2 * whole
            passing = max(passing, whole if ranks > 1 else 0.0)
        case _:
            weights, moments = whole + part, 2 * part
            gradients = (whole if stage == 1 else part) + min(bucket, whole)
            passing = part + (passing / ranks)
    if config.train.records_on(device):
        gradients += whole  # the graphs write theirs where nobody else may
    per_crop = _activation_bytes(config, device)
    kept = micro_batch * per_crop.kept
    bf16 = config.train.precision == "bf16"
    copies = 2.0 * parameters.products if bf16 else 4.0 * _remade_weights(config.model)
    in_layers = copies + kept + micro_batch * per_crop.in_layers
    in_convolutions = copies + micro_batch * per_crop.in_convolutions
    largest = per_crop.largest_output
    at_once = micro_batch * largest
    if config.model.impl == "fast":
        at_once = min(at_once, max(largest, PART_BYTES[device]))
    in_convolutions += _CONV_PASSING * at_once
    peak = max(in_layers, in_convolutions, passing)
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=moments,
        teacher=4.0 * parameters.kept,
        copies=copies,
        activations=kept,
        workspace=_LIBRARIES + peak - copies - kept,
    )


@dataclass(frozen=True)
class Device:
    """Memory that a rank may use."""

    kind: str
    """``cuda`` or ``cpu``."""
    total: float
    """Bytes of its own."""
    origin: str
    """Where the number is from."""

    @property
    def usable(self) -> float:
        """Bytes that may be planned with."""
        return self.total * MARGINS[self.kind]

    def __str__(self) -> str:
        share = f"{MARGINS[self.kind]:.0%}".replace("%", " %")
        return f"{share} of {self.total / 1e9:.3g} GB ({self.origin})"


def find_device(config: Config, kind: str, *, ranks_here: int) -> Device:
    """What a rank has: of a GPU all, of a machine its share.

    Not what is free: the same command on the same machine must come to the same micro-batch.

    :param ranks_here: ranks on this machine.
    """
    if config.perf.device_gbytes is not None:
        return Device(kind, config.perf.device_gbytes * 1e9, "stated: perf.device_gbytes")
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        # Whole GB: drivers of equal GPUs keep a little more or less for themselves.
        return Device(kind, properties.total_memory // 10**9 * 1e9, properties.name)
    shared = "this machine" if ranks_here == 1 else f"this machine's over {ranks_here} ranks"
    return Device(kind, _machine_bytes() / ranks_here // 10**9 * 1e9, shared)


def stage_of(config: Config) -> int | None:
    """The ZeRO stage of the run; ``None`` without DeepSpeed."""
    if config.train.engine == "ddp":
        return None
    return int(zero_settings(config)["stage"])


def most_crops(config: Config, kind: str) -> tuple[int, str]:
    """Crops beyond which ``auto`` does not go, whatever memory holds, and why not."""
    if kind == "cpu":
        return _MOST_ON_CPU, "on a CPU, larger ones are no faster"
    largest = max(_front_end_bytes(config, 4.0, compiled=False)[1])
    most = max(1, int(_INDEXED // max(1.0, largest)))
    return most, "tensors of 2^31 values and more take other ways through the libraries"


@dataclass(frozen=True)
class _CropBytes:
    kept: float
    """By all parts, when forward is over."""
    in_layers: float
    """Beside that, at the most."""
    in_convolutions: float
    """When the layers are through backward, and only the front end's are left: all there is, and
    gradients of two convolutions' outputs."""
    largest_output: float
    """Of a convolution."""


def _activation_bytes(config: Config, device: str) -> _CropBytes:
    model, objective = config.model, config.objective
    value = 2.0 if config.train.precision == "bf16" else 4.0
    frames = model.grid.num_frames(config.crop_samples)
    masked = masked_frames(objective.mask, frames)
    seen = frames if objective.decoder is None else frames - masked
    compiled = device == "cuda" and config.train.compiles_on(device)
    front_end, outputs = _front_end_bytes(config, value, compiled=compiled)
    once = model.impl == "fast" and not model.activation_dropout
    inner = _LAYER_FFN / 2 if once else _LAYER_FFN
    wide, blocks, dropped = _LAYER, 1, _LAYER_DROPOUT
    if model.layer == "conformer":
        wide, blocks, dropped = wide + _CONFORMER, 2, dropped + _CONFORMER_DROPOUT
        inner = blocks * _LAYER_FFN
    layer = value * seen * (wide * model.dim + inner * model.ffn_dim)
    mask = value if device == "cpu" else 1.0
    if model.dropout:
        layer += mask * dropped * seen * model.dim
    if model.activation_dropout:
        layer += mask * blocks * seen * model.ffn_dim
    if model.attention_dropout and device == "cpu":
        layer += 2.0 * _CPU_ATTENTION * seen * model.dim if value == 2.0 else 0.0
        layer += 4.0 * _CPU_ATTENTION_MAPS * model.heads * seen**2
    positions = _POSITIONS if model.position_depth == 1 else _STACKED * model.position_depth
    view = model.layers * layer + value * frames * model.dim * (positions + 1)
    if (decoder := objective.decoder) is not None:
        view += value * frames * (2 * model.dim + 4 * decoder.layers * decoder.dim)
    passing = _LAYER_PASSING * value * seen * model.ffn_dim
    for target in objective.targets.values():
        rows = frames if objective.visible_weight or _is_pooled(target) else masked
        view += rows * _head_bytes(target, model.dim, value)
        if isinstance(target, TeacherTargetConfig):
            # Its layers' outputs, until the target has been made of them.
            passing = max(passing, 2.0 * model.layers * value * frames * model.dim)
        if isinstance(target, CodecTargetConfig) and target.source == "online":
            passing = max(passing, float(_ONLINE_CODEC * config.crop_samples))
    if compiled:
        view *= _COMPILED
    return _CropBytes(
        kept=front_end + objective.views * view,
        in_layers=passing * objective.views,
        in_convolutions=front_end + value * sum(outputs[1:3]),
        largest_output=value * max(outputs),
    )


def _front_end_bytes(config: Config, value: float, *, compiled: bool) -> tuple[float, list[float]]:
    """Bytes that are kept of a crop, and values of each convolution's output."""
    model, samples = config.model, config.crop_samples
    frames = model.grid.num_frames(samples)
    if model.frontend == "logmel":
        return (4.0 + value) * frames * model.logmel_bins, [0.0]
    length, outputs = samples, []
    for channels, kernel, stride in zip(
        model.conv_dims, model.conv_kernels, model.conv_strides, strict=True
    ):
        length = (length - kernel) // stride + 1
        outputs.append(float(length * channels))
    kept = value * samples
    if model.impl == "plain":
        kept += value * _CONV["plain"] * sum(outputs)
    else:
        long_first = model.conv_norm == "group" and model.conv_kernels[0] > LONGEST_PATCH
        kept += value * _CONV["fast"] * sum(outputs[1:-1])
        kept += value * sum(outputs[:-1]) if compiled else 0.0  # after their GELU
        # A long first kernel's output is kept by its norm, in float32, and by the next layer.
        kept += (4.0 + value) * outputs[0] if long_first else 0.0
    kept += value * _CONV_OUT * outputs[-1]
    kept += 4.0 * outputs[-1] if value == 2.0 and config.objective.feature_penalty else 0.0
    return kept, outputs


def _head_bytes(target: TargetConfig, dim: int, value: float) -> float:
    """Of one row."""
    match target:
        case KmeansTargetConfig():
            return value * dim + 8.0 * target.final_dim
        case CodecTargetConfig():
            return value * dim + 8.0 * target.codebooks * target.final_dim
        case CqtTargetConfig():
            return value * dim + 8.0 * target.bins
        case TeacherTargetConfig():
            return value * (dim + 3 * target.predictor_dim) + 8.0 * dim
        case FurtherTargetConfig():
            return value * dim + 8.0 * target.head_outputs(dim)


def _is_pooled(target: TargetConfig) -> bool:
    return isinstance(target, TeacherTargetConfig) and target.pooled


def _remade_weights(model: EncoderConfig) -> int:
    """Numbers of weights that a forward makes anew in float32 too: convolutions with their channels
    laid side by side, projections laid end to end, the weight-normed kernel of the positions."""
    remade = 0
    if model.impl == "fast" and model.frontend == "waveform":
        channels, kernels = model.conv_dims, model.conv_kernels[1:]
        remade = sum(
            k * i * o for k, i, o in zip(kernels, channels[:-1], channels[1:], strict=True)
        )
    if model.impl == "fast" and model.layer == "transformer":
        remade += 3 * model.layers * model.dim**2
    if model.positions == "convolution" and model.position_depth == 1:
        remade += model.position_kernel * model.dim**2 // model.position_groups
    return remade


def _context_parameters(model: EncoderConfig) -> tuple[int, int]:
    """All of positions, norm and layers, and those in products."""
    dim, ffn = model.dim, model.ffn_dim
    if model.positions == "rotary":
        products = positions = 0
    elif model.position_depth == 1:
        kernel = model.position_kernel
        products = kernel * dim * dim // model.position_groups
        positions = products + kernel + dim  # weight norm's length of each tap
    else:
        products = model.stacked_kernel * dim * dim // model.position_groups
        products *= model.position_depth
        positions = products + model.position_depth * dim
    matrices = 4 * dim * dim + 2 * dim * ffn
    layer = matrices + 4 * dim + (ffn + dim) + 4 * dim
    if model.layer == "conformer":
        more = 2 * dim * ffn + 3 * dim * dim + model.conformer_kernel * dim
        matrices += more
        layer += more + (ffn + dim) + 8 * dim  # four norms more
    return positions + 2 * dim + model.layers * layer, products + model.layers * matrices


def _front_end_parameters(model: EncoderConfig) -> tuple[int, int, int]:
    """All, those in products, and those of the largest convolution."""
    if model.frontend == "logmel":
        matrix = model.logmel_bins * model.dim
        return matrix + model.dim + 2 * model.logmel_bins, matrix, matrix
    inputs, matrices, vectors = 1, [], 0
    for channels, kernel in zip(model.conv_dims, model.conv_kernels, strict=True):
        matrices.append(kernel * inputs * channels)
        vectors += channels if model.conv_bias else 0
        vectors += 2 * channels if model.conv_norm == "layer" else 0
        inputs = channels
    vectors += 2 * model.conv_dims[0] if model.conv_norm == "group" else 0
    vectors += 2 * inputs + model.dim
    products = sum(matrices) + inputs * model.dim
    return products + vectors, products, max(matrices)


def _head_parameters(target: TargetConfig, dim: int, classes: int) -> tuple[int, int]:
    """All, and those that autocast copies; normed class vectors are float32, and count double."""
    match target:
        case KmeansTargetConfig():
            width, embedded = target.final_dim, classes * target.final_dim
        case CodecTargetConfig():
            width = target.codebooks * target.final_dim
            embedded = width * classes
        case CqtTargetConfig():
            width, embedded = target.bins, 0
        case TeacherTargetConfig() if target.predictor_dim:
            inner = target.predictor_dim
            return 2 * dim * inner + 3 * inner + dim, 2 * dim * inner
        case TeacherTargetConfig():
            width, embedded = dim, 0
        case FurtherTargetConfig():
            return target.head_parameters(dim), dim * target.head_outputs(dim)
    return dim * width + width + embedded, dim * width + 2 * embedded


def _machine_bytes() -> float:
    """Memory of this machine, or of the container that it is seen from."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limits = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    for path in map(Path, limits):
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdigit():
            total = min(total, float(text))
    return total
