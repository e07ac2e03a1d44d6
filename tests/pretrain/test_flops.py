"""FLOPs of a crop by arithmetic are those that torch counts on the real objective."""

from pathlib import Path
from typing import Any

import pytest
from saved_bytes import batch_of, classes_of, objective_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training_parts import ROOT, SMALL

from etude.pretrain.config import Config
from etude.pretrain.config_file import load_config
from etude.pretrain.flops import CropFlops, crop_flops

CROPS = 2
CODEC = {"kind": "codec", "codebooks": 3, "final_dim": 8}
CQT = {"kind": "cqt", "bins": 24, "bins_per_octave": 12, "fmin": 220.0}
TEACHER = {"kind": "teacher", "top_layers": 2}
DECODER = {"layers": 2, "dim": 16, "kernel": 3, "groups": 1}


def settings(
    *,
    targets: dict[str, Any],
    model: dict[str, Any] | None = None,
    **objective: Any,
) -> Config:
    # torch counts the weight's gradient of a grouped convolution as that of one group.
    plain = {**SMALL, "impl": "plain", "position_groups": 1, **(model or {})}
    return Config.model_validate(
        {
            "run": {"dir": Path("unused")},
            "data": {"corpus": "unused", "crop_seconds": 1.0},
            "model": plain,
            "objective": {"targets": targets, **objective},
            "train": {"max_steps": 1, "global_batch": CROPS},
            "optim": {"lr": 1e-3, "warmup_steps": 0},
        }
    )


def arithmetic(config: Config) -> CropFlops:
    return crop_flops(
        config.model,
        config.objective,
        samples=config.crop_samples,
        classes=classes_of(config),
    )


def counted(config: Config) -> float:
    """What torch counts of forward and backward, for each crop, but for what makes labels."""
    objective, batch = objective_of(config, crops=CROPS), batch_of(config, crops=CROPS)
    # The plain products: torch does not know the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(batch).loss.backward()
    counts = counter.get_flop_counts()
    # Neither fixed bands nor what makes labels is the model's.
    fixed = (".targets.cqt.transform", ".frontend.transform")
    others = sum(sum(counts[name].values()) for name in counts if name.endswith(fixed))
    return (counter.get_total_flops() - others) / CROPS


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(settings(targets={"codec": CODEC, "cqt": CQT}), id="MERT"),
        pytest.param(
            settings(targets={"cqt": CQT}, visible_weight=0.5), id="on visible frames too"
        ),
        pytest.param(
            settings(
                targets={"teacher": TEACHER},
                model={"position_depth": 3, "position_kernel": 15, "conv_norm": "layer"},
            ),
            id="music2vec",
        ),
        pytest.param(
            settings(targets={"teacher": {**TEACHER, "predictor_dim": 24}}), id="a predictor"
        ),
        pytest.param(
            settings(
                targets={"teacher": {**TEACHER, "input": "clean"}},
                mixture={"prob": 1.0, "group": 2, "min_seconds": 0.1, "max_seconds": 0.5},
            ),
            id="a teacher that hears clean crops",
        ),
        pytest.param(
            settings(targets={"teacher": {**TEACHER, "view": "other", "pooled": True}}, views=2),
            id="BYOL",
        ),
        pytest.param(
            settings(targets={"teacher": TEACHER}, views=3, decoder=DECODER), id="data2vec 2.0"
        ),
        pytest.param(settings(targets={"cqt": CQT}, model={"frontend": "logmel"}), id="log-mel"),
    ],
)
def test_a_crop_costs_what_torch_counts(config: Config) -> None:
    # An even positional kernel makes one frame more, which is cut off.
    assert arithmetic(config).total == pytest.approx(counted(config), rel=0.01)


@pytest.mark.parametrize(
    ("name", "words", "gigaflops"),
    [
        ("mert_v1_95m", [], 329.2),
        ("mert_v1_330m", ["data.crop_seconds=5.0"], 852.3),
        # 46.3 of them the teacher's forward.
        (
            "music2vec_v1",
            ["data.crop_seconds=5.0", "objective.mask.prob=0.8", "objective.mask.span_frames=5"],
            259.9,
        ),
    ],
)
def test_the_published_models_cost_what_arithmetic_by_hand_gives(
    name: str, words: list[str], gigaflops: float
) -> None:
    config = load_config(ROOT / "configs" / f"{name}.yaml", words)
    found = crop_flops(
        config.model,
        config.objective,
        samples=config.crop_samples,
        classes=dict.fromkeys(config.objective.targets, 1024),
    )
    assert found.total / 1e9 == pytest.approx(gigaflops, abs=0.05)


def test_a_wider_feed_forward_costs_the_transformer_alone() -> None:
    narrow = arithmetic(settings(targets={"cqt": CQT}))
    wide = arithmetic(settings(targets={"cqt": CQT}, model={"ffn_dim": SMALL["ffn_dim"] + 1}))
    frames, (layers, dim) = 74, (SMALL["layers"], SMALL["dim"])
    assert wide.transformer - narrow.transformer == 3 * layers * 2 * frames * 2 * dim
    assert (wide.front_end, wide.positions, wide.heads) == (
        narrow.front_end,
        narrow.positions,
        narrow.heads,
    )
