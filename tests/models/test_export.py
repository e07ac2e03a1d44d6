"""An export reproduces the encoder in stock transformers, and says no where it cannot."""

import json
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModel,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
)

from etude.models import renaming
from etude.models.config import EncoderConfig
from etude.models.encoder import Encoder
from etude.models.hf import keys
from etude.models.hf.card import CardFacts
from etude.models.hf.config import (
    Format,
    from_data2vec_config,
    from_hubert_config,
    natural_format,
    to_data2vec_config,
    to_hubert_config,
)
from etude.models.hf.export import export_encoder
from etude.models.hf.keys import (
    DATA2VEC_KEYS,
    HUBERT_KEYS,
    data2vec_rows,
    from_data2vec,
    from_hubert,
    hubert_rows,
    to_data2vec,
    to_hubert,
)
from etude.models.hf.load import import_encoder, load_hf_encoder, load_model
from etude.models.hf.verify import verify_export

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
    "pre-layer": {"norm": "pre", "conv_norm": "layer", "position_kernel": 15, "normalize": True},
    "stack": {
        "norm": "post",
        "conv_norm": "layer",
        "position_depth": 3,
        "position_kernel": 15,
        "normalize": True,
    },
    "stack-bias": {
        "norm": "post",
        "conv_norm": "layer",
        "conv_bias": True,
        "position_depth": 5,
        "position_kernel": 25,
    },
}

MUSIC2VEC = {
    "sample_rate": 16_000,
    "normalize": True,
    "conv_norm": "layer",
    "position_depth": 5,
    "position_kernel": 95,
}


class Stock(NamedTuple):
    """A format: what transformers has of it, and the conversions there and back."""

    config: Any
    model: Any
    to_config: Callable[[EncoderConfig], dict[str, Any]]
    from_config: Callable[..., EncoderConfig]
    table: str
    rows: Callable[[EncoderConfig], tuple[renaming.Row, ...]]
    to_keys: Callable[..., dict[str, Tensor]]
    from_keys: Callable[..., dict[str, Tensor]]


STOCK: dict[Format, Stock] = {
    "hubert": Stock(
        HubertConfig,
        HubertModel,
        to_hubert_config,
        from_hubert_config,
        "HUBERT_KEYS",
        hubert_rows,
        to_hubert,
        from_hubert,
    ),
    "data2vec": Stock(
        Data2VecAudioConfig,
        Data2VecAudioModel,
        to_data2vec_config,
        from_data2vec_config,
        "DATA2VEC_KEYS",
        data2vec_rows,
        to_data2vec,
        from_data2vec,
    ),
}


def stock(config: EncoderConfig) -> Stock:
    return STOCK[natural_format(config)]


def small_config(variant: str, **settings: object) -> EncoderConfig:
    return EncoderConfig.model_validate({**SMALL, **VARIANTS[variant], **settings})


