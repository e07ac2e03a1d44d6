"""An export reproduces the encoder in stock transformers, and says no where it cannot."""

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModel, HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from etude.models.config import EncoderConfig
from etude.models.encoder import Encoder
from etude.models.hf import keys
from etude.models.hf.card import CardFacts
from etude.models.hf.config import from_hubert_config, to_hubert_config
from etude.models.hf.export import export_hubert
from etude.models.hf.keys import HUBERT_KEYS, from_hubert, hubert_rows, to_hubert
from etude.models.hf.load import import_hubert, load_hf_encoder
from etude.models.hf.verify import verify_hubert

CARD = CardFacts(name="small", paradigm="masked prediction", trained_on=date(2026, 1, 2))

# As wide as the conv stack, so that as many parameters as possible could be confused for each
# other: a swap that shapes forbid needs no test.
SMALL = {
    "conv_dims": (32,) * 7,
    "dim": 32,
    "ffn_dim": 32,
    "heads": 4,
    "layers": 2,
    "position_kernel": 16,
    "position_groups": 4,
}

VARIANTS = {
    "post-group": {"norm": "post", "conv_norm": "group"},
    "post-layer": {"norm": "post", "conv_norm": "layer", "conv_bias": True},
    "pre-group": {"norm": "pre", "conv_norm": "group", "conv_bias": True},
    "pre-layer": {"norm": "pre", "conv_norm": "layer", "position_kernel": 15},
}


