"""The settings describe MERT-v1-95M unless told otherwise, and never an impossible encoder."""

import pytest
from pydantic import ValidationError

from etude.models.config import EncoderConfig
from etude.models.frames import FrameGrid


def test_the_defaults_are_those_of_mert_v1_95m() -> None:
    config = EncoderConfig()
    # As in config.json of m-a-p/MERT-v1-95M, under transformers' names.
    assert config.sample_rate == 24_000
    assert config.conv_dims == (512, 512, 512, 512, 512, 512, 512)
    assert config.conv_kernels == (10, 3, 3, 3, 3, 2, 2)
    assert config.conv_strides == (5, 2, 2, 2, 2, 2, 2)
    assert (config.conv_bias, config.conv_norm) == (False, "group")
    assert (config.layers, config.dim, config.ffn_dim, config.heads) == (12, 768, 3072, 12)
    assert config.norm == "post"
    assert (config.position_kernel, config.position_groups, config.position_depth) == (128, 16, 1)
    assert (config.dropout, config.attention_dropout, config.activation_dropout) == (0.1, 0.1, 0.0)
    assert (config.projection_dropout, config.layer_drop) == (0.1, 0.05)
    assert config.feature_grad_scale == 0.1
    assert (config.frontend, config.padding) == ("waveform", "published")


def test_the_grid_is_that_of_the_convolutions() -> None:
    config = EncoderConfig(
        sample_rate=16_000, conv_dims=(8, 8), conv_kernels=(10, 4), conv_strides=(5, 3)
    )
    assert config.grid == FrameGrid(16_000, (10, 4), (5, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 10}, r"heads \(10\) must divide dim \(768\)"),
        ({"dim": 100, "heads": 10}, r"position_groups \(16\) must divide dim \(100\)"),
        ({"conv_dims": (512,) * 6}, "one entry per convolution, but have 6, 7 and 7"),
        ({"conv_kernels": (10, 3)}, "one entry per convolution, but have 7, 2 and 7"),
        ({"conv_strides": (5,) * 8}, "one entry per convolution, but have 7, 7 and 8"),
        ({"padding": "exact"}, "exact needs conv_norm: layer"),
        (
            {"position_depth": 5, "position_kernel": 94},
            r"position_kernel \(94\) over position_depth \(5\) gives convolutions of 18 frames",
        ),
    ],
    ids=str,
)
def test_a_geometry_that_cannot_be_is_refused_with_its_numbers(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        EncoderConfig.model_validate(settings)


def test_an_empty_conv_stack_is_refused() -> None:
    empty = {"conv_dims": (), "conv_kernels": (), "conv_strides": ()}
    with pytest.raises(ValidationError, match="at least 1 item"):
        EncoderConfig.model_validate(empty)


def test_exact_padding_goes_with_layer_norm() -> None:
    assert EncoderConfig(padding="exact", conv_norm="layer").padding == "exact"


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": 0},
        {"dim": 0},
        {"sample_rate": 0},
        {"conv_strides": (5, 2, 2, 2, 2, 2, 0)},
        {"layer_drop": 1.0},
        {"dropout": -0.1},
        {"feature_grad_scale": 0.0},
        {"feature_grad_scale": 1.5},
        {"position_kernel": 1},
        {"norm": "sandwich"},
        {"layers": "12"},  # strict: no silent conversion
        {"layer": 12},
    ],
    ids=str,
)
def test_a_value_out_of_its_range_or_an_unknown_key_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as error:
        EncoderConfig.model_validate(settings)
    assert error.value.errors()[0]["loc"][0] == next(iter(settings))


def test_settings_do_not_change_once_made() -> None:
    config = EncoderConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.layers = 3
