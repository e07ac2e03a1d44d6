"""Short clips padded to a batch: with ``padding: exact`` each is what it would be alone."""

import pytest
import torch
from torch import Tensor, nn
from training_parts import audio_batch, noise, small_encoder

from etude.data.batch import AudioBatch
from etude.models.encoder import Encoder
from etude.pretrain.masked_prediction import MaskedPrediction
from etude.pretrain.metrics import MetricSums
from etude.pretrain.schedules import ramp
from etude.pretrain.targets.base import FrameContext
from etude.pretrain.targets.codec import CodecTarget
from etude.pretrain.targets.teacher import TeacherTarget

DIM, SEED, CODES = 32, 11, 16
LENGTHS = [9_000, 12_000, 7_321]
FIRST_ID = 5


def perturb(module: nn.Module, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def encoder(**settings: object) -> Encoder:
    geometry = {"conv_norm": "layer", "normalize": True, "padding": "exact"}
    made = small_encoder(**{**geometry, "position_depth": 5, "position_kernel": 15, **settings})
    perturb(made, seed=1)
    return made.eval()


class Heard(TeacherTarget):
    """Keeps what it computed."""

    def compute(self, context: FrameContext) -> Tensor:
        self.computed = super().compute(context)
        return self.computed


def teacher(student: Encoder, **settings: object) -> Heard:
    chosen: dict[str, object] = {
        **{"top_layers": 2, "feature": "ffn", "norm": "instance", "distance": "mse"},
        **{"decay": ramp(0.9, 0.9, steps=0), "predictor_dim": 0},
        **dict.fromkeys(("average_positions", "pooled", "hears_clean", "sees_other_view"), False),
    }
    target = Heard(student, **{**chosen, **settings})
    perturb(target.teacher, seed=2)
    return target


def objective(student: Encoder, target: TeacherTarget, **settings: object) -> MaskedPrediction:
    tokens = CodecTarget(
        DIM,
        codebooks=2,
        codebook_size=CODES,
        final_dim=8,
        temperature=0.1,
        stored="stored",
    )
    chosen: dict[str, object] = {"mask_prob": 0.6, "mask_span": 4, **settings}
    return MaskedPrediction(
        student,
        {"teacher": target, "codec": tokens},
        weights={"teacher": 1.0, "codec": 0.1},
        seed=SEED,
        **chosen,
    ).eval()


def clips(lengths: list[int] = LENGTHS) -> list[AudioBatch]:
    """Each clip alone, with tokens, none of them padded."""
    made = []
    for place, length in enumerate(lengths):
        # A level and an offset of its own: normalising over the padding would show.
        waveform = (1.0 + place) * noise(1, length, seed=place) + 0.1 * place
        generator = torch.Generator().manual_seed(place)
        codes = torch.randint(CODES, (1, length // 320, 2), generator=generator)
        batch = audio_batch(waveform, first=FIRST_ID + place)
        made.append(batch._replace(codes={"stored": codes}))
    return made


def padded(alone: list[AudioBatch], *, to: int | None = None) -> AudioBatch:
    """All clips as one batch, as ``collate`` makes it: zeros at the end."""
    lengths = [clip.waveform.shape[1] for clip in alone]
    to = to or max(lengths)
    waveform, codes = torch.zeros(len(alone), to), torch.zeros(len(alone), max(lengths) // 320, 2)
    for row, clip in enumerate(alone):
        waveform[row, : lengths[row]] = clip.waveform[0]
        codes[row, : lengths[row] // 320] = clip.codes["stored"][0]
    batch = audio_batch(waveform, first=FIRST_ID)
    return batch._replace(codes={"stored": codes.long()}, num_samples=torch.tensor(lengths))


def measured(module: MaskedPrediction, *batches: AudioBatch) -> dict[str, float]:
    sums = MetricSums()
    for batch in batches:
        sums.add(module(batch).metrics)
    return sums.results()


def assert_exact(module: MaskedPrediction, alone: list[AudioBatch], batch: AudioBatch) -> None:
    """Targets, masks and the frame-weighted loss of every clip, padded and not."""
    heard, grid = module.targets["teacher"], module.encoder.grid
    assert isinstance(heard, Heard)
    count, views = len(alone), module.views
    frames = [grid.num_frames(clip.waveform.shape[1]) for clip in alone]
    with torch.no_grad():
        together = module(batch)
        targets = heard.computed.unflatten(0, (-1, count))
        mask = module.mask(batch, max(frames))
        assert mask.masked_counts is not None and mask.num_frames == tuple(frames) * views
        losses, hidden = [], []
        for row, clip in enumerate(alone):
            losses.append(module(clip).loss)
            expected = heard.computed.unflatten(0, (-1, 1))[:, 0]
            torch.testing.assert_close(targets[:, row, : frames[row]], expected, rtol=0, atol=1e-4)
            own = module.mask(clip, frames[row])
            hidden.append(own.index_BM.shape[1])
            for view in range(views):
                place = view * count + row
                wanted = own.bool_BF[view].nonzero().flatten()
                assert torch.equal(mask.bool_BF[place].nonzero().flatten(), wanted)
                assert torch.equal(mask.index_BM[place, : mask.masked_counts[place]], wanted)
    expected_loss = sum(m * loss.item() for m, loss in zip(hidden, losses, strict=True))
    assert together.loss.item() == pytest.approx(expected_loss / sum(hidden), abs=1e-5)


@pytest.mark.parametrize("norm", ["instance", "layer", "none"])
@pytest.mark.parametrize("settings", [{}, {"views": 2}, {"mask_fraction": 0.3}], ids=str)
def test_a_padded_clip_has_its_targets_its_masks_and_its_loss(
    norm: str, settings: dict[str, object]
) -> None:
    student = encoder()
    assert_exact(
        objective(student, teacher(student, norm=norm), **settings), clips(), padded(clips())
    )


@pytest.mark.parametrize(
    "geometry",
    [
        {"position_depth": 1, "position_kernel": 16},
        {"norm": "pre", "layers": 3},
        {"normalize": False},
        {"position_depth": 2, "position_kernel": 38},
    ],
    ids=str,
)
def test_padding_is_exact_in_every_geometry_that_allows_it(geometry: dict[str, object]) -> None:
    student = encoder(**geometry)
    assert_exact(objective(student, teacher(student)), clips(), padded(clips()))


def test_a_padded_clip_is_alone_for_a_teacher_of_another_view() -> None:
    student = encoder()
    target = teacher(student, sees_other_view=True, distance="cosine", predictor_dim=16)
    assert_exact(objective(student, target, views=2), clips(), padded(clips()))


def test_every_metric_of_a_padded_batch_is_that_of_its_clips_one_by_one() -> None:
    student = encoder()
    module = objective(student, teacher(student), views=2, visible_weight=0.5)
    found, expected = measured(module, padded(clips())), measured(module, *clips())
    assert {"teacher/copy_loss", "teacher/constant_loss", "teacher/target_std"} <= set(found)
    assert {"teacher/visible_loss", "codec/loss", "codec/visible_loss"} <= set(found)
    del found["loss"], expected["loss"]  # a mean over crops, not over frames
    assert found == pytest.approx(expected, rel=1e-4)


def test_padding_of_the_published_stack_leaks_into_short_clips_alone() -> None:
    student = encoder(padding="published")
    target = teacher(student)
    module, batch = objective(student, target), padded(clips())
    with torch.no_grad():
        module(batch)
        together, differences = target.computed, []
        for row, clip in enumerate(clips()):
            module(clip)
            own = target.computed[0]
            differences.append((together[row, : len(own)] - own).abs().max().item())
    longest = LENGTHS.index(max(LENGTHS))
    for row, difference in enumerate(differences):
        assert difference < 1e-4 if row == longest else difference > 1e-2


def test_what_lies_in_the_padding_does_not_matter() -> None:
    student = encoder()
    module, batch = objective(student, teacher(student)), padded(clips())
    inside = torch.arange(batch.waveform.shape[1]) < torch.tensor(LENGTHS)[:, None]
    loud = torch.where(inside, batch.waveform, 10.0 * noise(3, max(LENGTHS), seed=8))
    assert not torch.equal(loud, batch.waveform)
    expected = module(batch).loss.item()
    assert module(batch._replace(waveform=loud)).loss.item() == pytest.approx(expected, abs=1e-5)


def test_a_batch_of_which_every_clip_is_shorter_than_a_crop_is_its_clips() -> None:
    student = encoder()
    assert_exact(objective(student, teacher(student)), clips(), padded(clips(), to=16_000))


def test_the_feature_penalty_is_that_of_the_clips_and_not_of_their_padding() -> None:
    student = encoder()
    module = objective(student, teacher(student), feature_penalty=2.0)
    raw = [student.frontend(clip.waveform).raw[0] for clip in clips()]
    expected = torch.cat(raw).square().mean().item()
    assert measured(module, padded(clips()))["feature_penalty"] == pytest.approx(expected, rel=1e-4)