def small_encoder(variant: str = "post-group", **settings: object) -> Encoder:
    """An encoder with every parameter random, norms and biases too: no swap goes unnoticed."""
    encoder = Encoder(small_config(variant, **settings)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return encoder


def audio(seconds: float, rate: int = 24_000) -> Tensor:
    """Two rows with a level and an offset of their own, which only normalised audio has not."""
    generator = torch.Generator().manual_seed(2)
    noise = 0.2 * torch.randn(2, round(seconds * rate), generator=generator)
    return torch.tensor([[1.0], [0.3]]) * noise + torch.tensor([[0.05], [0.0]])


def export(encoder: Encoder, folder: Path, card: CardFacts = CARD) -> list[float]:
    return export_encoder(encoder, folder, format=natural_format(encoder.config), card=card)


def processed(folder: Path, rows: list[Tensor]) -> Any:
    """A batch as a user makes it from clips of different lengths: the model's arguments."""
    processor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    return processor(
        [row.numpy() for row in rows],
        sampling_rate=processor.sampling_rate,
        padding=True,
        return_attention_mask=True,
        return_tensors="pt",
    )


@pytest.mark.parametrize("lengths", [(120_000, 120_000), (31_200, 20_001)], ids=["full", "padded"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_hidden_state_of_the_export_is_the_encoders(
    tmp_path: Path, variant: str, lengths: tuple[int, int]
) -> None:
    encoder = small_encoder(variant)
    export(encoder, tmp_path / "out")
    model_class = stock(encoder.config).model
    model, info = model_class.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())

    waveform = audio(lengths[0] / 24_000)
    waveform[1, lengths[1] :] = 0.0
    rows = [row[:length] for row, length in zip(waveform, lengths, strict=True)]
    padded = None if lengths[0] == lengths[1] else lengths
    with torch.inference_mode():
        ours = encoder(waveform, padded).hidden_states
        theirs = model.eval()(
            **processed(tmp_path / "out", rows), output_hidden_states=True
        ).hidden_states
    assert len(ours) == len(theirs) == encoder.config.layers + 1
    for own, other in zip(ours, theirs, strict=True):
        assert own.shape == other.shape == (2, encoder.grid.num_frames(lengths[0]), 32)
        for row, length in enumerate(lengths):
            valid = encoder.grid.num_frames(length)
            want, got = own[row, :valid], other[row, :valid]
            assert want.std() > 0.1  # a model whose features are all alike would agree by accident
            assert (want - got).abs().max() <= 1e-5 * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("variant", ["post-group", "pre-layer", "stack"])
def test_masked_frames_are_replaced_by_the_same_embedding(tmp_path: Path, variant: str) -> None:
    encoder = small_encoder(variant)
    export(encoder, tmp_path / "out")
    model = stock(encoder.config).model.from_pretrained(tmp_path / "out").eval()
    waveform = audio(1.0)
    heard = processed(tmp_path / "out", list(waveform))["input_values"]
    mask = torch.rand(2, encoder.grid.num_frames(24_000)) < 0.5
    with torch.inference_mode():
        ours = encoder.context(encoder.frontend(waveform).projected, mask=mask).last
        theirs = model(heard, mask_time_indices=mask).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.fixture
def exported(tmp_path: Path) -> Iterator[tuple[Encoder, Path]]:
    encoder = small_encoder("pre-group")
    export(encoder, tmp_path / "out")
    yield encoder, tmp_path / "out"


def test_auto_classes_and_the_preprocessor_load_it(exported: tuple[Encoder, Path]) -> None:
    _, folder = exported
    assert isinstance(AutoModel.from_pretrained(folder), HubertModel)
    processor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    assert (processor.sampling_rate, processor.do_normalize) == (24_000, False)
    inputs = processor(audio(1.0)[0].numpy(), sampling_rate=24_000, return_tensors="pt")
    assert list(inputs) == ["input_values"]  # no mask: group norm
    torch.testing.assert_close(inputs["input_values"], audio(1.0)[:1])

    export(small_encoder("stack"), folder)
    assert isinstance(AutoModel.from_pretrained(folder), Data2VecAudioModel)
    processor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    assert processor.do_normalize and processor.return_attention_mask


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("variant", ["post-layer", "stack"])
def test_frozen_features_are_what_processor_and_model_give_together(
    tmp_path: Path, variant: str, normalize: bool
) -> None:
    encoder = small_encoder(variant, normalize=normalize)
    export(encoder, tmp_path / "out")
    model = stock(encoder.config).model.from_pretrained(tmp_path / "out").eval()
    waveform = 3.0 * audio(1.3)
    inputs = processed(tmp_path / "out", list(waveform))
    with torch.inference_mode():
        expected = model(inputs["input_values"], output_hidden_states=True).hidden_states
    frozen = load_hf_encoder(tmp_path / "out")
    assert frozen.sample_rate == 24_000 and frozen.grid.hop_samples == 320
    for state, wanted in zip(frozen.hidden_states(waveform), expected, strict=True):
        torch.testing.assert_close(state, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["post-layer", "stack"])
def test_the_preprocessor_normalises_where_the_encoder_does(tmp_path: Path, variant: str) -> None:
    for normalize in (False, True):
        encoder = small_encoder(variant, normalize=normalize)
        export(encoder, tmp_path / "out")
        path = tmp_path / "out" / "preprocessor_config.json"
        said = json.loads(path.read_text())
        assert said["do_normalize"] is normalize
        assert import_encoder(tmp_path / "out").config.normalize is normalize

        # A folder that lets users hear something else does not pass for the encoder.
        path.write_text(json.dumps({**said, "do_normalize": not normalize}))
        with pytest.raises(ValueError, match="differs from the training encoder's"):
            verify_export(encoder, tmp_path / "out", audio(0.5))

    del said["do_normalize"]  # which is true to transformers
    path.write_text(json.dumps(said))
    assert import_encoder(tmp_path / "out").config.normalize
    assert load_hf_encoder(tmp_path / "out").normalize


@pytest.mark.parametrize(
    ("variant", "format"),
    [
        *((variant, natural_format(small_config(variant))) for variant in VARIANTS),
        *((variant, "mert") for variant in VARIANTS if "stack" not in variant),
    ],
)
def test_an_imported_export_is_the_same_encoder_and_exports_to_the_same_files(
    tmp_path: Path, variant: str, format: Format
) -> None:
    encoder = small_encoder(variant, dropout=0.03, layer_drop=0.07)
    export_encoder(encoder, tmp_path / "out", format=format, card=CARD)
    back = import_encoder(tmp_path / "out")
    assert back.config == encoder.config
    state = encoder.state_dict()
    assert back.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in back.state_dict().items())

    export_encoder(back, tmp_path / "again", format=format, card=CARD)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {path.name for path in (tmp_path / "again").iterdir()} == names
    # A safetensors header holds its metadata in no order.
    for name in names - {"model.safetensors"}:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    first, second = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("out", "again")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


@pytest.mark.parametrize(
    ("settings", "parameters", "tensors"),
    [
        ({}, 94_371_712, 211),
        (
            {"layers": 24, "dim": 1024, "ffn_dim": 4096, "heads": 16, "norm": "pre"},
            315_428_992,
            403,
        ),
        (MUSIC2VEC, 93_164_288, 230),
    ],
    ids=["95M", "330M", "music2vec"],
)
def test_the_released_geometries_have_the_released_tensors(
    settings: dict[str, object], parameters: int, tensors: int
) -> None:
    config = EncoderConfig.model_validate(settings)
    there = stock(config)
    with torch.device("meta"):
        ours = there.to_keys(Encoder(config).state_dict(), config)
        theirs = there.model(there.config(**there.to_config(config))).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {
        key: tensor.shape for key, tensor in theirs.items()
    }
    assert (sum(tensor.numel() for tensor in ours.values()), len(ours)) == (parameters, tensors)


Shapes = list[tuple[str, torch.Size]]


def shapes_of(row: renaming.Row, encoder: Encoder) -> Shapes:
    """What the row renames: layer and end of each key, with its shape."""
    pattern = renaming._pattern(row[0])
    return [
        (str(match.groupdict()), tensor.shape)
        for key, tensor in encoder.state_dict().items()
        if (match := pattern.fullmatch(key))
    ]


def broken_tables(encoder: Encoder) -> Iterator[tuple[str, tuple[renaming.Row, ...]]]:
    """Every table with one row left out, one misspelt, or two swapped that shapes allow."""
    rows = stock(encoder.config).rows(encoder.config)
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


@pytest.mark.parametrize(
    ("variant", "swaps"), [("post-group", 18), ("pre-layer", 18), ("stack", 17)]
)
def test_a_wrong_row_in_the_key_table_never_passes_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, swaps: int
) -> None:
    encoder = small_encoder(variant)
    tables = list(broken_tables(encoder))
    # q, k, v, output and both feed-forward projections, any two of them; the layers' two norms; the
    # two outer norms; the mask embedding and the positional bias of a single convolution.
    assert sum("<->" in name for name, _ in tables) == swaps
    for name, table in tables:
        monkeypatch.setattr(keys, stock(encoder.config).table, table)
        wrong = (
            r"differs from the training" if "<->" in name else r"have none|lack|cannot be loaded"
        )
        with pytest.raises(ValueError, match=wrong):
            export(encoder, tmp_path / "out")
            pytest.fail(f"passed: {name}")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("table", [HUBERT_KEYS, DATA2VEC_KEYS], ids=["hubert", "data2vec"])
