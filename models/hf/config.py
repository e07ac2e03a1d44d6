"""Settings: our ``EncoderConfig`` and the ``config.json`` of a Hugging Face model.

An encoder with one positional convolution is a ``HubertModel``, or the same as a ``MERTModel`` with
its code beside it; one with a stack of them is a ``Data2VecAudioModel``. What has the same meaning
on both sides is a table; the rest of the settings is fixed, and refused on import where it differs.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from etude.models.config import EncoderConfig

Format = Literal["hubert", "data2vec", "mert"]

MODEL_CLASSES: dict[Format, str] = {
    "hubert": "HubertModel",
    "data2vec": "Data2VecAudioModel",
    "mert": "MERTModel",
}
"""Name of each format's class: in transformers, or for ``mert`` in the file that ships with it."""

Settings = tuple[tuple[str, str], ...]
"""Ours, Hugging Face's: the same value under another name."""

SHARED_SETTINGS: Settings = (
    ("conv_dims", "conv_dim"),
    ("conv_kernels", "conv_kernel"),
    ("conv_strides", "conv_stride"),
    ("conv_bias", "conv_bias"),
    ("layers", "num_hidden_layers"),
    ("dim", "hidden_size"),
    ("ffn_dim", "intermediate_size"),
    ("heads", "num_attention_heads"),
    ("position_groups", "num_conv_pos_embedding_groups"),
    ("dropout", "hidden_dropout"),
    ("attention_dropout", "attention_dropout"),
    ("activation_dropout", "activation_dropout"),
    ("projection_dropout", "feat_proj_dropout"),
    ("layer_drop", "layerdrop"),
)

# The same key of Hugging Face's is a kernel here and a number of convolutions there.
HUBERT_SETTINGS: Settings = (
    *SHARED_SETTINGS,
    ("conv_norm", "feat_extract_norm"),
    ("position_kernel", "num_conv_pos_embeddings"),
)
DATA2VEC_SETTINGS: Settings = (*SHARED_SETTINGS, ("position_depth", "num_conv_pos_embeddings"))

_REGULARISATION = {"hidden_dropout", "attention_dropout", "activation_dropout"}
_REGULARISATION |= {"feat_proj_dropout", "layerdrop"}

HUBERT_SHAPING = (
    *(theirs for _, theirs in HUBERT_SETTINGS if theirs not in _REGULARISATION),
    "do_stable_layer_norm",
)
"""Fields without which a HuBERT cannot be rebuilt: its shape and its order of norms."""

DATA2VEC_SHAPING = (
    *(theirs for _, theirs in DATA2VEC_SETTINGS if theirs not in _REGULARISATION),
    "conv_pos_kernel_size",
)
"""The same of a data2vec model."""

# What our encoder always is, and a Hugging Face model need not be.
_SHARED_FIXED: dict[str, Any] = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
}
HUBERT_FIXED: dict[str, Any] = {
    **_SHARED_FIXED,
    "feat_proj_layer_norm": True,
    # Written although it is the default: some versions of transformers read it without one.
    "conv_pos_batch_norm": False,
}
DATA2VEC_FIXED: dict[str, Any] = {**_SHARED_FIXED, "add_adapter": False}

# Says nothing about the encoder, but readers of the file expect it.
_FURTHER: dict[str, Any] = {
    "torch_dtype": "float32",
    "vocab_size": 32,
    # Above zero, so that the model has the mask embedding; it masks in train() mode alone.
    "mask_time_prob": 0.05,
    "mask_time_length": 10,
}


# What the released MERT's own code and transformers' HuBERT read besides, with the values of the
# released 95M: nothing is left to a default that a later version may change.
_MERT_FURTHER: dict[str, Any] = {
    "auto_map": {
        "AutoConfig": "configuration_MERT.MERTConfig",
        "AutoModel": "modeling_MERT.MERTModel",
    },
    "apply_spec_augment": True,
    "mask_time_min_masks": 2,
    "mask_feature_prob": 0.0,
    "mask_feature_length": 10,
    "mask_feature_min_masks": 0,
    "initializer_range": 0.02,
    "ctc_loss_reduction": "sum",
    "ctc_zero_infinity": False,
    "use_weighted_layer_sum": False,
    "classifier_proj_size": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "feature_extractor_cqt": False,
    "feature_extractor_cqt_bins": 336,
    "deepnorm": False,
    "attention_relax": -1.0,
}


def natural_format(config: EncoderConfig) -> Format:
    """The format of stock transformers that may be able to express this encoder."""
    return "hubert" if config.position_depth == 1 else "data2vec"


