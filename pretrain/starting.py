"""Weights to start from: another run's, a Hugging Face model's, a fairseq checkpoint's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from etude.data.errors import InputError
from etude.models.config import EncoderConfig
from etude.models.encoder import Encoder
from etude.models.weights import load_encoder
from etude.pretrain.errors import ConfigError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Start:
    """An encoder's weights, and an account of them for the log."""

    state: Mapping[str, Tensor]
    account: tuple[str, ...]


def load_start(source: Path, model: EncoderConfig) -> Start:
    """Reads and checks the weights that ``init_from`` names; nothing that is read can execute.

    :param model: the encoder that is to start from them.
    :raises ConfigError: if they are of another shape.
    :raises InputError: if there is nothing of the kind.
    """
    try:
        return _load(source, model)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"init_from: {error}") from error


def find_encoder(path: Path) -> Path:
    """The folder with the newest encoder of a run, a checkpoint or an encoder folder.

    :raises InputError: if there is none.
    """
    for folder in (path, *sorted(path.glob("checkpoints/step-????????"), reverse=True)):
        if (folder / "encoder.json").is_file():
            return folder
    raise InputError(
        f"{path} holds no encoder: expected a run folder with checkpoints, or a folder with "
        "encoder.json and encoder.safetensors."
    )


def _load(source: Path, model: EncoderConfig) -> Start:
    if source.is_file():
        return _load_fairseq(source, model)
    if not source.exists():
        if not _HUB_NAME.fullmatch(str(source)):
            raise InputError(
                f"init_from: there is no {source}. Give a run or checkpoint folder, a Hugging Face "
                "folder or hub id, or a fairseq checkpoint (.pt)."
            )
        from etude.models.hf.load import fetch

        source = fetch(str(source))
    if (source / "config.json").is_file():
        # Imported here: transformers takes seconds, which a run of its own need not wait for.
        from etude.models.hf.load import import_encoder

        encoder = import_encoder(source)
    else:
        source = find_encoder(source)
        encoder = load_encoder(source)
    _check_shape(source, encoder.config, model)
    account = [_loaded(len(encoder.state_dict()), source)]
    if encoder.config.normalize != model.normalize:
        account.append(
            f"init_from: {source} hears waveforms {_heard(encoder.config)}, this run "
            f"{_heard(model)} (model.normalize)."
        )
    return Start(encoder.state_dict(), tuple(account))


def _load_fairseq(path: Path, model: EncoderConfig) -> Start:
    from etude.models.fairseq import load_fairseq

    found = load_fairseq(path, model)
    _check_tensors(path, found.state, Encoder(model))
    left_out = ", ".join(found.left_out) or "nothing"
    return Start(found.state, (f"{_loaded(len(found.state), path)} Left in the file: {left_out}.",))


def _loaded(tensors: int, source: Path) -> str:
    return (
        f"init_from: the encoder's {tensors} tensors are those of {source}. Heads, optimizer and "
        "learning rate start anew, with a warm-up."
    )


def _heard(config: EncoderConfig) -> str:
    return "at mean 0 and variance 1" if config.normalize else "as they are"


def _check_shape(source: Path, old: EncoderConfig, new: EncoderConfig) -> None:
    """Whether all that gives weights their shapes and meaning is equal."""
    different = [
        f"{key} (there {getattr(old, key)!r}, here {getattr(new, key)!r})"
        for key in sorted(EncoderConfig.model_fields.keys() - EncoderConfig.free_fields)
        if getattr(old, key) != getattr(new, key)
    ]
    if different:
        raise ConfigError(
            f"init_from: the encoder in {source} has another shape than model: "
            f"{'; '.join(different)}. Take its settings."
        )


def _check_tensors(path: Path, state: Mapping[str, Tensor], encoder: nn.Module) -> None:
    wanted = encoder.state_dict()
    if lacking := sorted(wanted.keys() - state.keys()):
        raise ConfigError(f"init_from: {path} lacks {', '.join(lacking)} of the encoder in model.")
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            raise ConfigError(
                f"init_from: {name} of {path} has the shape {tuple(value.shape)}, but model makes "
                f"it {tuple(wanted[name].shape)}. Take the settings it was trained with."
            )