def test_no_row_of_a_table_is_there_twice(table: tuple[renaming.Row, ...]) -> None:
    assert len({ours for ours, _ in table}) == len(table)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_table_is_one_to_one_and_holds_every_parameter(variant: str) -> None:
    config = small_encoder(variant).config
    state, there = Encoder(config).state_dict(), stock(config)
    renamed = there.to_keys(state, config)
    assert (
        renamed.keys() == there.model(there.config(**there.to_config(config))).state_dict().keys()
    )
    back = there.from_keys(renamed, config)
    assert back.keys() == state.keys()
    assert all(back[key] is tensor for key, tensor in state.items())
    for ours, theirs in there.rows(config):
        assert any(renaming._pattern(ours).fullmatch(key) for key in state), f"unused: {ours}"
        assert any(renaming._pattern(theirs).fullmatch(key) for key in renamed), f"unused: {theirs}"


@pytest.mark.parametrize("variant", ["post-group", "stack"])
def test_unknown_keys_are_errors(variant: str) -> None:
    encoder = small_encoder(variant)
    config, there = encoder.config, stock(encoder.config)
    state = dict(encoder.state_dict())
    with pytest.raises(ValueError, match=r"none: layers\.0\.novelty\.weight"):
        there.to_keys({**state, "layers.0.novelty.weight": torch.zeros(1)}, config)
    renamed = there.to_keys(state, config)
    with pytest.raises(ValueError, match="none: lm_head.weight"):
        there.from_keys({**renamed, "lm_head.weight": torch.zeros(1)}, config)


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_survive_the_round_trip(variant: str) -> None:
    odd = {"sample_rate": 16_000, "dropout": 0.2, "layer_drop": 0.15, "projection_dropout": 0.0}
    config = small_config(variant, **odd)
    written = json.loads(json.dumps(stock(config).to_config(config)))
    assert (written["sample_rate"], written["frame_rate"]) == (16_000, 50.0)
    complete = stock(config).config(**written).to_dict()
    back = stock(config).from_config(complete, sample_rate=16_000, normalize=config.normalize)
    assert back == config


