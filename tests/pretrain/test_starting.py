"""`init_from`: weights of a run, of a Hugging Face folder, of a fairseq checkpoint."""

import json
import pickle
import shutil
from argparse import Namespace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from training_parts import random_encoder, small_encoder
from transformers import Data2VecAudioConfig, Data2VecAudioModel, HubertConfig, HubertModel

from etude.data.errors import InputError
from etude.models.config import EncoderConfig
from etude.models.encoder import Encoder
from etude.models.hf.card import CardFacts
from etude.models.hf.config import Format
from etude.models.hf.export import export_encoder
from etude.models.weights import save_encoder
from etude.pretrain.errors import ConfigError
from etude.pretrain.starting import load_start

STACK = {"conv_norm": "layer", "position_depth": 3, "position_kernel": 9, "normalize": True}
EXPORTS: list[tuple[Format, dict[str, object]]] = [
    ("hubert", {}),
    ("hubert", {"norm": "pre", "conv_norm": "layer"}),
    ("mert", {"norm": "pre"}),
    ("data2vec", STACK),
]


def exported(folder: Path, format: Format = "hubert", **settings: object) -> Encoder:
    encoder = random_encoder(**settings)
    card = CardFacts(name="tiny", paradigm="none", trained_on=date(2026, 1, 1))
    export_encoder(encoder, folder, format=format, card=card)
    return encoder


def assert_same(state: Any, encoder: Encoder) -> None:
    assert state.keys() == encoder.state_dict().keys()
    for name, value in encoder.state_dict().items():
        assert torch.equal(state[name], value), name


# Runs and Hugging Face folders.


def test_another_runs_encoder(tmp_path: Path) -> None:
    encoder = random_encoder()
    folder = tmp_path / "run" / "checkpoints" / "step-00000020"
    folder.mkdir(parents=True)
    save_encoder(encoder, folder)
    start = load_start(tmp_path / "run", encoder.config)
    assert_same(start.state, encoder)
    (line,) = start.account
    assert f"{len(encoder.state_dict())} tensors are those of {folder}" in line
    assert "Heads, optimizer and learning rate start anew" in line


@pytest.mark.parametrize(("format", "settings"), EXPORTS)
def test_an_export_comes_back_bit_for_bit(
    tmp_path: Path, format: Format, settings: dict[str, object]
) -> None:
    encoder = exported(tmp_path / "out", format, **settings)
    assert_same(load_start(tmp_path / "out", encoder.config).state, encoder)


@pytest.mark.parametrize(("format", "settings"), EXPORTS)
def test_weights_in_the_released_models_file_come_back_too(
    tmp_path: Path, format: Format, settings: dict[str, object]
) -> None:
    """The released models are ``pytorch_model.bin`` with the older names of weight norm."""
    encoder = exported(tmp_path / "out", format, **settings)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    old = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in weights.items()
    }
    torch.save(old, tmp_path / "out" / "pytorch_model.bin")
    (tmp_path / "out" / "model.safetensors").unlink()
    assert_same(load_start(tmp_path / "out", encoder.config).state, encoder)


@pytest.mark.parametrize("stable", [False, True])
def test_a_hubert_that_transformers_made_is_the_same_encoder(tmp_path: Path, stable: bool) -> None:
    torch.manual_seed(0)
    config = HubertConfig(
        conv_dim=(16,) * 7,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        do_stable_layer_norm=stable,
    )
    model = HubertModel(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"sampling_rate": 24_000, "do_normalize": False})
    )
    encoder = small_encoder(norm="pre" if stable else "post").eval()
    encoder.load_state_dict(load_start(tmp_path, encoder.config).state)
    waveform = 0.1 * torch.randn(2, 24_000, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours = encoder(waveform).hidden_states
        theirs = model(waveform, output_hidden_states=True).hidden_states
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-4 * max(1.0, float(other.abs().max()))


def test_the_released_music2vecs_path_for_a_vocabulary_is_tolerated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Data2VecAudioConfig(
        conv_dim=(16,) * 7,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_conv_pos_embeddings=3,
        conv_pos_kernel_size=3,
        num_conv_pos_embedding_groups=4,
    )
    Data2VecAudioModel(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": "/some/path"}))
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"sampling_rate": 24_000, "do_normalize": True})
    )
    encoder = small_encoder(**STACK)
    encoder.load_state_dict(load_start(tmp_path, encoder.config).state)


