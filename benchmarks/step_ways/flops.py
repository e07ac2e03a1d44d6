"""FLOPs of a crop, forward and backward: what MFU counts (etude.pretrain.flops)."""

from typing import Any

from etude.models.config import EncoderConfig
from etude.pretrain.config import ObjectiveConfig
from etude.pretrain.flops import crop_flops

from .common import CLASSES, CODEBOOKS, CQT, FINAL_DIM, GEOMETRY, Problem
from .ours import MUSIC2VEC


def train_flops(problem: Problem) -> float:
    """FLOPs of one crop: MERT with its heads, or a student and its teacher's forward pass."""
    model: dict[str, Any] = {**GEOMETRY[problem.size], "sample_rate": problem.sample_rate}
    classes = {}
    if problem.family == "mert":
        codec = {"kind": "codec", "codebooks": CODEBOOKS, "final_dim": FINAL_DIM[problem.size]}
        targets = {"codec": codec, "cqt": {"kind": "cqt", **CQT}}
        classes = {"codec": CLASSES}
    else:
        targets = {"teacher": {"kind": "teacher"}}
        model |= MUSIC2VEC
    return crop_flops(
        EncoderConfig.model_validate(model),
        ObjectiveConfig.model_validate({"targets": targets}),
        samples=round(problem.seconds * problem.sample_rate),
        classes=classes,
    ).total
