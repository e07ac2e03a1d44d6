"""An encoder comes back from disk as it was, and what does not fit is an error that says so."""

import json
from pathlib import Path

import pytest
import torch
from training_parts import noise, small_encoder

from etude.models.encoder import Encoder
from etude.models.weights import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    load_encoder,
    load_encoder_config,
    save_encoder,
)

KINDS: dict[str, dict[str, object]] = {
    "mert-95m": {},
    "mert-330m": {"norm": "pre", "sample_rate": 16_000},
    "music2vec": {"conv_norm": "layer", "position_depth": 5, "position_kernel": 95},
    "logmel": {"frontend": "logmel", "logmel_bins": 20, "dropout": 0.3},
}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Encoder, Path]:
    encoder = small_encoder()
    save_encoder(encoder, tmp_path)
    return encoder, tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_encoder_comes_back_bit_by_bit(tmp_path: Path, kind: str) -> None:
    encoder = small_encoder(seed=3, **KINDS[kind])
    save_encoder(encoder, tmp_path)
    torch.manual_seed(99)  # whatever was drawn since
    back = load_encoder(tmp_path)
    assert back.config == encoder.config == load_encoder_config(tmp_path)
    state = encoder.state_dict()
    assert back.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in back.state_dict().items())
    with torch.inference_mode():
        assert torch.equal(back(noise(1, 4_000)).last, encoder.eval()(noise(1, 4_000)).last)


def test_a_loaded_encoder_does_not_drop_out(tmp_path: Path) -> None:
    encoder = small_encoder(dropout=0.5).train()
    save_encoder(encoder, tmp_path)
    back = load_encoder(tmp_path)
    assert encoder.training and not any(module.training for module in back.modules())
    assert torch.equal(back(noise(1, 4_000)).last, back(noise(1, 4_000)).last)


def test_saving_again_replaces_both_files(saved: tuple[Encoder, Path]) -> None:
    _, folder = saved
    save_encoder(small_encoder(layers=3), folder)
    assert load_encoder(folder).config.layers == 3
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]


@pytest.mark.parametrize("missing", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_folder_without_either_file_holds_no_encoder(
    saved: tuple[Encoder, Path], missing: str
) -> None:
    _, folder = saved
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 3}, r"layers\.2\."),  # weights lack a layer
        ({"layers": 1}, r"layers\.1\."),  # weights have one too many
        ({"ffn_dim": 64}, r"inner_proj\.weight"),  # another shape
        ({"conv_norm": "layer"}, r"conv\.layers\.1\.layer_norm"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_weights_are_refused(
    saved: tuple[Encoder, Path], settings: dict[str, object], message: str
) -> None:
    _, folder = saved
    values = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**values, **settings}))
    with pytest.raises(ValueError, match=message) as error:
        load_encoder(folder)
    assert str(folder / WEIGHTS_NAME) in str(error.value)


def test_weights_cut_short_are_refused_with_their_path(saved: tuple[Encoder, Path]) -> None:
    _, folder = saved
    weights = (folder / WEIGHTS_NAME).read_bytes()
    (folder / WEIGHTS_NAME).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=WEIGHTS_NAME):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ('{"novelty": 1}', "novelty"),
        ('{"heads": 7}', r"heads \(7\) must divide dim"),
        ('{"layers": "12"}', "layers"),
    ],
)
def test_settings_that_describe_no_encoder_are_refused_with_their_path(
    saved: tuple[Encoder, Path], text: str, message: str
) -> None:
    _, folder = saved
    (folder / CONFIG_NAME).write_text(text)
    for load in (load_encoder, load_encoder_config):
        with pytest.raises(ValueError, match=f"{CONFIG_NAME} does not describe.*(?s:.*){message}"):
            load(folder)
