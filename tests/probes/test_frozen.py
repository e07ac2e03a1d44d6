import datetime
from pathlib import Path

import pytest
import torch

from etude.data.errors import InputError
from etude.models.config import EncoderConfig
from etude.models.encoder import Encoder
from etude.models.hf.card import CardFacts
from etude.models.hf.export import export_encoder
from etude.models.weights import save_encoder
from etude.probes.frozen import EncoderModel, find_model, load_model, untrained

CPU = torch.device("cpu")
SMALL = EncoderConfig(
    sample_rate=16_000,
    conv_dims=(16,) * 7,
    layers=2,
    dim=32,
    ffn_dim=64,
    heads=2,
    position_groups=4,
    norm="pre",
)


def save(folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_encoder(Encoder(SMALL), folder)
    return folder


def test_a_run_gives_its_newest_finished_checkpoint(tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    for name in ("step-00000090", "step-00000100", "step-00000200.tmp"):
        save(checkpoints / name)
    (checkpoints / "step-00000300").mkdir()  # nothing in it yet
    source = find_model(tmp_path / "run")
    assert source.folder == checkpoints / "step-00000100"
    assert source.name == "run@100"


def test_a_folder_without_a_model_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"encoder\.safetensors"):
        find_model(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        find_model(tmp_path / "nowhere")


def test_damaged_weights_are_the_users_to_replace(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    (folder / "encoder.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(find_model(folder), device=CPU)


def test_layers_are_deterministic_and_on_the_grid(tmp_path: Path) -> None:
    model = load_model(find_model(save(tmp_path / "model")), device=CPU)
    waveform = 0.1 * torch.randn(2, 16_000)
    with torch.inference_mode():
        layers, again = model.layers(waveform), model.layers(waveform)
    assert len(layers) == SMALL.layers + 1
    for layer, same in zip(layers, again, strict=True):
        assert layer.shape == (2, model.grid.num_frames(16_000), SMALL.dim)
        assert torch.equal(layer, same), "dropout must be off"


def test_the_untrained_encoder_has_the_same_shape_and_weights_of_its_own(tmp_path: Path) -> None:
    trained = load_model(find_model(save(tmp_path / "model")), device=CPU)
    assert isinstance(trained, EncoderModel)
    state = torch.random.get_rng_state()
    first, second = (untrained(trained, seed=0, name="untrained", device=CPU) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    weights = [model.encoder.state_dict() for model in (trained, first, second)]
    name = "frontend.projection.weight"
    assert weights[0][name].shape == weights[1][name].shape
    assert not torch.equal(weights[0][name], weights[1][name])
    assert torch.equal(weights[1][name], weights[2][name])


def test_an_exported_model_gives_the_layers_of_the_encoder(tmp_path: Path) -> None:
    ours = load_model(find_model(save(tmp_path / "model")), device=CPU)
    assert isinstance(ours, EncoderModel)
    card = CardFacts(name="small", paradigm="none", trained_on=datetime.date(2025, 1, 1))
    export_encoder(ours.encoder, tmp_path / "exported", format="hubert", card=card)
    source = find_model(tmp_path / "exported")
    assert source.format == "huggingface"
    exported = load_model(source, device=CPU)
    assert exported.grid == ours.grid
    waveform = 0.1 * torch.randn(2, 16_000)
    with torch.inference_mode():
        pairs = zip(exported.layers(waveform), ours.layers(waveform), strict=True)
        for theirs, expected in pairs:
            torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-4)


def test_a_folder_of_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(find_model(tmp_path), device=CPU)
