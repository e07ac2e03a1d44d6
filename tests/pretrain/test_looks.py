"""What a look shows is what is there: losses, spectra, sound, counts against independent ones."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import soundfile
import torch
import yaml
from codec_weights import fitted
from engine_parts import lines, run
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from training_parts import SMALL, audio_batch, noise, small_encoder, small_quantizer

from etude.data.batch import AudioBatch, scaled
from etude.data.pipeline import held_out_batches
from etude.data.shards import Corpus
from etude.models.spectral import ConstantQ
from etude.pretrain.codec import transformers_name, untrained_model
from etude.pretrain.codec_decoder import TokenDecoder, decoder_name
from etude.pretrain.config_file import load_config
from etude.pretrain.engine_ddp import DdpEngine
from etude.pretrain.errors import ConfigError
from etude.pretrain.inputs import check_inputs
from etude.pretrain.looks.album import Album
from etude.pretrain.looks.hook import choose
from etude.pretrain.looks.judging import Judged
from etude.pretrain.looks.pictures import STRIP, compared, png
from etude.pretrain.looks.usage import Usage
from etude.pretrain.masked_prediction import MaskedPrediction
from etude.pretrain.targets.kmeans import KmeansTarget
from etude.pretrain.trainer import Trainer

pytestmark = pytest.mark.usefixtures("process_group")

STEPS, CROPS = 4, 3
BINS = {"bins": 24, "bins_per_octave": 12, "fmin": 220.0}


@pytest.fixture(scope="module")
def recipe(encoded: Corpus, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens, a spectrum, labels that need no file: on crops of a second, three of them judged."""
    folder = tmp_path_factory.mktemp("looks")
    codec = {"kind": "codec", "codebooks": 4, "final_dim": 8, "weights": str(weights)}
    values = {
        "run": {"dir": str(folder / "unused")},
        "data": {"corpus": str(encoded.root), "crop_seconds": 1.0, "workers": 0},
        "model": SMALL,
        "objective": {
            "targets": {
                "codec": codec,
                "cqt": {"kind": "cqt", "scale": "log", **BINS},
                "random": {"kind": "random_projection", "classes": 32},
            }
        },
        "train": {
            **{"max_steps": STEPS, "global_batch": 2, "micro_batch": 2},
            **{"precision": "fp32", "engine": "ddp"},
        },
        "optim": {"lr": 0.001, "warmup_steps": 0},
        "logging": {
            **{"every_steps": 1, "valid_every_steps": 1000},
            **{"look_every_steps": 3, "look_crops": 99},
        },
        "health": {"every_steps": 0, "min_target_std": 0.0, "min_prediction_std": 0.0},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


class Looked:
    """A run with a look at its end, and what it looked at, computed anew."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self.folder = folder
        trainer: Trainer = run(recipe, folder)
        assert isinstance(trainer.engine, DdpEngine)
        objective = trainer.engine.objective.eval()
        assert isinstance(objective, MaskedPrediction)
        self.objective = objective
        inputs = check_inputs(load_config(recipe), rank=0, ranks=1, device="cpu")
        assert inputs.valid is not None
        self.batches: list[AudioBatch] = list(
            held_out_batches(inputs.valid, crops=99, micro_batch=1, rank=0, ranks=1)
        )
        assert len(self.batches) >= 2
        self.keys = [inputs.valid.parts[0].split.key(int(c)) for c in inputs.valid.parts[0].clips]
        self.losses = [trainer.engine.evaluate(b).loss.item() for b in self.batches]
        self.look = folder / "looks" / f"step-{STEPS:08d}"

    def json(self, name: str) -> Any:
        return json.loads((self.look / f"{name}.json").read_text())

    def mask(self, crop: int) -> Tensor:
        frames = self.objective.encoder.grid.num_frames(24_000)
        return self.objective.mask(self.batches[crop], frames).bool_BF[0]


@pytest.fixture(scope="module")
def looked(recipe: Path) -> Looked:
    return Looked(recipe, recipe.parent / "run")


def sound(path: Path) -> Any:
    samples, rate = soundfile.read(path, dtype="int16")
    assert rate == 24_000 and soundfile.info(path).subtype == "PCM_16"
    return samples


def test_the_worst_and_the_best_clip_are_those_of_the_highest_and_the_lowest_loss(
    looked: Looked,
) -> None:
    crops = looked.json("crops")
    assert [crop["clip"] for crop in crops] == looked.keys
    assert [crop["loss"] for crop in crops] == pytest.approx(looked.losses, rel=1e-5)
    last = lines(looked.folder)[-1]
    assert np.mean([crop["loss"] for crop in crops]) == pytest.approx(last["valid/loss"], rel=1e-5)
    shown = {label: number for number, crop in enumerate(crops) for label in crop["shown_as"]}
    worst, best = int(np.argmax(looked.losses)), int(np.argmin(looked.losses))
    assert shown == {"first-1": 0, "worst-1": worst, "best-1": best}
    for label, number in shown.items():
        heard = sound(looked.look / f"{label}.wav")
        assert np.array_equal(heard, looked.batches[number].waveform[0].numpy())


def test_a_picture_has_the_spectrum_above_and_the_prediction_where_frames_were_masked(
    looked: Looked,
) -> None:
    waveform = scaled(looked.batches[0].waveform)
    transform = ConstantQ(looked.objective.encoder.grid, scale="log", **BINS)  # type: ignore[arg-type]
    truth_FC = transform(waveform)[0]
    mask_F = looked.mask(0)
    with torch.no_grad():
        features = looked.objective.encoder.frontend(waveform)
        hidden = looked.objective.encoder.context(features.projected, mask=mask_F[None]).last
        target = looked.objective.targets["cqt"]
        predicted_FC = target.head(hidden)[0]  # type: ignore[operator]
    low, high = np.percentile(truth_FC.numpy(), (1, 99))

    def colours(values_FC: Tensor) -> Any:
        level = np.clip((values_FC.numpy() - low) / (high - low), 0, 1)
        return matplotlib.colormaps["magma"](level, bytes=True)[..., :3].astype(int)

    picture = (imread(looked.look / "first-1-cqt.png")[..., :3] * 255).round().astype(int)
    half = (len(picture) - STRIP) // 2
    scale = half // BINS["bins"]
    above = picture[:half][::-scale][: int(BINS["bins"])].transpose(1, 0, 2)
    below = picture[half + STRIP :][::-scale][: int(BINS["bins"])].transpose(1, 0, 2)
    assert np.array_equal(above, colours(truth_FC))
    assert np.array_equal(below[~mask_F], colours(truth_FC)[~mask_F])
    # Other sums of the same numbers may round to the next colour.
    assert np.abs(below - colours(predicted_FC))[mask_F].max() <= 4
    assert np.abs(below - above)[mask_F].max() > 20
    strip = picture[half : half + STRIP, :, 0]
    assert np.array_equal(strip == 255, np.broadcast_to(mask_F, strip.shape))


def test_tokens_sound_as_the_codec_itself_decodes_them(looked: Looked) -> None:
    theirs = untrained_model(seed=1)
    theirs.load_state_dict(fitted()[0])
    theirs.eval()
    frames = looked.objective.encoder.grid.num_frames(24_000)
    codes_FK = looked.batches[0].codes["encodec_24khz"][0, :frames, :4]
    filled_FK = codes_FK.clone()
    _, guesses = looked.objective.guess(
        looked.batches[0]._replace(waveform=scaled(looked.batches[0].waveform))
    )
    mask_F = looked.mask(0)
    filled_FK[mask_F] = guesses["codec"].predicted_BF[0][mask_F]
    assert not torch.equal(filled_FK, codes_FK)
    for name, tokens in (("target", codes_FK), ("predicted", filled_FK)):
        with torch.no_grad():
            expected = theirs.decode([(tokens.T[None], None)])[0, 0]
        expected = (expected * 32768).round().clamp(-32768, 32767)
        heard = sound(looked.look / f"first-1-codec-{name}.wav")
        assert len(heard) == frames * 320
        assert np.abs(heard - expected.numpy()).max() <= 1


def test_usage_counts_the_stored_labels_and_the_guesses_of_masked_frames(looked: Looked) -> None:
    stored = []
    guessed = []
    for number, batch in enumerate(looked.batches):
        mask_F = looked.mask(number)
        stored.append(batch.codes["encodec_24khz"][0, : len(mask_F), :4][mask_F])
        _, guesses = looked.objective.guess(batch._replace(waveform=scaled(batch.waveform)))
        guessed.append(guesses["codec"].predicted_BF[0][mask_F])
    counts = looked.json("usage")["codec"]
    last = next(line for line in lines(looked.folder)[::-1] if "look/seconds" in line)
    for k in range(4):
        target_N = torch.cat(stored)[:, k]
        assert counts["target"][k] == torch.bincount(target_N, minlength=1024).tolist()
        guesses_N = torch.cat(guessed)[:, k]
        assert counts["predicted"][k] == torch.bincount(guesses_N, minlength=1024).tolist()
        used = len(set(target_N.tolist()))
        assert last[f"look/codec/q{k}/dead_targets"] == 1024 - used
        assert 1 < last[f"look/codec/q{k}/target_perplexity"] <= used
    labels = np.array(looked.json("usage")["random"]["target"])
    assert labels.shape == (1, 32) and labels.sum() == sum(map(len, stored))
    assert last["look/random/dead_targets"] == (labels == 0).sum()


def test_a_model_that_never_learns_a_class_has_it_dead_and_even_use_has_its_number() -> None:
    usage = Usage(4)
    usage.add(torch.tensor([0, 1, 2, 0]), torch.tensor([0, 0, 0, 0]))
    usage.add(torch.tensor([1, 2]), torch.tensor([0, 0]))
    assert usage.target_KV.tolist() == [[2, 2, 2, 0]]
    found = usage.metrics()
    assert found == {
        "target_perplexity": pytest.approx(3.0),
        "predicted_perplexity": pytest.approx(1.0),
        "dead_targets": 1.0,
        "dead_predictions": 3.0,
    }


def test_the_guesses_of_a_label_target_are_what_its_accuracy_counts() -> None:
    target = KmeansTarget(small_quantizer(), 32, final_dim=8, temperature=0.1)
    module = MaskedPrediction(
        small_encoder(),
        {"logmel": target},
        weights={"logmel": 1.0},
        seed=0,
        mask_prob=0.8,
        mask_span=5,
    ).eval()
    batch = audio_batch(noise(2, 24_000))
    mask_BF, guesses = module.guess(batch)
    right = (guesses["logmel"].target_BF == guesses["logmel"].predicted_BF)[mask_BF]
    with torch.no_grad():
        accuracy = module(batch).metrics["logmel/accuracy"]
    assert int(right.sum()) == round(float(accuracy.total)) > 0  # type: ignore[union-attr]


def test_looks_come_when_they_are_due_and_at_the_end_and_training_is_the_same(
    looked: Looked, recipe: Path, tmp_path: Path
) -> None:
    looks = [line["step"] for line in lines(looked.folder) if "look/seconds" in line]
    assert looks == [3, STEPS]
    assert sorted(path.name for path in looked.look.parent.iterdir()) == [
        f"step-{step:08d}" for step in looks
    ]
    run(recipe, tmp_path, "logging.look_every_steps=0")
    plain = [line["loss"] for line in lines(tmp_path)]
    assert plain == [line["loss"] for line in lines(looked.folder) if "loss" in line]
    assert not (tmp_path / "looks").exists()


def test_tensorboard_has_the_same_pictures_and_sounds(looked: Looked) -> None:
    events = EventAccumulator(
        str(looked.folder / "tensorboard"), size_guidance={"images": 0, "audio": 0}
    ).Reload()
    image = events.Images("look/first-1-cqt")[-1]
    assert image.step == STEPS
    shown = imread(io.BytesIO(image.encoded_image_string))[..., :3]
    assert np.array_equal(shown, imread(looked.look / "first-1-cqt.png")[..., :3])
    audio = events.Audio("look/worst-1")[-1]
    heard, rate = soundfile.read(io.BytesIO(audio.encoded_audio_string), dtype="int16")
    assert rate == 24_000
    assert np.abs(heard.astype(int) - sound(looked.look / "worst-1.wav")).max() <= 1


def test_tokens_without_weights_are_silent_which_is_said_once(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run(recipe, tmp_path, "objective.targets.codec.weights=null")
    said = [r for r in caplog.records if "not made audible" in r.getMessage()]
    assert len(said) == 1 and "`weights` are not given" in said[0].getMessage()
    look = tmp_path / "looks" / f"step-{STEPS:08d}"
    assert (look / "first-1.wav").is_file() and not list(look.glob("*codec*.wav"))


def test_a_file_of_transformers_sounds_the_same_and_one_without_decoder_is_refused(
    tmp_path: Path, weights: Path
) -> None:
    tensors = fitted()[0]
    codes = torch.randint(1024, (30, 8), generator=torch.Generator().manual_seed(0))
    expected = TokenDecoder(weights)(codes)
    theirs = {
        (decoder_name if name.startswith("decoder.") else transformers_name)(name): tensor
        for name, tensor in tensors.items()
        if name.startswith(("decoder.", "encoder.")) or name.endswith("._codebook.embed")
    }
    torch.save(theirs, tmp_path / "theirs.pt")
    assert torch.equal(TokenDecoder(tmp_path / "theirs.pt")(codes), expected)

    half = {name: tensor for name, tensor in tensors.items() if not name.startswith("decoder.")}
    torch.save(half, tmp_path / "half.pt")
    with pytest.raises(ConfigError, match="half.pt has no decoder"):
        TokenDecoder(tmp_path / "half.pt")(codes)


def test_a_look_that_cannot_be_written_is_told_and_training_goes_on(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "looks").touch()
    with caplog.at_level(logging.WARNING):
        run(recipe, tmp_path)
    assert "the look of update 3 could not be written" in caplog.text
    failed = [line["step"] for line in lines(tmp_path) if "look/failed" in line]
    assert failed == [3, STEPS] and max(line["step"] for line in lines(tmp_path)) == STEPS


def test_a_full_disk_is_an_error_of_the_disk_and_leaves_no_draft(tmp_path: Path) -> None:
    album = Album(tmp_path / "step-1", 1, None)
    (tmp_path / "step-1.tmp" / "noise.wav").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        album.sound("noise", torch.zeros(100_000, dtype=torch.int16), 16_000)
    album.discard()
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_no_number_is_the_worst() -> None:
    def judged(loss: float) -> Judged:
        empty = torch.zeros(0)
        return Judged("clip", "corpus", 0.0, loss, empty, 24_000, empty, {})

    crops = [judged(loss) for loss in (2.0, float("nan"), 1.0, 3.0)]
    chosen = choose(crops, 2)
    assert [chosen[f"worst-{place}"] for place in (1, 2)] == [crops[1], crops[3]]
    assert [chosen[f"best-{place}"] for place in (1, 2)] == [crops[2], crops[0]]
    assert [chosen[f"first-{place}"] for place in (1, 2)] == crops[:2]


def test_a_picture_of_silence_can_be_drawn() -> None:
    pixels = compared(torch.zeros(9, 5), torch.ones(9, 5), torch.arange(9) % 2 == 0)
    assert pixels.shape == (2 * 120 + STRIP, 9, 3) and png(pixels).startswith(b"\x89PNG")