def test_music2vec_has_the_released_settings_of_the_stack() -> None:
    written = to_data2vec_config(EncoderConfig.model_validate(MUSIC2VEC))
    expected = {
        "model_type": "data2vec-audio",
        "architectures": ["Data2VecAudioModel"],
        "num_conv_pos_embeddings": 5,
        "conv_pos_kernel_size": 19,
        "num_conv_pos_embedding_groups": 16,
    }
    assert written.items() >= expected.items()


@pytest.mark.parametrize(
    ("format", "settings", "reason"),
    [
        ("hubert", {"position_depth": 5, "position_kernel": 95}, "position_depth is 5.*data2vec"),
        ("hubert", {"frontend": "logmel"}, "front end of model.frontend: logmel"),
        ("data2vec", {"conv_norm": "layer"}, "position_depth is 1.*hubert"),
        ("data2vec", {**MUSIC2VEC, "norm": "pre"}, "model.norm is pre"),
        ("data2vec", {**MUSIC2VEC, "conv_norm": "group"}, "model.conv_norm is group"),
        ("data2vec", {**MUSIC2VEC, "frontend": "logmel"}, "front end of model.frontend: logmel"),
    ],
)
def test_an_encoder_that_a_format_cannot_be_is_refused_with_what_to_use(
    format: Format, settings: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        STOCK[format].to_config(EncoderConfig.model_validate(settings))


@pytest.mark.parametrize(
    ("format", "settings", "reason"),
    [
        ("hubert", {"hidden_act": "relu"}, "hidden_act must be 'gelu'.*'relu'"),
        ("data2vec", {"hidden_act": "relu"}, "hidden_act must be 'gelu'.*'relu'"),
        ("data2vec", {"add_adapter": True}, "add_adapter must be False"),
        ("data2vec", {"num_conv_pos_embeddings": 1}, "at least 2 .* they are 1 and 19"),
        ("data2vec", {"conv_pos_kernel_size": 1}, "at least 3 .* they are 5 and 1"),
        ("data2vec", {"conv_pos_kernel_size": 18}, "convolutions of 18 frames.*odd"),
    ],
)
def test_a_model_that_ours_cannot_be_is_refused(
    format: Format, settings: dict[str, object], reason: str
) -> None:
    values = STOCK[format].config(**settings).to_dict()
    with pytest.raises(ValueError, match=reason):
        STOCK[format].from_config(values, sample_rate=16_000, normalize=False)


def test_a_model_without_a_mask_embedding_is_no_encoder_to_train_on(tmp_path: Path) -> None:
    export(small_encoder("stack"), tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mask_time_prob": 0.0}))
    with pytest.raises(ValueError, match="mask_embedding"):
        import_encoder(tmp_path / "out")
    assert load_hf_encoder(tmp_path / "out").hidden_states(audio(0.5))


def test_a_path_for_a_vocabulary_size_is_no_hindrance(tmp_path: Path) -> None:
    encoder = small_encoder("stack")
    export(encoder, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    values = json.loads(path.read_text())
    # As in the released music2vec.
    path.write_text(json.dumps({**values, "vocab_size": "/data/music/dict.km.txt"}))
    assert import_encoder(tmp_path / "out").config == encoder.config
    assert load_model(tmp_path / "out").config.vocab_size == 32


def test_a_folder_that_lacks_a_weight_is_refused(exported: tuple[Encoder, Path]) -> None:
    encoder, folder = exported
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"lack encoder\.layers\.2\."):
        load_hf_encoder(folder)
    with pytest.raises(ValueError, match=r"lack encoder\.layers\.2\."):
        verify_export(encoder, folder, audio(0.5))


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
    export(small_encoder(), out)
    export(small_encoder("pre-layer"), out)
    assert import_encoder(out).config.norm == "pre"

    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        export(small_encoder(), out)
    assert (out / "notes.txt").read_text() == "mine" and len(list(out.iterdir())) == 6

    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"not ours")
    (other / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="no earlier export"):
        export(small_encoder(), other)
    assert [path.name for path in tmp_path.iterdir()].count("other") == 1


def test_weights_that_are_not_finite_are_not_exported(tmp_path: Path) -> None:
    encoder = small_encoder()
    with torch.no_grad():
        encoder.mask_embedding[0] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN or infinity is in masked_spec_embed"):
        export(encoder, tmp_path / "out")


@pytest.mark.parametrize(
    ("variant", "size", "heard"),
    [
        ("post-group", "0.0351 M", "between -1 and 1. `hidden_states[0]`"),
        ("stack", "0.0352 M", "between -1 and 1; the processor brings it to mean 0"),
    ],
)
def test_the_card_says_how_much_was_heard_and_how_to_use_it(
    tmp_path: Path, variant: str, size: str, heard: str
) -> None:
    facts = CardFacts(
        name="small",
        paradigm="masked prediction (k-means, CQT)",
        trained_on=date(2026, 1, 2),
        recipe="quickstart",
        step=200,
        audio_hours=1.75,
        context_seconds=5.0,
        config_yaml="seed: 1337\n",
        corpora=["Trained on 3 hours."],
        notes=["Mind the codec."],
        probes=[["test accuracy", "key"], ["small", "0.50 [0.40, 0.60] (layer 1)"]],
    )
    export(small_encoder(variant), tmp_path / "out", card=facts)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: feature-extraction\n")
    assert (
        f"| masked prediction (k-means, CQT) | 1.75 h | 5 s | {size} | 2-32 | 75 Hz | 24 kHz "
        "| 2026-01-02 |"
    ) in card
    assert heard in card
    assert "## Data and targets\n\nTrained on 3 hours.\n\nMind the codec.\n" in card
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
