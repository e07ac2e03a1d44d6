"""A Hugging Face folder as frozen features, or as an encoder of ours to train on.

Nothing is downloaded but by :func:`fetch`, and no code of a folder runs: models are those of stock
transformers. The released MERT models are stock HuBERT models under another name, and music2vec is
a stock data2vec model, so they load too. wav2vec2, which is HuBERT's shape with another training,
is read for frozen features alone.
"""

import inspect
import json
from pathlib import Path
from typing import Any, final

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from etude.models.encoder import Encoder
from etude.models.frames import FrameGrid
from etude.models.frontend import normalize_waveform
from etude.models.hf.config import (
    DATA2VEC_SHAPING,
    HUBERT_SHAPING,
    from_data2vec_config,
    from_hubert_config,
)
from etude.models.hf.keys import from_data2vec, from_hubert
from etude.models.hf.shipped.configuration_MERT import MERTConfig
from etude.models.hf.shipped.modeling_MERT import MERTModel

CONFIG_NAME = "config.json"
PREPROCESSOR_NAME = "preprocessor_config.json"
WEIGHTS_NAME = "model.safetensors"

DATA2VEC_TYPE = "data2vec-audio"
WAV2VEC2_TYPE = "wav2vec2"
MODEL_TYPES = ("hubert", "mert_model", DATA2VEC_TYPE, WAV2VEC2_TYPE)
"""What ``model_type`` may say."""

_CLASSES: dict[str, tuple[Any, Any]] = {
    "hubert": (HubertConfig, HubertModel),
    "mert_model": (HubertConfig, HubertModel),
    DATA2VEC_TYPE: (Data2VecAudioConfig, Data2VecAudioModel),
    WAV2VEC2_TYPE: (Wav2Vec2Config, Wav2Vec2Model),
}
_MASK_EMBEDDING = "masked_spec_embed"


@final
class HfEncoder:
    """A Hugging Face model in evaluation mode, behind what its preprocessor would do."""

    def __init__(self, model: Any, grid: FrameGrid, *, normalize: bool) -> None:
        self.grid = grid
        self.normalize = normalize
        self._model = model

    @property
    def sample_rate(self) -> int:
        """Samples per second of what it hears."""
        return self.grid.sample_rate

    @torch.inference_mode()
    def hidden_states(self, waveform: Tensor) -> tuple[Tensor, ...]:
        """``layers + 1`` tensors (B, F, D) of a waveform (B, T) in [-1, 1]."""
        waveform = waveform.to(self._model.device, torch.float32)
        if self.normalize:
            waveform = normalize_waveform(waveform)
        states: tuple[Tensor, ...] = self._model(waveform, output_hidden_states=True).hidden_states
        return states


def fetch(name: str) -> Path:
    """The folder of a model on the Hugging Face hub: settings and weights, and no code.

    :raises ValueError: if there is no such model, or no way to the hub.
    """
    wanted = [CONFIG_NAME, PREPROCESSOR_NAME, WEIGHTS_NAME, "pytorch_model.bin"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"{name} cannot be had from the Hugging Face hub: {error}") from error


def load_hf_encoder(
    folder: Path,
    *,
    device: torch.device | None = None,
    shipped: bool = False,
    masking: bool = False,
) -> HfEncoder:
    """Reads any folder of a HuBERT, MERT, data2vec-audio or wav2vec2 model.

    :param shipped: reads a MERT with our copy of the code that ships with one, not as a HuBERT.
    :param masking: whether the mask embedding must be there, which frozen features never meet and
        folders of fine-tuned models lack.
    :raises FileNotFoundError: if a file is missing.
    :raises ValueError: if the folder holds another kind of model, or lacks weights.
    """
    return _frozen(folder, load_model(folder, shipped=shipped, masking=masking), device)


def fresh_hf_encoder(folder: Path, *, device: torch.device | None = None) -> HfEncoder:
    """A model of the folder's settings with fresh weights, out of torch's own random numbers.

    :raises FileNotFoundError: if a file is missing.
    :raises ValueError: if the folder holds another kind of model.
    """
    config = _read_config(folder)
    _, model_class = _CLASSES[config.model_type]
    return _frozen(folder, model_class(config).eval(), device)


def describe(folder: Path) -> str:
    """All that a fresh model follows from, its random numbers apart: equal for equal models."""
    preprocessor = _read_json(folder / PREPROCESSOR_NAME)
    rate, normalizes = _sample_rate(folder, preprocessor), _normalizes(preprocessor)
    return f"{rate} Hz, normalize {normalizes}: {_read_config(folder).to_json_string()}"


def _frozen(folder: Path, model: Any, device: torch.device | None) -> HfEncoder:
    config, preprocessor = model.config, _read_json(folder / PREPROCESSOR_NAME)
    grid = FrameGrid(
        _sample_rate(folder, preprocessor), tuple(config.conv_kernel), tuple(config.conv_stride)
    )
    if device is not None:
        model = model.to(device)
    return HfEncoder(model, grid, normalize=_normalizes(preprocessor))


