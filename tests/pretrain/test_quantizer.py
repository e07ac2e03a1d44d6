"""Quantiser files: what is written comes back, and what is no quantiser is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_parts import feature_settings, noise, small_quantizer

from etude.pretrain.errors import ConfigError
from etude.pretrain.quantizer import (
    FeatureQuantizer,
    build_features,
    load_quantizer,
    nearest_centroid,
    save_quantizer,
)


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_quantizer(path)
    assert caught.value.exit_status == 2
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "kmeans.safetensors"
    save_quantizer(small_quantizer(), path, report={"inertia": 0.25, "used": 7})
    return path


@pytest.mark.parametrize(("kind", "bins", "n_fft"), [("logmel", 20, 1024), ("chroma", 12, 4096)])
def test_a_saved_quantizer_comes_back_with_the_same_settings_and_labels(
    kind: str, bins: int, n_fft: int, tmp_path: Path
) -> None:
    settings = feature_settings(kind, bins=bins, n_fft=n_fft)
    quantizer = small_quantizer(settings=settings)
    path = tmp_path / "kmeans.safetensors"
    save_quantizer(quantizer, path, report={})
    loaded = load_quantizer(path)
    assert loaded.settings == settings and loaded.num_classes == 7
    for name in ("centroids", "mean", "scale"):
        assert torch.equal(getattr(loaded, name), getattr(quantizer, name))
    waveform = noise(2, 12_000, seed=8)
    labels = quantizer(waveform)
    assert torch.equal(loaded(waveform), labels) and len(labels.unique()) > 3


def test_the_file_tells_without_this_code_what_it_is(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == {"centroids", "mean", "scale"}
    assert metadata["format"] == "etude-kmeans-1"
    assert json.loads(metadata["report"]) == {"inertia": 0.25, "used": 7}
    described = json.loads(metadata["features"])
    assert (described["kind"], described["bins"], described["n_fft"]) == ("logmel", 20, 1024)
    assert described["sample_rate"] == 24_000
    assert described["conv_strides"] == [5, 2, 2, 2, 2, 2, 2]


def test_a_missing_file_is_told_with_the_command_that_makes_one(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    message = refusal(path)
    assert "there is no k-means file" in message
    assert "launch/cluster.py" in message and f"--out {path}" in message
    assert "there is no k-means file" in refusal(tmp_path)


def test_safetensors_of_something_else_are_refused(saved: Path) -> None:
    save_file({"weight": torch.zeros(3, 3)}, saved)
    assert "is not a k-means file of launch/cluster.py" in refusal(saved)
    save_file({"weight": torch.zeros(3, 3)}, saved, {"format": "pt", "features": "{}"})
    assert "is not a k-means file of launch/cluster.py" in refusal(saved)


@pytest.mark.parametrize("name", ["centroids", "mean", "scale"])
def test_a_quantizer_that_lacks_a_tensor_is_refused(saved: Path, name: str) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(saved)
    save_file(tensors, saved, metadata)
    load_quantizer(saved)
    del tensors[name]
    save_file(tensors, saved, metadata)
    assert name in refusal(saved)


def test_a_file_that_is_cut_or_no_safetensors_at_all_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for broken in (content[:-10], content[:4], b"", b"not safetensors, but text of some length"):
        saved.write_bytes(broken)
        assert "Fit it anew" in refusal(saved)


def test_the_nearest_centroid_is_what_a_search_finds() -> None:
    points, centroids = noise(200, 5, seed=1), noise(11, 5, seed=2) + 0.05
    search = [
        min(range(11), key=lambda k: float((point - centroids[k]).double().square().sum()))
        for point in points
    ]
    assert nearest_centroid(points, centroids).tolist() == search
    assert len(set(search)) > 5


def test_features_are_standardised_before_they_are_compared() -> None:
    settings = feature_settings(bins=2)
    quantizer = FeatureQuantizer(
        settings,
        centroids=torch.tensor([[0.0, 0.0], [0.0, 1.0]]),
        mean=torch.tensor([5.0, -3.0]),
        scale=torch.tensor([1.0, 10.0]),
    )
    # 4 above the mean is 0.4 deviations: nearer to centroid 0; 6 above is nearer to 1.
    features = torch.tensor([[[5.0, 1.0], [5.0, 3.0]], [[9.0, 3.0], [9.0, 1.0]]])
    assert quantizer.assign(features).tolist() == [[0, 1], [1, 0]]


def test_labels_lie_on_the_encoders_frames() -> None:
    settings = feature_settings()
    quantizer = small_quantizer(settings=settings)
    for samples, frames in ((400, 1), (719, 1), (720, 2), (24_000, 74)):
        waveform = noise(1, samples, seed=4)
        assert quantizer(waveform).shape == (1, frames)
        assert build_features(settings)(waveform).shape == (1, frames, 20)
