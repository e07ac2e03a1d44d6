"""The code that ships with a `--as mert` export: any transformers, nothing of ours."""

import json
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_parts import noise, random_encoder
from transformers import AutoConfig, AutoModel, HubertConfig, HubertModel

from etude.models.encoder import Encoder
from etude.models.hf.card import CardFacts
from etude.models.hf.export import CODE_NAMES, export_encoder
from etude.models.hf.load import import_encoder

GEOMETRIES: dict[str, dict[str, object]] = {
    "95m": {"norm": "post", "conv_norm": "group"},
    "330m": {"norm": "pre", "conv_norm": "group", "position_kernel": 15},
    "layer norm": {"norm": "post", "conv_norm": "layer", "conv_bias": True},
    "layer norm first": {"norm": "pre", "conv_norm": "layer"},
}
EVERY_GEOMETRY = pytest.mark.parametrize("geometry", GEOMETRIES)


def exported(folder: Path, geometry: str, **settings: object) -> Encoder:
    """An encoder with every parameter random, as a `mert` folder."""
    encoder = random_encoder(**{**GEOMETRIES[geometry], **settings})
    card = CardFacts(name="tiny", paradigm="none", trained_on=date(2026, 1, 1))
    export_encoder(encoder, folder, format="mert", card=card)
    return encoder


def load(folder: Path) -> Any:
    """As a user does, running the folder's code."""
    return AutoModel.from_pretrained(folder, trust_remote_code=True, local_files_only=True).eval()


def assert_close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-4 * max(1.0, float(one.abs().max()))


@EVERY_GEOMETRY
def test_every_hidden_state_is_the_encoders(tmp_path: Path, geometry: str) -> None:
    encoder = exported(tmp_path / "out", geometry)
    model = load(tmp_path / "out")
    assert type(model).__module__.startswith("transformers_modules")  # the folder's own code
    waveform = noise(2, 30_000)
    with torch.inference_mode():
        output = model(waveform, output_hidden_states=True)
        assert_close(encoder(waveform).hidden_states, output.hidden_states)
        assert torch.equal(output.last_hidden_state, output.hidden_states[-1])
        assert model(waveform).hidden_states is None
        (alone,) = model(waveform, return_dict=False)
    assert torch.equal(alone, output.last_hidden_state)


@EVERY_GEOMETRY
def test_padding_is_not_attended_to(tmp_path: Path, geometry: str) -> None:
    encoder = exported(tmp_path / "out", geometry)
    model, lengths = load(tmp_path / "out"), [30_000, 17_000]
    waveform = noise(2, 30_000)
    waveform[1, 17_000:] = 0
    mask = (torch.arange(30_000) < torch.tensor(lengths)[:, None]).long()
    with torch.inference_mode():
        ours = encoder(waveform, num_samples=lengths).hidden_states
        theirs = model(waveform, attention_mask=mask, output_hidden_states=True).hidden_states
        ignored = model(waveform).last_hidden_state
    count = encoder.grid.num_frames(17_000)
    assert model._get_feat_extract_output_lengths(17_000) == count
    assert_close(
        tuple(state[1, :count] for state in ours), tuple(state[1, :count] for state in theirs)
    )
    assert not torch.allclose(ignored[1, :count], theirs[-1][1, :count], atol=1e-3)