def load_model(folder: Path, *, shipped: bool = False, masking: bool = True) -> Any:
    """The folder as transformers' model in evaluation mode, every weight from the file.

    :param shipped: as in :func:`load_hf_encoder`.
    :param masking: as there; an encoder to train on needs it.
    :raises FileNotFoundError: if there is no ``config.json``.
    :raises ValueError: if weights are missing or do not fit the settings.
    """
    config = _read_config(folder)
    _check_parts(folder)
    _, model_class = _CLASSES[config.model_type]
    if shipped:
        model_class, config = MERTModel, MERTConfig.from_dict(config.to_dict())
    name = model_class.__name__
    try:
        # Of a wrong shape transformers' own error does not say whose it is.
        model, info = model_class.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # noqa: BLE001 - of odd settings transformers may raise anything
        raise ValueError(f"{folder} cannot be loaded as a {name}: {error}") from error
    if mismatched := sorted(info["mismatched_keys"]):
        key = mismatched[0] if isinstance(mismatched[0], str) else mismatched[0][0]
        wanted = tuple(model.state_dict()[key].shape)
        raise ValueError(
            f"{key} in {folder} has another shape than {wanted}, which {CONFIG_NAME} makes it."
        )
    # transformers fills what is missing with random numbers and only warns.
    lacking = sorted(key for key in info["missing_keys"] if masking or key != _MASK_EMBEDDING)
    if lacking:
        raise ValueError(
            f"the weights in {folder} must fill the whole {name}, but lack {', '.join(lacking)}."
        )
    return model.eval()


def import_encoder(folder: Path) -> Encoder:
    """The folder as an encoder of ours, in evaluation mode.

    :raises FileNotFoundError: if a file is missing.
    :raises ValueError: if our encoder cannot be that model.
    """
    preprocessor = _read_json(folder / PREPROCESSOR_NAME)
    sample_rate, normalize = _sample_rate(folder, preprocessor), _normalizes(preprocessor)
    if _read_config(folder).model_type == WAV2VEC2_TYPE:
        raise ValueError(
            f"{folder} holds a {WAV2VEC2_TYPE} model, which is read for frozen features alone: "
            "training goes on from HuBERT, MERT and data2vec-audio folders."
        )
    model = load_model(folder)
    values, state = model.config.to_dict(), model.state_dict()
    if _is_data2vec(model.config):
        config = from_data2vec_config(values, sample_rate=sample_rate, normalize=normalize)
        state = from_data2vec(state, config)
    else:
        config = from_hubert_config(values, sample_rate=sample_rate, normalize=normalize)
        state = from_hubert(state, config)
    encoder = Encoder(config)
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:  # no mask embedding: a model that was never to be masked
        raise ValueError(f"{folder} does not hold a whole encoder of ours: {error}") from error
    return encoder.eval()


def _read_config(folder: Path) -> Any:
    values = _read_json(folder / CONFIG_NAME)
    kind = values.get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(
            f"model_type in {folder / CONFIG_NAME} must be {', '.join(MODEL_TYPES[:-1])} or "
            f"{MODEL_TYPES[-1]}, but is {kind!r}."
        )
    # A missing field would be filled with a default, and perhaps load into another model.
    shaping = DATA2VEC_SHAPING if kind == DATA2VEC_TYPE else HUBERT_SHAPING
    if lacking := [key for key in shaping if key not in values]:
        raise ValueError(
            f"{folder / CONFIG_NAME} must say {', '.join(lacking)}: a model cannot be rebuilt by "
            "guessing. Take them from where the weights were made."
        )
    # What MERT's own class adds; no released model has any of it switched on where it would act.
    relax = values.get("attention_relax", -1)
    relaxed = not isinstance(relax, int | float) or relax > 0
    relaxed = relaxed and not values.get("do_stable_layer_norm")
    if values.get("feature_extractor_cqt") or values.get("deepnorm") or relaxed:
        raise ValueError(
            f"{folder / CONFIG_NAME} asks for feature_extractor_cqt, deepnorm or attention_relax, "
            "which HubertModel does not have."
        )
    config_class, _ = _CLASSES[kind]
    # What shapes the model, and nothing else: `auto_map` would point at code beside the weights,
    # `_attn_implementation` at code on the hub. An encoder has no vocabulary, and the released
    # music2vec says a path where its size belongs.
    known = inspect.signature(config_class).parameters.keys() - {"vocab_size", "kwargs"}
    try:
        return config_class.from_dict({key: values[key] for key in known & values.keys()})
    except Exception as error:  # noqa: BLE001 - of odd settings transformers may raise anything
        raise ValueError(f"{folder / CONFIG_NAME} is no {kind} model's: {error}") from error


def _check_parts(folder: Path) -> None:
    """Whether the lists of weights in several files name files of the folder."""
    for path in folder.glob("*.index.json"):
        parts = _read_json(path).get("weight_map")
        for name in parts.values() if isinstance(parts, dict) else ():
            if not isinstance(name, str) or Path(name).name != name:
                raise ValueError(f"{path} must name files of its folder, but names {name!r}.")


def _is_data2vec(config: Any) -> bool:
    return isinstance(config, Data2VecAudioConfig)


def _normalizes(preprocessor: dict[str, Any]) -> bool:
    # transformers takes a missing flag for true.
    return bool(preprocessor.get("do_normalize", True))


def _sample_rate(folder: Path, preprocessor: dict[str, Any]) -> int:
    rate = preprocessor.get("sampling_rate")
    if not isinstance(rate, int) or rate < 1:
        raise ValueError(
            f"sampling_rate in {folder / PREPROCESSOR_NAME} must be samples per second, "
            f"but is {rate!r}."
        )
    return rate


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, but holds {type(values).__name__}.")
    return values
