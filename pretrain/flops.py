"""Floating-point operations of one training crop, counted from the geometry: what MFU divides by.

    forward     2 per multiplication and addition of every matrix product and convolution
    backward    as much for the weights and as much again for the inputs, so 3 times the forward;
                the first convolution's input is audio, which has no gradient: 2 times

    convolution        frames x kernel x channels in x channels out
    projection         F x C x D
    positions          F x kernel x D x D / groups, once or for each of a stack
    layer              F x (4 D^2 + 2 D x ffn), and 2 F^2 D for queries by keys, weights by values
    head               rows x (D x width + width x classes); rows are the masked frames, and the
                       visible ones where those count too
    teacher            the forward of its layers and positions, once per crop

With a decoder the layers see the visible frames alone; with several views, all but the front end
and the teacher is done for each. As in Kaplan et al., "Scaling laws for neural language models"
(2020), and Chowdhery et al., "PaLM" (2022), appendix B: recomputation does not count, nor does what
makes targets (a spectrum, a codec), nor what is no product (norms, activations, the optimizer). So
a faster way to compute the same has a higher MFU, and computing more does not.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from etude.models.config import EncoderConfig
from etude.pretrain.config import (
    CodecTargetConfig,
    CqtTargetConfig,
    KmeansTargetConfig,
    MaskConfig,
    ObjectiveConfig,
    TargetConfig,
    TeacherTargetConfig,
)
from etude.pretrain.config_types import FurtherTargetConfig
from etude.pretrain.masking import masked_count


@dataclass(frozen=True)
class CropFlops:
    """FLOPs of one crop, forward and backward (a teacher's forward alone)."""

    front_end: float
    positions: float
    transformer: float
    heads: float
    """The decoder's too."""
    teacher: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.front_end + self.positions + self.transformer + self.heads + self.teacher


def crop_flops(
    model: EncoderConfig,
    objective: ObjectiveConfig,
    *,
    samples: int,
    classes: Mapping[str, int],
) -> CropFlops:
    """Counts one crop of ``samples`` samples.

    :param classes: classes (per codebook) of each target that has any, by the target's name.
    """
    frames = model.grid.num_frames(samples)
    masked = masked_frames(objective.mask, frames)
    seen = frames if objective.decoder is None else frames - masked
    first, rest = _front_end(model, samples)
    heads = _decoder(model, objective, frames)
    teacher = 0.0
    for name, target in objective.targets.items():
        rows = masked
        if isinstance(target, TeacherTargetConfig):
            rows = frames if target.pooled else masked
            times = objective.views if target.view == "other" else 1
            teacher += times * (_positions(model, frames) + _layers(model, frames))
            if target.input == "clean" and objective.mixture.prob:
                teacher += first + rest
        if objective.visible_weight:
            rows = frames
        heads += rows * _head(target, model.dim, classes.get(name, 0))
    views = 3 * objective.views
    return CropFlops(
        front_end=2 * first + 3 * rest,
        positions=views * _positions(model, frames),
        transformer=views * _layers(model, seen),
        heads=views * heads,
        teacher=teacher,
    )


def masked_frames(mask: MaskConfig, frames: int) -> int:
    """Frames of a crop that are masked in each view."""
    return masked_count(frames, prob=mask.prob, span=mask.span_frames, fraction=mask.fraction)


def _front_end(model: EncoderConfig, samples: int) -> tuple[float, float]:
    """Forward of the first convolution, and of all else."""
    frames = model.grid.num_frames(samples)
    if model.frontend == "logmel":
        return 0.0, 2.0 * frames * model.logmel_bins * model.dim
    inputs, length, each = 1, samples, []
    for channels, kernel, stride in zip(
        model.conv_dims, model.conv_kernels, model.conv_strides, strict=True
    ):
        length = (length - kernel) // stride + 1
        each.append(2.0 * length * kernel * inputs * channels)
        inputs = channels
    return each[0], sum(each[1:]) + 2.0 * frames * inputs * model.dim


def _positions(model: EncoderConfig, frames: int) -> float:
    if model.positions == "rotary":
        return 0.0
    kernel = model.position_kernel
    if model.position_depth > 1:
        kernel = model.stacked_kernel * model.position_depth
    return 2.0 * frames * kernel * model.dim * model.dim / model.position_groups


def _layers(model: EncoderConfig, frames: int) -> float:
    linear = 4 * model.dim**2 + 2 * model.dim * model.ffn_dim
    if model.layer == "conformer":
        linear += 2 * model.dim * model.ffn_dim + 3 * model.dim**2
        linear += model.conformer_kernel * model.dim
    return model.layers * 2.0 * (frames * linear + 2 * frames**2 * model.dim)


def _decoder(model: EncoderConfig, objective: ObjectiveConfig, frames: int) -> float:
    decoder = objective.decoder
    if decoder is None:
        return 0.0
    conv = decoder.layers * decoder.kernel * decoder.dim**2 / decoder.groups
    return 2.0 * frames * (2 * model.dim * decoder.dim + conv)


def _head(target: TargetConfig, dim: int, classes: int) -> float:
    """Forward of one row."""
    match target:
        case KmeansTargetConfig():
            return 2.0 * target.final_dim * (dim + classes)
        case CodecTargetConfig():
            return 2.0 * target.codebooks * target.final_dim * (dim + classes)
        case CqtTargetConfig():
            return 2.0 * dim * target.bins
        case TeacherTargetConfig():
            return 2.0 * dim * (2 * target.predictor_dim or dim)
        case FurtherTargetConfig():
            return 2.0 * dim * target.head_outputs(dim)
