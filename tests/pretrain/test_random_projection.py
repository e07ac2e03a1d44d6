"""Labels of a random projection, and that a target of one file is one like any other."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from campaigns.tiny_runs import make_corpus, write_recipe
from engine_parts import DDP, lines, run
from torch import Tensor

from etude.models.config import EncoderConfig
from etude.pretrain.config_file import as_values, load_config
from etude.pretrain.errors import ConfigError
from etude.pretrain.flops import crop_flops
from etude.pretrain.metrics import Mean
from etude.pretrain.targets.base import FrameContext
from etude.pretrain.targets.random_projection import RandomProjectionTarget, Settings

MODEL = EncoderConfig(sample_rate=16_000)
SMALL = Settings(kind="random_projection", classes=37, code_dim=5, bins=20)


def target(seed: int = 3) -> RandomProjectionTarget:
    torch.manual_seed(0)
    return SMALL.build(MODEL, seed=seed)


def noise(rows: int = 3, samples: int = 16_000) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    envelope = torch.linspace(0.01, 0.3, samples)
    return envelope * torch.randn(rows, samples, generator=generator)


def labels(target: RandomProjectionTarget, waveform: Tensor) -> Tensor:
    return target.compute(FrameContext(waveform, MODEL.grid.num_frames(waveform.shape[1])))


def test_a_label_is_the_nearest_code_of_the_projected_normalised_frame() -> None:
    made, waveform = target(), noise()
    found = labels(made, waveform)
    bands = made.features(waveform).double()
    assert found.shape == bands.shape[:2] == (3, MODEL.grid.num_frames(16_000))
    for row in range(3):
        mean, deviation = bands[row].mean(dim=0), bands[row].std(dim=0, correction=0)
        for frame in (0, 7, 48):
            vector = ((bands[row, frame] - mean) / (deviation + 1e-5)) @ made.projection.double()
            distances = (vector / vector.norm() - made.codes.double()).norm(dim=1)
            assert found[row, frame] == distances.argmin()


def test_labels_follow_from_the_seed_and_not_from_loudness_or_the_rest_of_the_batch() -> None:
    waveform = noise()
    found = labels(target(), waveform)
    assert torch.equal(labels(target(), waveform), found)
    assert torch.equal(labels(target(), waveform[1:2]), found[1:2])
    assert not torch.equal(labels(target(seed=4), waveform), found)
    louder = labels(target(), 2.0 * waveform)
    assert (louder == found).float().mean() > 0.9  # but for the floor of the logarithm


def test_many_codes_are_compared_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waveform = noise()
    found = labels(target(), waveform)
    monkeypatch.setattr("etude.pretrain.targets.random_projection._MOST_SIMILARITIES", 100)
    assert torch.equal(labels(target(), waveform), found)


def test_the_loss_is_the_cross_entropy_of_its_logits() -> None:
    made = target()
    hidden, wanted = torch.randn(2, 9, MODEL.dim), torch.randint(37, (2, 9))
    compared = made.loss(hidden, wanted, wanted.roll(1))
    log_probability = made.head(hidden).detach().double().log_softmax(dim=-1)
    expected = -log_probability.gather(2, wanted[..., None]).mean()
    assert float(compared.loss.detach()) == pytest.approx(float(expected), rel=1e-6)
    right = (log_probability.argmax(dim=-1) == wanted).double().mean()
    accuracy = compared.metrics["accuracy"]
    assert isinstance(accuracy, Mean)
    assert float(accuracy.total / accuracy.count) == pytest.approx(float(right))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = write_recipe(tmp_path, "mert", make_corpus(tmp_path), dropout=0.0)
    values = yaml.safe_load(path.read_text())
    values["objective"]["targets"]["codes"] = {
        "kind": "random_projection",
        "classes": 16,
        "bins": 20,
        "n_fft": 512,
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.usefixtures("process_group")
def test_a_run_learns_such_labels(recipe: Path, tmp_path: Path) -> None:
    run(recipe, tmp_path / "run", *DDP, "data.workers=0", "train.precision=fp32")
    written = lines(tmp_path / "run")
    first, last = written[0], written[-1]
    assert first["codes/loss"] == pytest.approx(math.log(16), rel=0.2)
    assert last["codes/loss"] < first["codes/loss"]
    assert last["codes/unigram_entropy"] > 0.5 and 0.0 < last["codes/majority_rate"] < 1.0
    assert {"codes/accuracy", "codes/copy_accuracy"} <= last.keys()


def test_its_settings_are_read_and_shown_like_any_other(recipe: Path) -> None:
    config = load_config(recipe, ["objective.targets.codes.code_dim=8"])
    shown = as_values(config)["objective"]["targets"]["codes"]
    assert shown == {
        "weight": 1.0,
        "kind": "random_projection",
        "classes": 16,
        "code_dim": 8,
        "bins": 20,
        "n_fft": 512,
    }
    without = load_config(recipe, ["objective.targets.codes=null"])
    heads = [
        crop_flops(each.model, each.objective, samples=each.crop_samples, classes={}).heads
        for each in (config, without)
    ]
    assert heads[0] > heads[1]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("objective.targets.codes.clases=9", "Did you mean `classes`?"),
        ("objective.targets.codes.classes=0", "objective.targets.codes.classes"),
        ("objective.targets.codes.bins=many", "objective.targets.codes.bins"),
        ("objective.targets.codes.kind=random", "nor any of 'random_projection'"),
    ],
)
def test_mistakes_in_them_are_told_by_name(recipe: Path, word: str, told: str) -> None:
    with pytest.raises(ConfigError, match="codes") as caught:
        load_config(recipe, [word])
    assert told in str(caught.value)


def test_they_are_read_before_anything_that_a_model_is_made_of(recipe: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from etude.pretrain.config_file import load_config;"
        f"load_config(Path({str(recipe)!r})); sys.exit('etude.models.encoder' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0