def small_encoder(variant: str = "post-group", **settings: object) -> Encoder:
    """An encoder with every parameter random, norms and biases too: no swap goes unnoticed."""
    config = EncoderConfig.model_validate({**SMALL, **VARIANTS[variant], **settings})
    encoder = Encoder(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return encoder


def audio(seconds: float, rate: int = 24_000) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return 0.2 * torch.randn(2, round(seconds * rate), generator=generator)


@pytest.mark.parametrize("seconds", [5.0, 1.3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_hidden_state_of_the_export_is_the_encoders(
    tmp_path: Path, variant: str, seconds: float
) -> None:
    encoder = small_encoder(variant)
    export_hubert(encoder, tmp_path / "out", normalize=False, card=CARD)
    model, info = HubertModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())

    waveform = audio(seconds)
    with torch.inference_mode():
        ours = encoder(waveform).hidden_states
        theirs = model.eval()(waveform, output_hidden_states=True).hidden_states
    assert len(ours) == len(theirs) == encoder.config.layers + 1
    for own, other in zip(ours, theirs, strict=True):
        assert own.shape == other.shape == (2, encoder.grid.num_frames(waveform.shape[1]), 32)
        assert own.std() > 0.1  # a model whose features are all alike would agree by accident
        assert (own - other).abs().max() <= 1e-5 * max(1.0, float(own.abs().max()))


@pytest.mark.parametrize("variant", ["post-group", "pre-layer"])
def test_masked_frames_are_replaced_by_the_same_embedding(tmp_path: Path, variant: str) -> None:
    encoder = small_encoder(variant)
    export_hubert(encoder, tmp_path / "out", normalize=False, card=CARD)
    model = HubertModel.from_pretrained(tmp_path / "out").eval()
    waveform = audio(1.0)
    mask = torch.rand(2, encoder.grid.num_frames(24_000)) < 0.5
    with torch.inference_mode():
        ours = encoder.context(encoder.frontend(waveform).projected, mask=mask).last
        theirs = model(waveform, mask_time_indices=mask).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.fixture
def exported(tmp_path: Path) -> Iterator[tuple[Encoder, Path]]:
    encoder = small_encoder("pre-group")
    export_hubert(encoder, tmp_path / "out", normalize=False, card=CARD)
    yield encoder, tmp_path / "out"


def test_auto_classes_and_the_preprocessor_load_it(exported: tuple[Encoder, Path]) -> None:
    encoder, folder = exported
    assert isinstance(AutoModel.from_pretrained(folder), HubertModel)
    processor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    assert (processor.sampling_rate, processor.do_normalize) == (24_000, False)
    inputs = processor(audio(1.0)[0].numpy(), sampling_rate=24_000, return_tensors="pt")
    assert list(inputs) == ["input_values"]  # no mask: group norm
    torch.testing.assert_close(inputs["input_values"], audio(1.0)[:1])

    export_hubert(small_encoder("post-layer"), folder, normalize=True, card=CARD)
    processor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    assert processor.do_normalize and processor.return_attention_mask


def test_frozen_features_are_what_processor_and_model_give_together(tmp_path: Path) -> None:
    for normalize in (False, True):
        folder = tmp_path / str(normalize)
        export_hubert(small_encoder("post-layer"), folder, normalize=normalize, card=CARD)
        processor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
        model = HubertModel.from_pretrained(folder).eval()
        waveform = 3.0 * audio(1.3) + 0.1
        inputs = processor(list(waveform.numpy()), sampling_rate=24_000, return_tensors="pt")
        with torch.inference_mode():
            expected = model(inputs["input_values"], output_hidden_states=True).hidden_states
        frozen = load_hf_encoder(folder)
        assert frozen.sample_rate == 24_000 and frozen.grid.hop_samples == 320
        for state, wanted in zip(frozen.hidden_states(waveform), expected, strict=True):
            torch.testing.assert_close(state, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_imported_export_is_the_same_encoder(tmp_path: Path, variant: str) -> None:
    encoder = small_encoder(variant)
    export_hubert(encoder, tmp_path / "out", normalize=False, card=CARD)
    back = import_hubert(tmp_path / "out")
    assert back.config == encoder.config
    state = encoder.state_dict()
    assert back.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in back.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "parameters", "tensors"),
    [
        ({}, 94_371_712, 211),
        (
            {"layers": 24, "dim": 1024, "ffn_dim": 4096, "heads": 16, "norm": "pre"},
            315_428_992,
            403,
        ),
    ],
)
def test_the_released_geometries_have_the_released_tensors(
    settings: dict[str, object], parameters: int, tensors: int
) -> None:
    config = EncoderConfig.model_validate(settings)
    with torch.device("meta"):
        ours = to_hubert(Encoder(config).state_dict(), config)
        theirs = HubertModel(HubertConfig(**to_hubert_config(config))).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {
        key: tensor.shape for key, tensor in theirs.items()
    }
    assert (sum(tensor.numel() for tensor in ours.values()), len(ours)) == (parameters, tensors)


Shapes = list[tuple[str, torch.Size]]


def shapes_of(row: keys.Row, encoder: Encoder) -> Shapes:
    """What the row renames: layer and end of each key, with its shape."""
    pattern = keys._pattern(row[0])
    return [
        (str(match.groupdict()), tensor.shape)
        for key, tensor in encoder.state_dict().items()
        if (match := pattern.fullmatch(key))
    ]


def broken_tables(encoder: Encoder) -> Iterator[tuple[str, tuple[keys.Row, ...]]]:
    """Every table with one row left out, one misspelt, or two swapped that shapes allow."""
    rows = hubert_rows(encoder.config)
    for index, (ours, theirs) in enumerate(rows):
        rest = (*rows[:index], *rows[index + 1 :])
        yield f"without {ours}", rest
        yield f"misspelt {ours}", (*rest, (ours, theirs + "x"))
        for other, their_other in rows[index + 1 :]:
            shapes = shapes_of((ours, theirs), encoder)
            if shapes == shapes_of((other, their_other), encoder):
                swapped = {ours: their_other, other: theirs}
                yield (
                    f"{ours} <-> {other}",
                    tuple((own, swapped.get(own, target)) for own, target in rows),
                )


@pytest.mark.parametrize("variant", ["post-group", "pre-layer"])
def test_a_wrong_row_in_the_key_table_never_passes_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    encoder = small_encoder(variant)
    tables = list(broken_tables(encoder))
    # q, k, v, output and both feed-forward projections; the layers' two norms; the two outer
    # norms; the mask embedding and the positional bias.
    assert sum("<->" in name for name, _ in tables) == 15 + 1 + 1 + 1
    for name, table in tables:
        monkeypatch.setattr(keys, "HUBERT_KEYS", table)
        wrong = (
            r"differs from the training" if "<->" in name else r"have none|lack|cannot be loaded"
        )
        with pytest.raises(ValueError, match=wrong):
            export_hubert(encoder, tmp_path / "out", normalize=False, card=CARD)
            pytest.fail(f"passed: {name}")
        assert list(tmp_path.iterdir()) == []


def test_the_table_is_one_to_one_for_either_front_end() -> None:
    assert len({ours for ours, _ in HUBERT_KEYS}) == len(HUBERT_KEYS)
    for variant in VARIANTS:
        encoder = small_encoder(variant)
        state = encoder.state_dict()
        there = to_hubert(state, encoder.config)
        assert len(there) == len(state)
        assert from_hubert(there, encoder.config).keys() == state.keys()


def test_unknown_keys_are_errors() -> None:
    encoder = small_encoder()
    state = dict(encoder.state_dict())
    with pytest.raises(ValueError, match=r"none: layers\.0\.novelty\.weight"):
        to_hubert({**state, "layers.0.novelty.weight": torch.zeros(1)}, encoder.config)
    there = to_hubert(state, encoder.config)
    with pytest.raises(ValueError, match="none: lm_head.weight"):
        from_hubert({**there, "lm_head.weight": torch.zeros(1)}, encoder.config)


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_survive_the_round_trip(variant: str) -> None:
    config = EncoderConfig.model_validate(
        {**SMALL, **VARIANTS[variant], "sample_rate": 16_000, "dropout": 0.2, "layer_drop": 0.15}
    )
    there = json.loads(json.dumps(to_hubert_config(config)))
    assert (there["sample_rate"], there["frame_rate"]) == (16_000, 50.0)
    complete = HubertConfig(**there).to_dict()
    assert from_hubert_config(complete, sample_rate=16_000) == config


def test_a_stack_of_positional_convolutions_is_refused_with_what_to_use() -> None:
    with pytest.raises(ValueError, match="position_depth is 5.*data2vec"):
        to_hubert_config(EncoderConfig(position_depth=5, position_kernel=95))


def test_a_model_that_ours_cannot_be_is_refused() -> None:
    values = HubertConfig(hidden_act="relu").to_dict()
    with pytest.raises(ValueError, match="hidden_act must be 'gelu'.*'relu'"):
        from_hubert_config(values, sample_rate=16_000)


def test_a_folder_that_lacks_a_weight_is_refused(exported: tuple[Encoder, Path]) -> None:
    encoder, folder = exported
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"lack encoder\.layers\.2\."):
        load_hf_encoder(folder)
    with pytest.raises(ValueError, match=r"lack encoder\.layers\.2\."):
        verify_hubert(encoder, folder, audio(0.5))


