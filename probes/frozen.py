"""The models that are probed: a trained encoder, the same one untrained, log-mel, Hugging Face's.

The untrained encoder says what the architecture alone gives, log-mel what the spectrum alone gives:
a trained encoder that does not beat both has learnt nothing that this probe can see.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, final

import torch
from safetensors import SafetensorError
from torch import Tensor

from etude.data.errors import InputError
from etude.models.encoder import Encoder
from etude.models.frames import FrameGrid
from etude.models.spectral import LogMel
from etude.models.weights import CONFIG_NAME, WEIGHTS_NAME, load_encoder

LOGMEL_BINS = 128
LOGMEL_WINDOW_SECONDS = 0.128
"""Long enough to tell G3 from G#3 (12 Hz apart), short beside a note of 0.25 s."""

HF_CONFIG_NAME = "config.json"


@final
class EncoderModel:
    """An :class:`Encoder`, trained or not."""

    def __init__(self, encoder: Encoder, *, name: str, device: torch.device) -> None:
        self.name = name
        self.grid = encoder.grid
        self.encoder = encoder.eval().to(device)
        self._device = device

    def layers(self, waveform: Tensor) -> list[Tensor]:
        """Input of the first layer and output of each."""
        return list(self.encoder(waveform.to(self._device)).hidden_states)


@final
class LogMelModel:
    """Log-mel bands on an encoder's grid, as one layer."""

    def __init__(self, grid: FrameGrid, *, name: str = "log-mel") -> None:
        self.name = name
        self.grid = grid
        n_fft = 2 ** round(math.log2(LOGMEL_WINDOW_SECONDS * grid.sample_rate))
        self._transform = LogMel(grid, bins=LOGMEL_BINS, n_fft=n_fft)

    def layers(self, waveform: Tensor) -> list[Tensor]:
        """The bands."""
        return [self._transform(waveform)]


class _HfEncoder(Protocol):
    """What ``etude.models.hf.load.load_hf_encoder`` returns."""

    grid: FrameGrid

    def hidden_states(self, waveform: Tensor) -> tuple[Tensor, ...]: ...


@final
class HfModel:
    """A Hugging Face folder: ours, exported, or one of the released models."""

    def __init__(self, encoder: _HfEncoder, *, name: str) -> None:
        self.name = name
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
            return HfModel(load_hf_encoder(source.folder, device=device), name=source.name)
        return EncoderModel(load_encoder(source.folder), name=source.name, device=device)
    except (FileNotFoundError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"the encoder in {source.folder} cannot be loaded: {error}") from error


def untrained(model: EncoderModel, *, seed: int, name: str, device: torch.device) -> EncoderModel:
    """An encoder of the same settings with fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EncoderModel(Encoder(model.encoder.config), name=name, device=device)


def _holds_encoder(folder: Path) -> bool:
    return (folder / CONFIG_NAME).is_file() and (folder / WEIGHTS_NAME).is_file()


def _readable_name(folder: Path) -> str:
    """``quickstart@200`` for a checkpoint of a run, else the folder's own name."""
    folder = folder.resolve()
    if (match := re.fullmatch(r"step-(\d+)", folder.name)) and folder.parent.name == "checkpoints":
        return f"{folder.parents[1].name}@{int(match[1])}"
    return folder.name
