import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from etude.data.errors import InputError
from etude.models.config import EncoderConfig
from etude.models.encoder import Encoder
from etude.models.hf.card import CardFacts
from etude.models.hf.export import export_encoder
from etude.models.hf.load import import_encoder
from etude.models.weights import save_encoder
from etude.probes.frozen import EncoderModel, find_model, load_model, untrained
from etude.probes.lineup import line_up

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


STOCK: dict[str, tuple[type[Any], type[Any]]] = {
    "hubert": (HubertConfig, HubertModel),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "data2vec-audio": (Data2VecAudioConfig, Data2VecAudioModel),
}


def save_stock(kind: str, folder: Path, **settings: object) -> Any:
    """A folder as transformers itself writes it."""
    config_class, model_class = STOCK[kind]
    config = config_class(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embedding_groups=4,
        **settings,
    )
    torch.manual_seed(0)
    model = model_class(config).eval()
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", STOCK)
def test_a_stock_folder_gives_transformers_own_hidden_states(kind: str, tmp_path: Path) -> None:
    stock = save_stock(kind, tmp_path)
    model = load_model(find_model(tmp_path), device=CPU)
    waveform = 0.1 * torch.randn(2, 16_000) + 0.05
    normal = (waveform - waveform.mean(dim=1, keepdim=True)) / waveform.std(
        dim=1, keepdim=True, correction=0
    )
    with torch.inference_mode():
        wanted = stock(normal, output_hidden_states=True).hidden_states
        found = model.layers(waveform)
    assert len(found) == len(wanted) == 3
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_mert_export_is_heard_as_its_encoder(tmp_path: Path) -> None:
    ours = load_model(find_model(save(tmp_path / "model")), device=CPU)
    assert isinstance(ours, EncoderModel)
    card = CardFacts(name="small", paradigm="none", trained_on=datetime.date(2025, 1, 1))
    export_encoder(ours.encoder, tmp_path / "mert", format="mert", card=card)
    mert = load_model(find_model(tmp_path / "mert"), device=CPU)
    waveform = 0.1 * torch.randn(1, 16_000)
    with torch.inference_mode():
        for theirs, expected in zip(mert.layers(waveform), ours.layers(waveform), strict=True):
            torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-4)


def test_a_fine_tuned_folder_without_a_mask_embedding_is_heard(tmp_path: Path) -> None:
    save_stock("wav2vec2", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["masked_spec_embed"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load_model(find_model(tmp_path), device=CPU).layers(torch.zeros(1, 16_000))
    del state["encoder.layers.1.final_layer_norm.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="final_layer_norm"):
        load_model(find_model(tmp_path), device=CPU)


def test_wav2vec2_is_for_listening_and_not_to_train_on(tmp_path: Path) -> None:
    save_stock("wav2vec2", tmp_path)
    with pytest.raises(ValueError, match="frozen features alone"):
        import_encoder(tmp_path)


def test_code_beside_a_foreign_folders_weights_is_not_run(tmp_path: Path) -> None:
    save_stock("wav2vec2", tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    load_model(find_model(tmp_path), device=CPU)
    assert not (tmp_path / "ran").exists()


def test_a_folder_of_transformers_has_an_untrained_control_too(tmp_path: Path) -> None:
    save_stock("data2vec-audio", tmp_path)
    found = line_up([tmp_path], references=["untrained", "log-mel"], seed=3, device=CPU)
    again = line_up([tmp_path], references=["untrained"], seed=3, device=CPU)
    assert [row.name for row, _ in found] == [tmp_path.name, "untrained", "log-mel"]
    assert found[0][0].baselines == ("untrained", "log-mel")
    waveform = 0.1 * torch.randn(1, 16_000)
    with torch.inference_mode():
        trained, fresh, same = (
            model.layers(waveform) for _, model in (found[0], found[1], again[1])
        )
    assert torch.equal(fresh[2], same[2]) and not torch.equal(fresh[2], trained[2])


@pytest.mark.parametrize("name", ["untrained", "log-mel", "untrained 2"])
def test_a_folder_that_is_called_like_a_reference_has_a_row_of_its_own(
    name: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / name)
    rows = line_up([folder], references=("untrained", "log-mel"), seed=0, device=CPU)
    assert [row.name for row, _ in rows] == [str(folder), "untrained", "log-mel"]


def test_the_same_folder_twice_is_told_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="none twice"):
        line_up([folder, Path("model")], references=(), seed=0, device=CPU)


def test_a_models_identity_is_its_weights_content_and_not_its_place(tmp_path: Path) -> None:
    first = save(tmp_path / "first")
    shutil.copytree(first, tmp_path / "copy")
    other = save(tmp_path / "other")
    identities = [
        load_model(find_model(folder), device=CPU).identity
        for folder in (first, tmp_path / "copy", other)
    ]
    assert identities[0] == identities[1] != identities[2]


def test_a_folder_of_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(find_model(tmp_path), device=CPU)