def test_another_level_of_the_waveform_is_told_and_no_hindrance(tmp_path: Path) -> None:
    encoder = exported(tmp_path / "out", conv_norm="layer", normalize=True)
    wanted = encoder.config.model_copy(update={"normalize": False})
    account = load_start(tmp_path / "out", wanted).account
    assert "hears waveforms at mean 0 and variance 1, this run as they are" in account[1]


def test_weights_of_another_shape_are_refused_with_what_differs(tmp_path: Path) -> None:
    encoder = exported(tmp_path / "out")
    wanted = EncoderConfig.model_validate({**encoder.config.model_dump(), "dim": 64, "layers": 3})
    with pytest.raises(ConfigError, match=r"dim \(there 32, here 64\); layers \(there 2, here 3\)"):
        load_start(tmp_path / "out", wanted)


@pytest.mark.parametrize("name", ["nowhere", "../nowhere/at/all", "a b/c"])
def test_nothing_is_looked_up_that_cannot_be_a_model(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="there is no"):
        load_start(Path(name), small_encoder().config)


def test_a_hub_name_that_cannot_be_had_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="no-one/such-a-model cannot be had"):
        load_start(Path("no-one/such-a-model"), small_encoder().config)


# Damaged folders.


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    encoder = exported(tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    del weights["encoder.layers.1.final_layer_norm.bias"]
    save_file(weights, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"encoder\.layers\.1\.final_layer_norm\.bias"):
        load_start(tmp_path / "out", encoder.config)


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    encoder = exported(tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    weights["encoder.layer_norm.bias"] = torch.zeros(31)
    save_file(weights, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    wrong = r"encoder\.layer_norm\.bias in .* has another shape than \(32,\)"
    with pytest.raises(ConfigError, match=wrong):
        load_start(tmp_path / "out", encoder.config)


@pytest.mark.parametrize("key", ["do_stable_layer_norm", "num_attention_heads", "conv_stride"])
def test_a_missing_setting_is_named_and_not_guessed(tmp_path: Path, key: str) -> None:
    encoder = exported(tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    values = json.loads(path.read_text())
    del values[key]
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=f"must say {key}"):
        load_start(tmp_path / "out", encoder.config)


class _Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, (str(self._folder),)


def test_a_pickle_that_would_execute_is_refused(tmp_path: Path) -> None:
    encoder = exported(tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    torch.save({"weight": _Payload(tmp_path / "ran")}, tmp_path / "out" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_start(tmp_path / "out", encoder.config)
    assert not (tmp_path / "ran").exists()


def test_the_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    encoder = exported(tmp_path / "out", "mert")
    for name in ("modeling_MERT.py", "configuration_MERT.py"):
        (tmp_path / "out" / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert_same(load_start(tmp_path / "out", encoder.config).state, encoder)
    assert not (tmp_path / "ran").exists()


# fairseq checkpoints.

NAMES = (
    ("frontend.conv.layers.{}.conv.", "feature_extractor.conv_layers.{}.0."),
    ("frontend.layer_norm.", "layer_norm."),
    ("frontend.projection.", "post_extract_proj."),
    ("norm.", "encoder.layer_norm."),
    ("layers.{}.attention.output_proj.", "encoder.layers.{}.self_attn.out_proj."),
    ("layers.{}.attention.", "encoder.layers.{}.self_attn."),
    ("layers.{}.attention_norm.", "encoder.layers.{}.self_attn_layer_norm."),
    ("layers.{}.ffn.inner_proj.", "encoder.layers.{}.fc1."),
    ("layers.{}.ffn.output_proj.", "encoder.layers.{}.fc2."),
    ("layers.{}.ffn_norm.", "encoder.layers.{}.final_layer_norm."),
    ("frontend.conv.layers.{}.group_norm.", "feature_extractor.conv_layers.{}.2."),
    ("frontend.conv.layers.{}.layer_norm.", "feature_extractor.conv_layers.{}.2.1."),
    ("positions.conv.", "encoder.pos_conv.0."),
    ("positions.layers.{}.conv.", "encoder.pos_conv.{}.0."),
)


def fairseq_names(encoder: Encoder) -> dict[str, Tensor]:
    """The encoder's weights as fairseq calls them."""
    renamed = {"mask_emb": encoder.mask_embedding.detach()}
    for name, value in encoder.state_dict().items():
        for number in range(8):
            for ours, theirs in NAMES:
                if name.startswith(ours.format(number)):
                    end = name.removeprefix(ours.format(number))
                    renamed.setdefault(theirs.format(number) + end, value)
                    break
            else:
                continue
            break
    assert len(renamed) == len(encoder.state_dict())
    return renamed


def save_fairseq(path: Path, encoder: Encoder, **extra: object) -> None:
    """As fairseq's trainer writes: settings objects, optimizer, and what belongs to pretraining."""
    model = fairseq_names(encoder)
    model["final_proj.weight"] = torch.zeros(4, 4)
    model["label_embs_concat"] = torch.zeros(5, 4)
    model["encoder_cqt_model.fc.weight"] = torch.zeros(2, 2)
    content = {
        "args": Namespace(arch="mert"),
        "cfg": {"model": Namespace(layers=2)},
        "model": {name: value.half() for name, value in model.items()},
        "last_optimizer_state": {"step": 3},
        **extra,
    }
    torch.save(content, path)


@pytest.mark.parametrize(
    "settings", [{}, {"norm": "pre", "conv_norm": "layer"}, STACK], ids=["95m", "layer", "stack"]
)
def test_a_fairseq_checkpoint_gives_the_encoder_and_says_what_it_left(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    encoder = random_encoder(**settings)
    save_fairseq(tmp_path / "old.pt", encoder)
    start = load_start(tmp_path / "old.pt", encoder.config)
    assert start.state.keys() == encoder.state_dict().keys()
    for name, value in encoder.state_dict().items():
        assert torch.equal(start.state[name], value.half().float()), name
    (line,) = start.account
    assert "Left in the file: encoder_cqt_model, final_proj, label_embs_concat" in line


def test_nothing_in_a_fairseq_checkpoint_is_executed(tmp_path: Path) -> None:
    encoder = random_encoder()
    save_fairseq(tmp_path / "old.pt", encoder, task_state=_Payload(tmp_path / "ran"))
    load_start(tmp_path / "old.pt", encoder.config)
    assert not (tmp_path / "ran").exists()
    # A reader that trusts the file does run it.
    torch.load(tmp_path / "old.pt", weights_only=False)
    assert (tmp_path / "ran").is_dir()


def test_a_fairseq_checkpoint_of_another_model_is_refused_with_the_tensor(tmp_path: Path) -> None:
    save_fairseq(tmp_path / "old.pt", random_encoder(ffn_dim=64))
    with pytest.raises(
        ConfigError, match=r"has the shape \(64, 32\), but model makes it \(48, 32\)"
    ):
        load_start(tmp_path / "old.pt", small_encoder().config)
    save_fairseq(tmp_path / "short.pt", random_encoder(layers=1))
    with pytest.raises(ConfigError, match=r"lacks layers\.1\."):
        load_start(tmp_path / "short.pt", small_encoder().config)
    save_fairseq(tmp_path / "stack.pt", random_encoder(**STACK))
    with pytest.raises(ConfigError, match=r"encoder\.pos_conv"):
        load_start(tmp_path / "stack.pt", small_encoder().config)


@pytest.mark.parametrize("content", [b"torn", pickle.dumps({"model": {}})])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.pt"):
        load_start(tmp_path / "x.pt", small_encoder().config)


def test_a_checkpoint_without_a_model_is_refused(tmp_path: Path) -> None:
    torch.save({"state": 3}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="under the key `model`"):
        load_start(tmp_path / "x.pt", small_encoder().config)


def test_a_moved_folder_is_still_the_same(tmp_path: Path) -> None:
    encoder = exported(tmp_path / "out", "mert")
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    assert_same(load_start(tmp_path / "elsewhere", encoder.config).state, encoder)
