"""Parameter names: ours and those of transformers' models, one row per kind of parameter.

``HubertModel`` and ``Data2VecAudioModel`` differ in the positional convolutions alone. Shapes are
the same on both sides, so a table is all that a conversion needs. Layout: fairseq2's
``models/wav2vec2/interop.py``.
"""

from collections.abc import Mapping

from torch import Tensor

from etude.models.config import EncoderConfig
from etude.models.renaming import Row, rename

_SHARED_KEYS: tuple[Row, ...] = (
    ("mask_embedding", "masked_spec_embed"),
    ("frontend.conv.layers.N.conv.*", "feature_extractor.conv_layers.N.conv.*"),
    ("frontend.conv.layers.N.layer_norm.*", "feature_extractor.conv_layers.N.layer_norm.*"),
    ("frontend.layer_norm.*", "feature_projection.layer_norm.*"),
    ("frontend.projection.*", "feature_projection.projection.*"),
    ("norm.*", "encoder.layer_norm.*"),
    ("layers.N.attention.q_proj.*", "encoder.layers.N.attention.q_proj.*"),
    ("layers.N.attention.k_proj.*", "encoder.layers.N.attention.k_proj.*"),
    ("layers.N.attention.v_proj.*", "encoder.layers.N.attention.v_proj.*"),
    ("layers.N.attention.output_proj.*", "encoder.layers.N.attention.out_proj.*"),
    ("layers.N.attention_norm.*", "encoder.layers.N.layer_norm.*"),
    ("layers.N.ffn.inner_proj.*", "encoder.layers.N.feed_forward.intermediate_dense.*"),
    ("layers.N.ffn.output_proj.*", "encoder.layers.N.feed_forward.output_dense.*"),
    ("layers.N.ffn_norm.*", "encoder.layers.N.final_layer_norm.*"),
)

HUBERT_KEYS: tuple[Row, ...] = (
    *_SHARED_KEYS,
    ("frontend.conv.layers.N.group_norm.*", "feature_extractor.conv_layers.N.layer_norm.*"),
    ("positions.conv.bias", "encoder.pos_conv_embed.conv.bias"),
    # The magnitude and the direction of weight norm. Files carry the newer names, which every
    # version of transformers loads; older ones are mapped by transformers itself.
    ("positions.conv.weight_g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    ("positions.conv.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
)

# A stack has no weight norm, and its layer norms learn nothing.
DATA2VEC_KEYS: tuple[Row, ...] = (
    *_SHARED_KEYS,
    ("positions.layers.N.conv.*", "encoder.pos_conv_embed.layers.N.conv.*"),
)

# Hugging Face calls the group norm of the first convolution `layer_norm` as well: only the settings
# tell which of these two rows a front end has.
_UNUSED_ROW = {
    "group": "frontend.conv.layers.N.layer_norm.*",
    "layer": "frontend.conv.layers.N.group_norm.*",
}


def hubert_rows(config: EncoderConfig) -> tuple[Row, ...]:
    """The rows that an encoder of these settings has; every row is one to one."""
    return _used(HUBERT_KEYS, config)


def data2vec_rows(config: EncoderConfig) -> tuple[Row, ...]:
    """As :func:`hubert_rows`, for an encoder with a stack of positional convolutions."""
    return _used(DATA2VEC_KEYS, config)


def to_hubert(state: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """Renames our state dict to ``HubertModel``'s keys; the tensors stay the same objects.

    :raises ValueError: for a key that no row has.
    """
    return rename(state, hubert_rows(config), side="an encoder")


def from_hubert(state: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """Renames a ``HubertModel``'s state dict to our keys.

    :raises ValueError: for a key that no row has.
    """
    return rename(state, _reversed(hubert_rows(config)), side="a HubertModel")


def to_data2vec(state: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """As :func:`to_hubert`, to ``Data2VecAudioModel``'s keys."""
    return rename(state, data2vec_rows(config), side="an encoder")


def from_data2vec(state: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """As :func:`from_hubert`, from a ``Data2VecAudioModel``'s state dict."""
    return rename(state, _reversed(data2vec_rows(config)), side="a Data2VecAudioModel")


def _used(rows: tuple[Row, ...], config: EncoderConfig) -> tuple[Row, ...]:
    return tuple(row for row in rows if row[0] != _UNUSED_ROW[config.conv_norm])


def _reversed(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return tuple((theirs, ours) for ours, theirs in rows)
