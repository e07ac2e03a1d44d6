"""Settings: our ``EncoderConfig`` and the ``config.json`` of transformers' ``HubertModel``.

What has the same meaning on both sides is a table; the two norms are words here and a word and a
flag there; the rest of ``HubertConfig`` is fixed, and refused on import where it differs.
"""

import json
from collections.abc import Mapping
from typing import Any

from etude.models.config import EncoderConfig

# Ours, Hugging Face's: the same value under another name.
HUBERT_SETTINGS: tuple[tuple[str, str], ...] = (
    ("conv_dims", "conv_dim"),
    ("conv_kernels", "conv_kernel"),
    ("conv_strides", "conv_stride"),
    ("conv_bias", "conv_bias"),
    ("conv_norm", "feat_extract_norm"),
    ("layers", "num_hidden_layers"),
    ("dim", "hidden_size"),
    ("ffn_dim", "intermediate_size"),
    ("heads", "num_attention_heads"),
    ("position_kernel", "num_conv_pos_embeddings"),
    ("position_groups", "num_conv_pos_embedding_groups"),
    ("dropout", "hidden_dropout"),
    ("attention_dropout", "attention_dropout"),
    ("activation_dropout", "activation_dropout"),
    ("projection_dropout", "feat_proj_dropout"),
    ("layer_drop", "layerdrop"),
)

# What our encoder always is, and `HubertModel` need not be.
HUBERT_FIXED: dict[str, Any] = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "feat_proj_layer_norm": True,
    "layer_norm_eps": 1e-5,
    # Written although it is the default: some versions of transformers read it without one.
    "conv_pos_batch_norm": False,
}

# Says nothing about the encoder, but readers of the file expect it.
_FURTHER: dict[str, Any] = {
    "architectures": ["HubertModel"],
    "model_type": "hubert",
    "torch_dtype": "float32",
    "vocab_size": 32,
    # Above zero, so that HubertModel has the mask embedding; it masks in train() mode alone.
    "mask_time_prob": 0.05,
    "mask_time_length": 10,
}


def check_expressible(config: EncoderConfig) -> None:
    """Checks that ``HubertModel`` can be this encoder.

    :raises ValueError: naming the setting and what to use instead.
    """
    if config.frontend != "waveform":
        raise ValueError(
            f"no Hugging Face model has the front end of model.frontend: {config.frontend}; only "
            "encoders with model.frontend: waveform are exported."
        )
    if config.position_depth != 1:
        raise ValueError(
            f"HubertModel has one positional convolution, but model.position_depth is "
            f"{config.position_depth}: such an encoder (music2vec) is exported as data2vec."
        )


def to_hubert_config(config: EncoderConfig) -> dict[str, Any]:
    """The content of ``config.json``.

    :raises ValueError: if ``HubertModel`` cannot be this encoder.
    """
    check_expressible(config)
    values = config.model_dump(mode="json")
    return {
        **_FURTHER,
        **HUBERT_FIXED,
        **{theirs: values[ours] for ours, theirs in HUBERT_SETTINGS},
        "do_stable_layer_norm": config.norm == "pre",
        "final_dropout": config.dropout,  # a fine-tuning head's; not the encoder's
        # Not HubertModel's own: what a listener has to know.
        "sample_rate": config.sample_rate,
        "frame_rate": config.grid.frame_rate,
    }


def from_hubert_config(values: Mapping[str, Any], *, sample_rate: int) -> EncoderConfig:
    """Our settings from a complete ``HubertConfig`` as a dict.

    What Hugging Face does not know (gradient scale, padding) takes its default.

    :raises ValueError: if our encoder cannot be this model.
    """
    for key, expected in HUBERT_FIXED.items():
        if values.get(key, expected) != expected:
            raise ValueError(
                f"{key} must be {expected!r} for an encoder of ours, but is {values[key]!r}."
            )
    ours = {name: values[theirs] for name, theirs in HUBERT_SETTINGS}
    ours["sample_rate"] = sample_rate
    ours["norm"] = "pre" if values["do_stable_layer_norm"] else "post"
    # JSON mode, where a list may be a tuple.
    return EncoderConfig.model_validate_json(json.dumps(ours))
