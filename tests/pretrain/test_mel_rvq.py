"""Residual labels: each stage names what the ones before left over, and a run learns them."""

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
from training_parts import GRID, feature_settings, noise

from etude.data.errors import DataError
from etude.models.config import EncoderConfig
from etude.pretrain.clustering import ClusterReport, PartFile, fit_kmeans
from etude.pretrain.config_file import load_config
from etude.pretrain.errors import ConfigError, PreemptedError
from etude.pretrain.flops import crop_flops
from etude.pretrain.inputs import check_inputs
from etude.pretrain.label_check import check_labels
from etude.pretrain.quantizer import (
    FeatureQuantizer,
    build_features,
    load_quantizer,
    save_quantizer,
)
from etude.pretrain.targets.base import FrameContext
from etude.pretrain.targets.mel_rvq import Settings

SETTINGS = feature_settings(bins=20, n_fft=512)
STREAM = [noise(1, 8_000, seed=seed).cumsum(dim=1) * 0.02 * (1 + seed % 3) for seed in range(12)]
MODEL = EncoderConfig(
    sample_rate=GRID.sample_rate,
    conv_dims=(8,) * len(GRID.kernels),
    conv_kernels=tuple(GRID.kernels),
    conv_strides=tuple(GRID.strides),
    layers=1,
    dim=16,
    ffn_dim=32,
    heads=2,
)


