"""FLOPs of a crop of 5 s of MERT, forward and backward: what MFU counts (etude.pretrain.flops)."""

from etude.models.config import EncoderConfig
from etude.pretrain.config import ObjectiveConfig
from etude.pretrain.flops import crop_flops

from .common import CLASSES, CODEBOOKS, CQT, FINAL_DIM, GEOMETRY


def train_flops(size: str, *, samples: int = 120_000) -> float:
    """FLOPs of one crop of MERT."""
    codec = {"kind": "codec", "codebooks": CODEBOOKS, "final_dim": FINAL_DIM[size]}
    objective = ObjectiveConfig.model_validate(
        {"targets": {"codec": codec, "cqt": {"kind": "cqt", **CQT}}}
    )
    model = EncoderConfig.model_validate(GEOMETRY[size])
    return crop_flops(model, objective, samples=samples, classes={"codec": CLASSES}).total