def check_expressible(config: EncoderConfig, format: Format) -> None:
    """Checks that the format's model can be this encoder.

    :raises ValueError: naming the setting and what to use instead.
    """
    if config.frontend != "waveform":
        raise ValueError(
            f"no Hugging Face model has the front end of model.frontend: {config.frontend}; only "
            "encoders with model.frontend: waveform are exported."
        )
    for key, value, released in (
        ("layer", config.layer, "transformer"),
        ("positions", config.positions, "convolution"),
    ):
        if value != released:
            raise ValueError(
                f"no Hugging Face model that is exported to has model.{key}: {value}; only "
                f"encoders with model.{key}: {released} are exported. launch/embed.py and "
                "launch/probe.py take the run as it is."
            )
    depth = config.position_depth
    if format != "data2vec":
        if depth != 1:
            raise ValueError(
                f"{MODEL_CLASSES[format]} has one positional convolution, but model.position_depth "
                f"is {depth}: export such an encoder (music2vec) as data2vec."
            )
        return
    if depth == 1:
        raise ValueError(
            "Data2VecAudioModel has a stack of positional convolutions, but model.position_depth "
            "is 1: export such an encoder (MERT) as hubert."
        )
    if config.norm != "post":
        raise ValueError(
            f"Data2VecAudioModel has its layer norms after the residual sums, but model.norm is "
            f"{config.norm}: with model.position_depth: {depth}, only encoders with model.norm: "
            "post are exported."
        )
    if config.conv_norm != "layer":
        raise ValueError(
            f"Data2VecAudioModel has a layer norm after every convolution, but model.conv_norm is "
            f"{config.conv_norm}: with model.position_depth: {depth}, only encoders with "
            "model.conv_norm: layer are exported."
        )


def to_hubert_config(config: EncoderConfig) -> dict[str, Any]:
    """The content of ``config.json`` for ``HubertModel``.

    :raises ValueError: if ``HubertModel`` cannot be this encoder.
    """
    check_expressible(config, "hubert")
    return {
        "architectures": [MODEL_CLASSES["hubert"]],
        "model_type": "hubert",
        **_written(config, HUBERT_SETTINGS, HUBERT_FIXED),
        "do_stable_layer_norm": config.norm == "pre",
    }


def to_mert_config(config: EncoderConfig) -> dict[str, Any]:
    """The content of ``config.json`` for the code that ships with a ``mert`` export.

    :raises ValueError: if a ``MERTModel`` cannot be this encoder.
    """
    check_expressible(config, "mert")
    return {
        **to_hubert_config(config),
        **_MERT_FURTHER,
        "architectures": [MODEL_CLASSES["mert"]],
        "model_type": "mert_model",
        "num_feat_extract_layers": len(config.conv_dims),
    }


def to_data2vec_config(config: EncoderConfig) -> dict[str, Any]:
    """The content of ``config.json`` for ``Data2VecAudioModel``.

    :raises ValueError: if ``Data2VecAudioModel`` cannot be this encoder.
    """
    check_expressible(config, "data2vec")
    return {
        "architectures": [MODEL_CLASSES["data2vec"]],
        "model_type": "data2vec-audio",
        **_written(config, DATA2VEC_SETTINGS, DATA2VEC_FIXED),
        "conv_pos_kernel_size": config.stacked_kernel,
    }


def from_hubert_config(
    values: Mapping[str, Any], *, sample_rate: int, normalize: bool
) -> EncoderConfig:
    """Our settings from a complete ``HubertConfig`` as a dict.

    What Hugging Face does not know (gradient scale, padding) takes its default.

    :param sample_rate: the preprocessor's ``sampling_rate``.
    :param normalize: the preprocessor's ``do_normalize``.
    :raises ValueError: if our encoder cannot be this model.
    """
    further = {
        "sample_rate": sample_rate,
        "normalize": normalize,
        "norm": "pre" if values["do_stable_layer_norm"] else "post",
    }
    return _read(values, HUBERT_SETTINGS, HUBERT_FIXED, further)


def from_data2vec_config(
    values: Mapping[str, Any], *, sample_rate: int, normalize: bool
) -> EncoderConfig:
    """As :func:`from_hubert_config`, from a complete ``Data2VecAudioConfig``.

    A ``position_kernel`` that its depth does not divide comes back as the part that is used.
    """
    depth, kernel = values["num_conv_pos_embeddings"], values["conv_pos_kernel_size"]
    # One convolution would be HuBERT's, which is weight-normed; below 3, fairseq takes 3.
    if depth < 2 or kernel < 3:
        raise ValueError(
            "num_conv_pos_embeddings must be at least 2 and conv_pos_kernel_size at least 3 for a "
            f"stack of ours, but they are {depth} and {kernel}."
        )
    further = {
        "sample_rate": sample_rate,
        "normalize": normalize,
        "norm": "post",
        "conv_norm": "layer",
        "position_kernel": kernel * depth,
    }
    return _read(values, DATA2VEC_SETTINGS, DATA2VEC_FIXED, further)


def _written(config: EncoderConfig, table: Settings, fixed: dict[str, Any]) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    return {
        **_FURTHER,
        **fixed,
        **{theirs: values[ours] for ours, theirs in table},
        "final_dropout": config.dropout,  # a fine-tuning head's; not the encoder's
        # Not the model's own: what a listener has to know.
        "sample_rate": config.sample_rate,
        "frame_rate": config.grid.frame_rate,
    }


def _read(
    values: Mapping[str, Any], table: Settings, fixed: dict[str, Any], further: dict[str, Any]
) -> EncoderConfig:
    for key, expected in fixed.items():
        if values.get(key, expected) != expected:
            raise ValueError(
                f"{key} must be {expected!r} for an encoder of ours, but is {values[key]!r}."
            )
    ours = {name: values[theirs] for name, theirs in table}
    # JSON mode, where a list may be a tuple.
    return EncoderConfig.model_validate_json(json.dumps({**ours, **further}))