def test_masked_frames_are_replaced_by_the_embedding(tmp_path: Path) -> None:
    encoder = exported(tmp_path / "out", "95m")
    model, waveform = load(tmp_path / "out"), noise(2, 30_000)
    features = encoder.frontend(waveform)
    mask = torch.rand(features.projected.shape[:2], generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        ours = encoder.context(features.projected, mask=mask < 0.4).last
        theirs = model(waveform, mask_time_indices=mask < 0.4).last_hidden_state
    assert_close((ours,), (theirs,))


def test_attention_weights_are_those_of_the_attention(tmp_path: Path) -> None:
    encoder = exported(tmp_path / "out", "330m")
    model, waveform = load(tmp_path / "out"), noise(1, 30_000)
    with torch.inference_mode():
        plain = model(waveform).last_hidden_state
        output = model(waveform, output_attentions=True)
    assert_close((plain,), (output.last_hidden_state,))
    frames = encoder.grid.num_frames(30_000)
    assert [weights.shape for weights in output.attentions] == [(1, 4, frames, frames)] * 2
    for weights in output.attentions:
        assert torch.allclose(weights.sum(dim=-1), torch.ones(1, 4, frames), atol=1e-5)


def test_fine_tuning_masks_about_as_many_frames_as_the_settings_say(tmp_path: Path) -> None:
    exported(tmp_path / "out", "95m")
    model = load(tmp_path / "out").train()
    seen: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    for _ in range(20):
        model(noise(4, 120_000))
    embedding = model.masked_spec_embed.detach()
    share = torch.cat([(x.detach() == embedding).all(dim=-1).float() for x in seen]).mean()
    assert 0.03 < share < 0.06  # .05, less what overlaps
    model.config.apply_spec_augment = False
    model(noise(4, 120_000))
    assert not (seen[-1] == embedding).all(dim=-1).any()


def test_a_step_of_fine_tuning_reaches_every_parameter(tmp_path: Path) -> None:
    exported(tmp_path / "out", "95m", layer_drop=0.0)
    model = load(tmp_path / "out")
    mask = torch.zeros(2, model._get_feat_extract_output_lengths(30_000), dtype=torch.bool)
    mask[:, ::3] = True
    output = model(noise(2, 30_000), mask_time_indices=mask)
    output.last_hidden_state.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_saved_model_is_the_same_again_and_comes_back_to_us(tmp_path: Path) -> None:
    encoder = exported(tmp_path / "out", "95m")
    load(tmp_path / "out").save_pretrained(tmp_path / "saved")
    shutil.copy(tmp_path / "out" / "preprocessor_config.json", tmp_path / "saved")
    back = import_encoder(tmp_path / "saved")
    assert back.config == encoder.config.model_copy(
        update={"feature_grad_scale": back.config.feature_grad_scale}
    )
    for name, value in encoder.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


def test_a_model_that_starts_anew_is_finite_and_different(tmp_path: Path) -> None:
    exported(tmp_path / "out", "95m")
    config = AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    torch.manual_seed(0)
    one, other = (AutoModel.from_config(config, trust_remote_code=True) for _ in range(2))
    output = one.eval()(noise(1, 30_000)).last_hidden_state
    assert output.isfinite().all()
    assert not torch.equal(output, other.eval()(noise(1, 30_000)).last_hidden_state)


def test_the_folder_leaves_no_field_to_a_default(tmp_path: Path) -> None:
    exported(tmp_path / "out", "95m")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    generic = set(HubertConfig.__mro__[1]().to_dict())
    own = {key for key in HubertConfig().to_dict() if key not in generic}
    assert own <= written.keys() | {"model_type"}
    for key in ("feature_extractor_cqt", "deepnorm", "attention_relax", "conv_pos_batch_norm"):
        assert key in written
    assert written["model_type"] == "mert_model" and written["sample_rate"] == 24_000


@pytest.mark.parametrize("key", ["feature_extractor_cqt", "deepnorm", "conv_pos_batch_norm"])
def test_what_was_never_released_is_refused(tmp_path: Path, key: str) -> None:
    exported(tmp_path / "out", "95m")
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: True}))
    with pytest.raises(ValueError, match="never released"):
        load(tmp_path / "out")


def test_the_folder_needs_neither_us_nor_fairseq2_nor_nnaudio(tmp_path: Path) -> None:
    encoder = exported(tmp_path / "out", "95m")
    torch.save(encoder(noise(1, 24_000)).last.detach(), tmp_path / "expected.pt")
    torch.save(noise(1, 24_000), tmp_path / "audio.pt")
    script = """
import sys
class Door:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("etude", "fairseq2", "nnAudio", "encodec", "deepspeed"):
            raise ImportError(f"{name} must not be needed")
sys.meta_path.insert(0, Door())
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained("out", trust_remote_code=True).eval()
last = model(torch.load("audio.pt")).last_hidden_state
assert torch.allclose(last, torch.load("expected.pt"), atol=1e-4), "other features"
assert not [name for name in sys.modules if name.startswith(("etude", "fairseq2"))]
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_code_in_a_folder_is_the_code_that_was_verified(tmp_path: Path) -> None:
    exported(tmp_path / "out", "95m")
    shipped = Path(__file__).parents[2] / "models" / "hf" / "shipped"
    for name in CODE_NAMES:
        assert (tmp_path / "out" / name).read_bytes() == (shipped / name).read_bytes()


@pytest.mark.parametrize("geometry", ["95m", "330m"])
def test_the_authors_own_code_loads_it_strictly(
    tmp_path: Path, geometry: str, pytestconfig: pytest.Config
) -> None:
    reference = pytestconfig.getoption("reference")
    if reference is None:
        pytest.skip("needs --reference FOLDER with the authors' two files, which are not ours")
    encoder = exported(tmp_path / "out", geometry)
    for name in CODE_NAMES:
        shutil.copyfile(Path(reference) / name, tmp_path / "out" / name)
    model, info = AutoModel.from_pretrained(
        tmp_path / "out", trust_remote_code=True, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert isinstance(model, HubertModel)  # theirs is one
    waveform = noise(2, 30_000)
    with torch.inference_mode():
        theirs = model.eval()(waveform, output_hidden_states=True).hidden_states
        assert_close(encoder(waveform).hidden_states, theirs)
