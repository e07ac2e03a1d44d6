"""The recipe of MERT-v1: where its loss starts, and that it can learn by heart."""

import math

import pytest
import torch
from training_parts import audio_batch, noise, small_encoder

from etude.data.batch import scaled
from etude.data.pipeline import collate, read_crop
from etude.data.plan import CropPlan
from etude.data.shards import Corpus
from etude.data.tokens import open_tokens
from etude.models.spectral import ConstantQ
from etude.pretrain.masked_prediction import MaskedPrediction
from etude.pretrain.metrics import MetricSums
from etude.pretrain.objective import StepOutput
from etude.pretrain.targets.base import FrameContext
from etude.pretrain.targets.codec import CodecTarget
from etude.pretrain.targets.cqt import CqtTarget

CROP = 48_000


def v1(*, final_dim: int, dim: int, with_cqt: bool = True, **model: object) -> MaskedPrediction:
    encoder = small_encoder(dim=dim, **model)
    targets: dict[str, CodecTarget | CqtTarget] = {
        "codec": CodecTarget(
            dim,
            codebooks=8,
            codebook_size=1024,
            final_dim=final_dim,
            temperature=0.1,
            stored="encodec_24khz",
        )
    }
    if with_cqt:
        transform = ConstantQ(encoder.grid, bins=36, bins_per_octave=12, fmin=220.0, scale="linear")
        targets["cqt"] = CqtTarget(transform, dim, bins=36)
    return MaskedPrediction(
        encoder,
        targets,
        weights=dict.fromkeys(targets, 1.0),
        seed=0,
        mask_prob=0.8,
        mask_span=5,
        feature_penalty=10.0,
    )


def results(output: StepOutput) -> dict[str, float]:
    sums = MetricSums()
    sums.add(output.metrics)
    return sums.results()


@pytest.mark.parametrize(("final_dim", "dim"), [(64, 768), (128, 1024)])
def test_the_loss_starts_where_random_heads_on_uniform_codes_must(final_dim: int, dim: int) -> None:
    module = v1(final_dim=final_dim, dim=dim, with_cqt=False).eval()
    waveform = noise(5, CROP)
    frames = CROP // 320
    codes = torch.randint(1024, (5, frames, 8), generator=torch.Generator().manual_seed(0))
    batch = audio_batch(waveform)._replace(codes={"encodec_24khz": codes})
    with torch.no_grad():
        output = module(batch)
    masked = module.mask(batch, module.encoder.grid.num_frames(CROP)).index_BM.numel()
    assert masked >= 400
    expected = 8 * (math.log(1024) + 100 / (8 * final_dim))
    assert results(output)["codec/loss"] == pytest.approx(expected, rel=0.01)


def test_the_stored_frames_beyond_the_encoders_are_cut_not_shifted() -> None:
    module = v1(final_dim=8, dim=32, with_cqt=False)
    target, frames = module.targets["codec"], CROP // 320
    assert isinstance(target, CodecTarget)
    codes = torch.arange(frames)[None, :, None].expand(2, frames, 10)
    kept = module.encoder.grid.num_frames(CROP)
    context = FrameContext(noise(2, CROP), kept, {"encodec_24khz": codes})
    assert kept < frames
    assert torch.equal(target.compute(context), codes[:, :kept, :8])


def test_a_narrow_model_learns_eight_clips_by_heart(encoded: Corpus) -> None:
    split = encoded.split("train")
    tokens = {"encodec_24khz": open_tokens(encoded, "encodec_24khz").split("train")}
    plan = CropPlan(split, crop_samples=24_000, hop_samples=320, seed=0, tokens=tokens)
    assert len(plan.clips) >= 8
    batch = collate(
        [read_crop(plan, position) for position in range(8)], update=0, crop_samples=24_000
    )
    batch = batch._replace(waveform=scaled(batch.waveform))

    module = v1(
        final_dim=32,
        dim=96,
        ffn_dim=192,
        layers=4,
        norm="pre",
        conv_dims=(32, 64, 64),
        conv_kernels=(80, 8, 2),
        conv_strides=(40, 4, 2),
    )
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for update in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (update + 1) / 20)
        output = module(batch)
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        optimizer.step()
        if update % 10 == 0 and results(output)["codec/q0/accuracy"] > 0.95:
            break
    with torch.no_grad():
        learnt = results(module.eval()(batch))
    assert learnt["codec/q0/accuracy"] > 0.9
    assert learnt["codec/q0/accuracy"] > learnt["codec/q0/majority_rate"] + 0.3
