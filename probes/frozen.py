"""The models that are probed: a trained encoder, the same one untrained, Hugging Face's.

The untrained encoder says what the architecture alone gives, ``probes.spectra`` what the spectrum
alone gives: a trained encoder that does not beat both has learnt nothing that this probe can see.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, final

import torch
from safetensors import SafetensorError
from torch import Tensor

from etude.data.errors import InputError
from etude.data.files import file_sha256
from etude.models.encoder import Encoder
from etude.models.frames import FrameGrid
from etude.models.weights import CONFIG_NAME, WEIGHTS_NAME, load_encoder

HF_CONFIG_NAME = "config.json"


@final
class EncoderModel:
    """An :class:`Encoder`, trained or not.

    :param identity: changes whenever its features may: the weights' content.
    """

    with_deviation = False

    def __init__(
        self, encoder: Encoder, *, name: str, device: torch.device, identity: str = ""
    ) -> None:
        self.name = name
        self.identity = identity
        self.grid = encoder.grid
        self.encoder = encoder.eval().to(device)
        self._device = device

    def layers(self, waveform: Tensor) -> list[Tensor]:
        """Input of the first layer and output of each."""
        return list(self.encoder(waveform.to(self._device)).hidden_states)


class _HfEncoder(Protocol):
    """What ``etude.models.hf.load.load_hf_encoder`` returns."""

    grid: FrameGrid

    def hidden_states(self, waveform: Tensor) -> tuple[Tensor, ...]: ...


@final
class HfModel:
    """A Hugging Face folder: ours, exported, or one of the released models; or one untrained."""

    with_deviation = False

    def __init__(self, encoder: _HfEncoder, *, name: str, identity: str = "") -> None:
        self.name = name
        self.identity = identity
        self.grid = encoder.grid
        self._encoder = encoder

    def layers(self, waveform: Tensor) -> list[Tensor]:
        """What transformers calls hidden states."""
        return [layer.float() for layer in self._encoder.hidden_states(waveform)]


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are, found from what the user gave."""

    name: str
    """Unique and short: the folder's name, with the step where a run was given."""

    folder: Path

    format: Literal["etude", "huggingface"]


def find_model(path: Path) -> ModelSource:
    """Finds the model in an encoder's folder, a run's folder or a Hugging Face folder.

    :raises InputError: where there is none.
    """
    if _holds_encoder(path):
        return ModelSource(_readable_name(path), path, "etude")
    checkpoints = {
        int(match[1]): folder
        for folder in path.glob("checkpoints/step-*")
        # A full match: a checkpoint being written has a longer name.
        if (match := re.fullmatch(r"step-(\d+)", folder.name)) and _holds_encoder(folder)
    }
    if checkpoints:
        newest = checkpoints[max(checkpoints)]
        return ModelSource(_readable_name(newest), newest, "etude")
    if (path / HF_CONFIG_NAME).is_file():
        return ModelSource(_readable_name(path), path, "huggingface")
    raise InputError(
        f"no model at {path}{'' if path.exists() else ', which does not exist'}: expected a "
        f"checkpoint (a folder with {CONFIG_NAME} and {WEIGHTS_NAME}), a run folder with such a "
        f"checkpoint under checkpoints/step-*/, or a Hugging Face folder with {HF_CONFIG_NAME}."
    )


def load_model(source: ModelSource, *, device: torch.device) -> EncoderModel | HfModel:
    """Reads a model.

    :raises InputError: if the files are not what they are called.
    """
    if source.format == "huggingface":
        # Imported here alone: transformers takes seconds to import, and most probes do without.
        from etude.models.hf.load import load_hf_encoder
    try:
        if source.format == "huggingface":
            hf_encoder = load_hf_encoder(source.folder, device=device)
            return HfModel(hf_encoder, name=source.name, identity=_content(source))
        encoder = load_encoder(source.folder)
        return EncoderModel(encoder, name=source.name, device=device, identity=_content(source))
    except (FileNotFoundError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"the encoder in {source.folder} cannot be loaded: {error}") from error


def untrained(model: EncoderModel, *, seed: int, name: str, device: torch.device) -> EncoderModel:
    """An encoder of the same settings with fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(model.encoder.config)
    identity = f"untrained {seed} {model.encoder.config.model_dump_json()}"
    return EncoderModel(encoder, name=name, device=device, identity=identity)


def untrained_hf(source: ModelSource, *, seed: int, name: str, device: torch.device) -> HfModel:
    """A Hugging Face folder's model with fresh weights, as transformers starts them."""
    from etude.models.hf.load import describe, fresh_hf_encoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = fresh_hf_encoder(source.folder, device=device)
    return HfModel(encoder, name=name, identity=f"untrained {seed} {describe(source.folder)}")


def shape_of(model: EncoderModel | HfModel, source: ModelSource) -> str:
    """Equal for models that would be the same untrained."""
    if isinstance(model, EncoderModel):
        return model.encoder.config.model_dump_json()
    from etude.models.hf.load import describe

    return describe(source.folder)


def _content(source: ModelSource) -> str:
    """A digest of the files that a model's features follow from."""
    if source.format == "etude":
        paths = [source.folder / CONFIG_NAME, source.folder / WEIGHTS_NAME]
    else:
        suffixes = {".json", ".safetensors", ".bin"}
        paths = sorted(p for p in source.folder.iterdir() if p.suffix in suffixes and p.is_file())
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _holds_encoder(folder: Path) -> bool:
    return (folder / CONFIG_NAME).is_file() and (folder / WEIGHTS_NAME).is_file()


def _readable_name(folder: Path) -> str:
    """``quickstart@200`` for a checkpoint of a run, else the folder's own name."""
    folder = folder.resolve()
    if (match := re.fullmatch(r"step-(\d+)", folder.name)) and folder.parent.name == "checkpoints":
        return f"{folder.parents[1].name}@{int(match[1])}"
    return folder.name
