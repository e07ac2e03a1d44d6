"""In a step the host never waits for the device: nothing asks for a value or a shape that it has.

On a CPU every operation is counted that would make the host wait on a GPU: reading a number,
shapes that depend on values, counting without a known size. On a GPU torch itself is asked.
"""

from typing import Any

import pytest
import torch
from training_parts import SMALL, small_quantizer
from waits import Waits

from etude.data.batch import AudioBatch
from etude.models.config import EncoderConfig
from etude.models.encoder import Encoder
from etude.models.spectral import ConstantQ
from etude.pretrain.augment import mix_in_batch
from etude.pretrain.engine import move
from etude.pretrain.masked_prediction import MaskedPrediction
from etude.pretrain.schedules import ramp
from etude.pretrain.targets.base import Target
from etude.pretrain.targets.codec import CodecTarget
from etude.pretrain.targets.cqt import CqtTarget
from etude.pretrain.targets.kmeans import KmeansTarget
from etude.pretrain.targets.teacher import TeacherTarget

ROWS, SAMPLES = 4, 24_000


def test_what_would_wait_is_counted() -> None:
    values, host = torch.arange(4.0), torch.tensor(3)
    with Waits(host) as waits:
        int(host)
        float(values.sum())
        values[values > 1]
        values[torch.tensor([1, 2])]
        torch.bincount(values.long())
    assert waits.found == {"_local_scalar_dense": 1, "index by a mask": 1, "bincount": 1}


def objective(kind: str, **settings: Any) -> MaskedPrediction:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig.model_validate({**SMALL, "layer_drop": 0.5, **settings}))
    dim = encoder.config.dim
    targets: dict[str, Target] = {}
    if kind == "mert":
        targets["codec"] = CodecTarget(
            dim, codebooks=3, codebook_size=9, final_dim=8, temperature=0.1, stored="codec"
        )
        targets["logmel"] = KmeansTarget(small_quantizer(), dim, final_dim=8, temperature=0.1)
        transform = ConstantQ(
            encoder.grid, bins=24, bins_per_octave=12, fmin=220.0, scale="log", level="crop"
        )
        targets["cqt"] = CqtTarget(transform, dim, bins=24)
    else:
        targets["teacher"] = TeacherTarget(
            encoder,
            top_layers=2,
            feature="ffn",
            norm="instance",
            decay=ramp(0.9, 0.99, steps=10),
            average_positions=False,
            predictor_dim=0,
            distance="mse",
            pooled=False,
            hears_clean=True,
            sees_other_view=False,
        )
    return MaskedPrediction(
        encoder,
        targets,
        weights=dict.fromkeys(targets, 1.0),
        seed=0,
        mask_prob=0.8,
        mask_span=5,
        visible_weight=0.5,
        feature_penalty=10.0,
        layer_drop=0.5,
        mixture=lambda waveform, ids: mix_in_batch(
            waveform,
            ids,
            key=7,
            group=2,
            prob=0.5,
            min_samples=100,
            max_samples=200,
            max_excerpts=2,
            gain=1.0,
        ),
        views=2,
    ).train()


def batch() -> AudioBatch:
    generator = torch.Generator().manual_seed(0)
    return AudioBatch(
        0.1 * torch.randn(ROWS, SAMPLES, generator=generator),
        torch.arange(ROWS),
        torch.tensor(3),
        torch.tensor(0),
        {"codec": torch.randint(9, (ROWS, 75, 3), generator=generator)},
    )


KINDS = [
    pytest.param("mert", {}, id="MERT"),
    pytest.param("mert", {"impl": "plain", "conv_norm": "layer"}, id="MERT, plain"),
    pytest.param("music2vec", {"conv_norm": "layer", "position_depth": 3}, id="music2vec"),
]


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_the_host_never_waits_in_a_step(kind: str, settings: dict[str, Any]) -> None:
    made, heard = objective(kind, **settings), batch()
    made(heard)  # tables that are made once
    with Waits(heard.update) as waits, torch.autocast("cpu", torch.bfloat16):
        made(heard).loss.backward()
        made.after_step(3)
    assert waits.found == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_torch_itself_finds_no_wait_on_a_gpu(kind: str, settings: dict[str, Any]) -> None:
    device = torch.device("cuda")
    made, heard = objective(kind, **settings).to(device), move(batch(), device)
    made(heard).loss.backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            made(heard).loss.backward()
        made.after_step(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