def fit(stages: int | None = 3, **more: object) -> tuple[FeatureQuantizer, ClusterReport]:
    return fit_kmeans(STREAM, SETTINGS, clusters=6, iterations=8, seed=1, stages=stages, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rvq") / "rvq-logmel.safetensors"
    save_quantizer(fit()[0], path, report={})
    return path


def standardised(quantizer: FeatureQuantizer) -> Tensor:
    frames = torch.cat([build_features(SETTINGS)(each).flatten(0, 1) for each in STREAM])
    return (frames - quantizer.mean) / quantizer.scale


def test_each_stage_is_the_nearest_centroid_of_what_the_stages_before_left() -> None:
    quantizer, _ = fit()
    labels = quantizer(STREAM[0])
    assert labels.shape == (1, GRID.num_frames(8_000), 3) and labels.dtype == torch.int64
    frames = (build_features(SETTINGS)(STREAM[0])[0] - quantizer.mean) / quantizer.scale
    for frame, named in zip(frames.double(), labels[0], strict=True):
        left = frame
        for centroids, label in zip(quantizer.centroids.double(), named, strict=True):
            distances = (left - centroids).norm(dim=1)
            assert distances[label] == pytest.approx(float(distances.min()), rel=1e-5)
            left = left - centroids[label]


def test_the_first_stage_is_plain_k_means_and_each_further_one_leaves_less() -> None:
    plain, of_plain = fit(stages=None)
    quantizers, reports = zip(*(fit(stages=stages) for stages in (1, 2, 3)), strict=True)
    assert plain.stages is None
    assert torch.equal(quantizers[2].centroids[0], plain.centroids)
    assert torch.equal(quantizers[2].centroids[:2], quantizers[1].centroids)
    left = [report.inertia for report in reports]
    assert left[0] == pytest.approx(of_plain.inertia) and left[0] > 1.2 * left[1] > 1.44 * left[2]

    frames = standardised(quantizers[2])
    labels = quantizers[2].assign(torch.cat([build_features(SETTINGS)(e)[0] for e in STREAM]))
    rebuilt = sum(quantizers[2].centroids[stage][labels[:, stage]] for stage in range(3))
    assert float((frames - rebuilt).square().mean()) == pytest.approx(left[2], rel=1e-4)


@pytest.mark.parametrize("looks", [5, 13, 16, 25])
def test_a_fit_that_was_stopped_in_any_stage_ends_at_the_same_bytes(
    looks: int, tmp_path: Path
) -> None:
    save_quantizer(fit()[0], tmp_path / "whole", report={})
    part = PartFile(tmp_path / "part", {})
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked % looks == 0

    stops = 0
    while True:
        try:
            quantizer, _ = fit(part=part, stopped=stopped)
            break
        except PreemptedError:
            stops += 1
    save_quantizer(quantizer, tmp_path / "in parts", report={})
    assert stops >= 1
    assert (tmp_path / "in parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_the_target_names_the_labels_of_the_stages_it_predicts(file: Path) -> None:
    settings = Settings(kind="mel_rvq", centroids=file, stages=2, classes=6)
    target = settings.build(MODEL, seed=0)
    assert settings.head_parameters(16) == sum(each.numel() for each in target.parameters())
    waveform = noise(2, 8_000, seed=9)
    context = FrameContext(waveform, GRID.num_frames(8_000))
    found, whole = target.compute(context), fit()[0](waveform)
    assert torch.equal(found, whole[..., :2])
    hidden, right = torch.randn(2, found.shape[1], 16), target.loss
    compared = right(hidden, found, found)
    # Of two stages: two cross-entropies of six classes each, over a temperature of .1.
    assert 2 * math.log(6) * 0.5 < float(compared.loss.detach()) < 2 * math.log(6) * 6


def test_a_file_that_does_not_fit_is_told_before_any_model_is_built(
    file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"of 8 stages with 6 classes needs .* 3 stages of 6"):
        Settings(kind="mel_rvq", centroids=file, stages=8, classes=6).check(MODEL)
    with pytest.raises(ConfigError, match=r"with 1024 classes .* --clusters 1024"):
        Settings(kind="mel_rvq", centroids=file, stages=3).check(MODEL)
    save_quantizer(fit(stages=None)[0], tmp_path / "plain", report={})
    with pytest.raises(ConfigError, match="has no stages of 6 classes"):
        Settings(kind="mel_rvq", centroids=tmp_path / "plain", stages=1, classes=6).check(MODEL)
    with pytest.raises(ConfigError, match=r"fitted for other frames .* Fit it anew by `python"):
        Settings(kind="mel_rvq", centroids=file, stages=3, classes=6).check(
            EncoderConfig(sample_rate=22_050)
        )


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    corpus = make_corpus(folder)
    path = write_recipe(folder, "mert", corpus, dropout=0.0)
    command = [sys.executable, "launch/cluster.py", str(corpus), "--config", str(path)]
    command += ["--features", "logmel", "--bins", "20", "--n-fft", "512", "--stages", "3"]
    done = subprocess.run(
        [*command, "--clusters", "9"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "9 classes of logmel (20 bins, window 512), 3 stages" in done.stdout
    values = yaml.safe_load(path.read_text())
    values["objective"]["targets"]["tokens"] = {
        "kind": "mel_rvq",
        "centroids": str(corpus / "rvq-logmel.safetensors"),
        "stages": 3,
        "classes": 9,
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.usefixtures("process_group")
def test_a_run_learns_such_labels_and_shows_their_use(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    looks = ("logging.look_every_steps=10", "logging.look_crops=4")
    run(recipe, tmp_path / "run", *DDP, "data.workers=0", "train.precision=fp32", *looks)
    assert "residual labels of spectra have no phase" in caplog.text
    written = lines(tmp_path / "run")
    losses = [line["tokens/q0/loss"] for line in written if "tokens/q0/loss" in line]
    assert sum(losses[-20:]) < sum(losses[:20]) and len(losses) >= 40  # each is of few crops
    for stage in range(3):
        assert written[-1][f"tokens/q{stage}/unigram_entropy"] > 0.5


def test_their_use_is_told_before_training_and_a_constant_stage_refused(
    recipe: Path, tmp_path: Path
) -> None:
    def told(*words: str) -> list[str]:
        config = load_config(recipe, list(words))
        return list(check_labels(config, check_inputs(config, rank=0, ranks=1, device="cpu")))

    lines = told()
    assert [line.split(":")[0] for line in lines] == [f"tokens/q{stage}" for stage in range(3)]
    assert all(" of 9 labels in " in line for line in lines)

    path = Path(yaml.safe_load(recipe.read_text())["objective"]["targets"]["tokens"]["centroids"])
    quantizer = load_quantizer(path)
    quantizer.centroids[1, 1:] = 1e6
    save_quantizer(quantizer, tmp_path / "constant.safetensors", report={})
    with pytest.raises(
        DataError, match=r"targets\.tokens: label 0 makes up 100\.0% of tokens/q1's"
    ):
        told(f"objective.targets.tokens.centroids={tmp_path / 'constant.safetensors'}")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["objective.targets.tokens.stages=4"], "objective.targets.tokens: a mel_rvq target of 4"),
        (
            ["objective.targets.tokens.centroids=nowhere"],
            r"objective\.targets\.tokens: there is no file nowhere.* --stages 3 .* --out nowhere",
        ),
        (["objective.targets.tokens.stages=0"], "objective.targets.tokens.stages"),
        (["objective.targets.tokens=null", "objective.targets.logmel.kind=kmeans"], "mel_rvq"),
    ],
)
def test_mistakes_are_told_by_name(
    recipe: Path, words: list[str], told: str, tmp_path: Path
) -> None:
    if "objective.targets.tokens=null" in words:
        corpus = Path(yaml.safe_load(recipe.read_text())["data"]["corpus"])
        words = [*words, f"objective.targets.logmel.centroids={corpus / 'rvq-logmel.safetensors'}"]
    with pytest.raises(ConfigError, match=told):
        run(recipe, tmp_path / "run", *DDP, "data.workers=0", *words)


def test_its_head_is_planned_for_and_its_settings_are_read_without_torch(recipe: Path) -> None:
    config, without = (
        load_config(recipe, words) for words in ([], ["objective.targets.tokens=null"])
    )
    heads = [
        crop_flops(each.model, each.objective, samples=each.crop_samples, classes={}).heads
        for each in (config, without)
    ]
    assert heads[0] > heads[1]
    program = (
        "import sys; from pathlib import Path; from etude.pretrain.config_file import load_config;"
        f"load_config(Path({str(recipe)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0
