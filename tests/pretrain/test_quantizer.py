"""Quantiser files: what is written comes back, and what is no quantiser is refused.

And frozen encoders as features: they label like the encoder they are, and touch nothing around.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from training_parts import GRID, feature_settings, noise, small_encoder, small_quantizer

from etude.models.weights import load_encoder, save_encoder
from etude.pretrain import quantizer as quantizer_module
from etude.pretrain.errors import ConfigError
from etude.pretrain.quantizer import (
    EncoderFeatures,
    FeatureQuantizer,
    FeatureSettings,
    build_features,
    describe_encoder,
    load_quantizer,
    nearest_centroid,
    plain_float32,
    read_request,
    save_quantizer,
)
from etude.pretrain.targets.base import FrameContext
from etude.pretrain.targets.kmeans import KmeansTarget


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


def test_many_points_are_compared_in_parts_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points, centroids = noise(200, 5, seed=1), noise(11, 5, seed=2)
    at_once = nearest_centroid(points, centroids)
    monkeypatch.setattr(quantizer_module, "_ROWS", 7)
    assert torch.equal(nearest_centroid(points, centroids), at_once)


def test_labels_do_not_depend_on_the_precision_of_the_model_around() -> None:
    quantizer, waveform = small_quantizer(classes=50), noise(2, 24_000, seed=8)
    labels = quantizer(waveform)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(quantizer(waveform), labels)
            assert torch.ones(2, 2).mm(torch.ones(2, 2)).dtype == torch.bfloat16
        assert torch.get_float32_matmul_precision() == "medium"
        with pytest.raises(KeyError), plain_float32(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
            raise KeyError
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


# What a file says about itself.


def test_the_same_content_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    contents = set()
    for _ in range(10):
        save_quantizer(
            small_quantizer(), tmp_path / "again", report={"used": 7}, request={"seed": 0}
        )
        contents.add((tmp_path / "again").read_bytes())
    assert len(contents) == 1
    # Tensors start where a reader may map them.
    header = int.from_bytes(saved.read_bytes()[:8], "little")
    assert (8 + header) % 8 == 0


def test_the_hash_is_of_everything_that_decides_the_labels(tmp_path: Path) -> None:
    quantizer = small_quantizer()
    parts = {name: getattr(quantizer, name) for name in ("centroids", "mean", "scale")}
    hashes = {quantizer.content_hash}
    for name, tensor in parts.items():
        changed = tensor.clone()
        changed.view(-1)[3] = math.nextafter(float(changed.view(-1)[3]), 10.0) + 1e-6
        hashes.add(FeatureQuantizer(quantizer.settings, **{**parts, name: changed}).content_hash)
    swapped = {**parts, "mean": parts["scale"], "scale": parts["mean"]}
    hashes.add(FeatureQuantizer(quantizer.settings, **swapped).content_hash)
    hashes.add(FeatureQuantizer(feature_settings(n_fft=2048), **parts).content_hash)
    assert len(hashes) == 6
    assert small_quantizer().content_hash == quantizer.content_hash
    save_quantizer(quantizer, tmp_path / "one", report={"used": 1})
    assert load_quantizer(tmp_path / "one").content_hash == quantizer.content_hash


def test_a_file_names_its_hash_its_corpus_and_what_was_asked_for(tmp_path: Path) -> None:
    path, small = tmp_path / "kmeans.safetensors", small_quantizer()
    quantizer = FeatureQuantizer(
        small.settings,
        centroids=small.centroids,
        mean=small.mean,
        scale=small.scale,
        corpus="f1" * 32,
    )
    save_quantizer(quantizer, path, report={}, request={"hours": None, "conv_strides": (5, 2)})
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["corpus"] == "f1" * 32 and metadata["sha256"] == quantizer.content_hash
    assert read_request(path) == {"hours": None, "conv_strides": [5, 2]}
    assert load_quantizer(path).corpus == "f1" * 32


def test_a_file_of_an_earlier_version_is_read(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    del metadata["sha256"]
    save_file(load_file(saved), saved, metadata)
    assert load_quantizer(saved).corpus is None and read_request(saved) is None


def test_what_is_asked_for_is_not_read_from_other_files(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path, {"format": "pt", "request": "{}"})
    for content in (path.read_bytes(), b"", b"RIFF, but text of some length"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="is not a k-means file"):
            read_request(path)


def test_a_file_whose_content_changed_is_refused(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-2] ^= 1
    saved.write_bytes(content)
    assert "is damaged" in refusal(saved)


# An encoder's hidden states.


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "checkpoints" / "step-00000010"
    folder.mkdir(parents=True)
    save_encoder(small_encoder(seed=3, dropout=0.4, attention_dropout=0.2), folder)
    return folder


def encoder_quantizer(folder: Path, layer: int = 1, *, classes: int = 6) -> FeatureQuantizer:
    """Centroids that are states of noise."""
    settings = describe_encoder(folder, layer=layer)
    states = build_features(settings)(noise(4, 24_000, seed=5)).flatten(0, 1)
    mean, scale = states.mean(dim=0), states.std(dim=0)
    centroids = ((states[:: len(states) // classes][:classes] - mean) / scale).clone()
    return FeatureQuantizer(settings, centroids=centroids, mean=mean, scale=scale)


def states_of(folder: Path, layer: int, waveform: Tensor) -> Tensor:
    with torch.no_grad():
        return load_encoder(folder)(waveform).hidden_states[layer]


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_features_are_the_hidden_states_of_the_layer(
    norm: str, layer: int, tmp_path: Path
) -> None:
    encoder = small_encoder(norm=norm)
    with torch.no_grad():  # a norm that changes what it is given
        encoder.norm.weight.uniform_(0.5, 2.0)
    save_encoder(encoder, tmp_path)
    settings = describe_encoder(tmp_path, layer=layer)
    assert (settings.kind, settings.bins, settings.grid) == ("encoder", 32, GRID)
    waveform = noise(2, 12_100, seed=1)
    states = build_features(settings)(waveform)
    assert torch.equal(states, states_of(tmp_path, layer, waveform))
    other = states_of(tmp_path, (layer + 1) % 3, waveform)
    assert not torch.allclose(states, other, atol=1e-2)


def test_a_quantizer_of_an_encoder_comes_back_with_the_same_labels(
    encoder_folder: Path, tmp_path: Path
) -> None:
    quantizer, path = encoder_quantizer(encoder_folder), tmp_path / "kmeans.safetensors"
    save_quantizer(quantizer, path, report={})
    loaded = load_quantizer(path)
    assert loaded.settings == quantizer.settings
    waveform = noise(2, 12_000, seed=8)
    labels = quantizer(waveform)
    assert labels.shape == (2, GRID.num_frames(12_000)) and len(labels.unique()) > 3
    assert torch.equal(loaded(waveform), labels)
    states = (states_of(encoder_folder, 1, waveform) - quantizer.mean) / quantizer.scale
    search = torch.cdist(states.double(), quantizer.centroids.double()).argmin(dim=-1)
    assert torch.equal(labels, search)


def test_a_frozen_encoder_is_not_trained_saved_moved_or_counted_with_the_target(
    encoder_folder: Path,
) -> None:
    target = KmeansTarget(encoder_quantizer(encoder_folder), 8, final_dim=4, temperature=0.1)
    names = {name for name, _ in target.named_parameters()}
    assert names == {"head.projection.weight", "head.projection.bias", "head.embedding"}
    assert set(target.state_dict()) == names
    buffers = {name for name, _ in target.named_buffers()}
    assert buffers == {f"quantizer.{name}" for name in ("centroids", "mean", "scale")}
    context = FrameContext(noise(2, 12_000, seed=8), GRID.num_frames(12_000))
    labels = target.compute(context)
    target.train()  # neither does its dropout wake
    assert torch.equal(target.compute(context), labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(target.compute(context), labels)
    target.bfloat16().float()
    features = target.quantizer.features
    assert isinstance(features, EncoderFeatures)
    states = states_of(encoder_folder, 1, context.waveform)
    assert torch.equal(features(context.waveform), states)
    waveform = context.waveform.requires_grad_()
    assert not features(waveform).requires_grad


def test_long_audio_is_encoded_in_equal_pieces(
    encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = build_features(describe_encoder(encoder_folder, layer=2))
    waveform = noise(1, 60_000, seed=1)
    frames = GRID.num_frames(60_000)
    whole = features(waveform)
    monkeypatch.setattr(quantizer_module, "PIECE_SECONDS", 1.0)
    pieces = features(waveform)
    assert pieces.shape == whole.shape == (1, frames, 32)
    # 187 frames in pieces of at most 74: three, of 62, 62 and 63.
    starts = [0, 62, 124, 187]
    assert frames == 187
    for first, end in zip(starts, starts[1:], strict=False):
        samples = slice(320 * first, 320 * (end - 1) + 400 if end < frames else None)
        expected = states_of(encoder_folder, 2, waveform[:, samples])
        assert expected.shape[1] == end - first
        assert torch.allclose(pieces[:, first:end], expected, atol=1e-5)
    assert not torch.allclose(pieces, whole, atol=1e-2)
    assert torch.equal(
        features(waveform[:, :24_000]), states_of(encoder_folder, 2, waveform[:, :24_000])
    )


def test_an_encoder_that_is_missing_or_changed_is_told(
    encoder_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "kmeans.safetensors"
    save_quantizer(encoder_quantizer(encoder_folder), path, report={})
    for name in ("encoder.safetensors", "encoder.json"):
        file = encoder_folder / name
        content = file.read_bytes()
        file.unlink()
        assert f"{file} is not there any more" in refusal(path)
        file.write_bytes(content.replace(b"[", b" [", 1))
        assert f"{file} is not the file that the labels were made with" in refusal(path)
        file.write_bytes(content)
    load_quantizer(path)
    # The same numbers in other weights.
    save_encoder(small_encoder(seed=4), encoder_folder)
    assert "is not the file that the labels were made with" in refusal(path)


def test_the_hash_is_not_of_where_an_encoder_lies(encoder_folder: Path, tmp_path: Path) -> None:
    quantizer = encoder_quantizer(encoder_folder)
    moved = tmp_path / "moved"
    encoder_folder.rename(moved)
    again = encoder_quantizer(moved)
    assert again.settings != quantizer.settings
    assert again.content_hash == quantizer.content_hash
    parts = {name: getattr(again, name) for name in ("centroids", "mean", "scale")}
    hashes = {
        FeatureQuantizer(describe_encoder(moved, layer=layer), **parts).content_hash
        for layer in (0, 1, 2)
    }
    assert len(hashes) == 3 and again.content_hash in hashes


def test_no_encoder_and_no_such_layer_are_refused(encoder_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has 2 layers: take 0 .* to 2"):
        describe_encoder(encoder_folder, layer=3)
    with pytest.raises(ConfigError, match="cannot be used"):
        describe_encoder(tmp_path, layer=0)
    (encoder_folder / "encoder.json").write_text("{}}")
    with pytest.raises(ConfigError, match="cannot be used"):
        describe_encoder(encoder_folder, layer=0)


def test_features_of_one_kind_do_not_have_settings_of_the_other(encoder_folder: Path) -> None:
    spectral = feature_settings().model_dump()
    learned = describe_encoder(encoder_folder, layer=1).model_dump()
    with pytest.raises(ValidationError, match="needs n_fft alone"):
        FeatureSettings(**{**spectral, "n_fft": None})
    with pytest.raises(ValidationError, match="needs n_fft alone"):
        FeatureSettings(**{**spectral, "encoder": learned["encoder"]})
    with pytest.raises(ValidationError, match="needs encoder and no n_fft"):
        FeatureSettings(**{**learned, "n_fft": 1024})
    with pytest.raises(ValidationError, match="needs encoder and no n_fft"):
        FeatureSettings(**{**learned, "encoder": None})