def test_the_released_names_of_a_mert_folder_load(exported: tuple[Encoder, Path]) -> None:
    encoder, folder = exported
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "mert_model",
        "architectures": ["MERTModel"],
        "auto_map": {"AutoModel": "modeling_MERT.MERTModel"},
        "attention_relax": -1.0,
        "deepnorm": False,
        "feature_extractor_cqt": False,
    }
    del config["conv_pos_batch_norm"]
    (folder / "config.json").write_text(json.dumps(config))
    old_names = {"original0": "weight_g", "original1": "weight_v"}
    state = to_hubert(encoder.state_dict(), encoder.config)
    for new, old in old_names.items():
        tensor = state.pop(f"encoder.pos_conv_embed.conv.parametrizations.weight.{new}")
        state[f"encoder.pos_conv_embed.conv.{old}"] = tensor
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")

    waveform = audio(1.0)
    with torch.inference_mode():
        wanted = encoder(waveform).hidden_states
    for got, want in zip(load_hf_encoder(folder).hidden_states(waveform), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)

    (folder / "config.json").write_text(json.dumps({**config, "deepnorm": True}))
    with pytest.raises(ValueError, match="deepnorm"):
        load_hf_encoder(folder)


def test_only_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    export_hubert(small_encoder(), out, normalize=False, card=CARD)
    export_hubert(small_encoder("pre-layer"), out, normalize=False, card=CARD)
    assert import_hubert(out).config.norm == "pre"

    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        export_hubert(small_encoder(), out, normalize=False, card=CARD)
    assert (out / "notes.txt").read_text() == "mine" and len(list(out.iterdir())) == 5

    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"not ours")
    (other / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="no earlier export"):
        export_hubert(small_encoder(), other, normalize=False, card=CARD)
    assert [path.name for path in tmp_path.iterdir()].count("other") == 1


def test_weights_that_are_not_finite_are_not_exported(tmp_path: Path) -> None:
    encoder = small_encoder()
    with torch.no_grad():
        encoder.mask_embedding[0] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN or infinity is in masked_spec_embed"):
        export_hubert(encoder, tmp_path / "out", normalize=False, card=CARD)


def test_the_card_says_how_much_was_heard_and_how_to_use_it(tmp_path: Path) -> None:
    facts = CardFacts(
        name="small",
        paradigm="masked prediction (k-means, CQT)",
        trained_on=date(2026, 1, 2),
        recipe="quickstart",
        step=200,
        audio_hours=1.75,
        context_seconds=5.0,
        config_yaml="seed: 1337\n",
        probes=[["test accuracy", "key"], ["small", "0.50 [0.40, 0.60] (layer 1)"]],
    )
    export_hubert(small_encoder(), tmp_path / "out", normalize=False, card=facts)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: feature-extraction\n")
    assert (
        "| masked prediction (k-means, CQT) | 1.75 h | 5 s | 0.0351 M | 2-32 | 75 Hz | 24 kHz "
        "| 2026-01-02 |"
    ) in card
    assert "Recipe: `quickstart`, stopped after 200 updates." in card
    assert "```yaml\nseed: 1337\n```" in card and "0.50 [0.40, 0.60] (layer 1)" in card
    lines = card.split("```python\n")[1].split("\n```")[0].splitlines()
    assert len(lines) == 5
    namespace: dict[str, object] = {"waveform": audio(1.0)[0].numpy()}
    exec("\n".join(lines).replace("path/to/small", str(tmp_path / "out")), namespace)
    states = namespace["hidden_states"]
    assert (
        isinstance(states, tuple) and [tuple(state.shape) for state in states] == [(1, 74, 32)] * 3
    )


def test_the_file_says_which_framework_and_who_wrote_it(exported: tuple[Encoder, Path]) -> None:
    with safe_open(exported[1] / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "exported_by": "etude"}
