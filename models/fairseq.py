"""Encoder weights out of the original fairseq checkpoints (MERT, data2vec-audio, music2vec).

A fairseq ``.pt`` is a pickle of settings objects, optimizer state and tensors. Here nothing of it
runs: tensors are rebuilt, and every other class or function that the pickle names becomes an inert
object, whatever it is called.

Key names: fairseq ``models/wav2vec/wav2vec2.py``; MERT's ``scripts/convert_MERT_HF.py`` for what
belongs to pretraining alone.
"""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from etude.models.config import EncoderConfig
from etude.models.renaming import Row, rename

_SHARED_KEYS: tuple[Row, ...] = (
    ("mask_embedding", "mask_emb"),
    ("frontend.conv.layers.N.conv.*", "feature_extractor.conv_layers.N.0.*"),
    ("frontend.layer_norm.*", "layer_norm.*"),
    ("frontend.projection.*", "post_extract_proj.*"),
    ("norm.*", "encoder.layer_norm.*"),
    ("layers.N.attention.q_proj.*", "encoder.layers.N.self_attn.q_proj.*"),
    ("layers.N.attention.k_proj.*", "encoder.layers.N.self_attn.k_proj.*"),
    ("layers.N.attention.v_proj.*", "encoder.layers.N.self_attn.v_proj.*"),
    ("layers.N.attention.output_proj.*", "encoder.layers.N.self_attn.out_proj.*"),
    ("layers.N.attention_norm.*", "encoder.layers.N.self_attn_layer_norm.*"),
    ("layers.N.ffn.inner_proj.*", "encoder.layers.N.fc1.*"),
    ("layers.N.ffn.output_proj.*", "encoder.layers.N.fc2.*"),
    ("layers.N.ffn_norm.*", "encoder.layers.N.final_layer_norm.*"),
)
_CONV_NORM = {
    "group": ("frontend.conv.layers.N.group_norm.*", "feature_extractor.conv_layers.N.2.*"),
    "layer": ("frontend.conv.layers.N.layer_norm.*", "feature_extractor.conv_layers.N.2.1.*"),
}
_SINGLE_POSITION: tuple[Row, ...] = (
    ("positions.conv.bias", "encoder.pos_conv.0.bias"),
    ("positions.conv.weight_g", "encoder.pos_conv.0.weight_g"),
    ("positions.conv.weight_v", "encoder.pos_conv.0.weight_v"),
)
_STACKED_POSITIONS: Row = ("positions.layers.N.conv.*", "encoder.pos_conv.N.0.*")

_LEFT_OUT = ("final_proj", "label_embs_concat", "encoder_cqt_model", "_ema", "ema", "target_glu")
"""Parts of pretraining: heads, label embeddings, spectra, the teacher."""


class FairseqWeights(NamedTuple):
    """What a checkpoint holds of an encoder."""

    state: dict[str, Tensor]
    """By our names, float32."""

    left_out: tuple[str, ...]
    """Parts that belong to pretraining alone and were not taken."""


def load_fairseq(path: Path, config: EncoderConfig) -> FairseqWeights:
    """Reads the encoder of a fairseq checkpoint.

    :param config: the encoder it is to be; a checkpoint's own settings are not read.
    :raises ValueError: if the file is no such checkpoint, or has parameters that no encoder of
        these settings has.
    """
    model = _model_of(path)
    encoder, left_out = {}, set()
    for key, value in model.items():
        part = key.partition(".")[0]
        if part in _LEFT_OUT:
            left_out.add(part)
        else:
            encoder[key] = value.float()
    rows = tuple((theirs, ours) for ours, theirs in _rows(config))
    try:
        state = rename(encoder, rows, side="an encoder with these settings")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return FairseqWeights(state, tuple(sorted(left_out)))


def _rows(config: EncoderConfig) -> tuple[Row, ...]:
    stacked = config.position_depth > 1
    positions = (_STACKED_POSITIONS,) if stacked else _SINGLE_POSITION
    return (*_SHARED_KEYS, _CONV_NORM[config.conv_norm], *positions)


def _model_of(path: Path) -> Mapping[str, Tensor]:
    try:
        _check_archive(path)
        content = torch.load(
            path, map_location="cpu", weights_only=False, pickle_module=_INERT_PICKLE
        )
    except Exception as error:  # noqa: BLE001 - a pickle can have its reader raise anything
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} is no checkpoint that torch can read: {reason}") from error
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in model.items()
    ):
        raise ValueError(
            f"{path} must hold tensors by name under the key `model`, as fairseq's checkpoints do."
        )
    return model


def _check_archive(path: Path) -> None:
    """Whether torch would unpickle the file: TorchScript it would run, an old tar unpack first."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":
            raise ValueError("a checkpoint from before torch 1.6, which is not read here")
    if "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records():
        raise ValueError("TorchScript, which is code")


class _Inert:
    """Stands for any class or function that a pickle names: takes everything, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """A list's, of a pickled subclass."""

    def extend(self, items: Any) -> None:
        """The same."""

    def add(self, item: Any) -> None:
        """A set's."""


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
}


class _InertUnpickler(pickle.Unpickler):
    """Resolves what tensors are rebuilt with, and nothing else.

    torch's own reader resolves the storages before it asks here.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            return getattr(torch, name)
        return _ALLOWED.get((module, name), _Inert)


_INERT_PICKLE = SimpleNamespace(__name__="inert", Unpickler=_InertUnpickler)
