"""An encoder on disk: its settings in JSON beside its weights in safetensors.

Every checkpoint holds these two files, so that probing and exporting need nothing of the training
code, and nothing that is loaded can execute.
"""

import json
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from etude.models.config import EncoderConfig
from etude.models.encoder import Encoder

CONFIG_NAME = "encoder.json"
WEIGHTS_NAME = "encoder.safetensors"


def save_encoder(encoder: Encoder, folder: Path) -> None:
    """Writes ``encoder.json`` and ``encoder.safetensors`` into an existing folder."""
    snapshot_encoder(encoder)(folder)


def snapshot_encoder(encoder: Encoder) -> Callable[[Path], None]:
    """Copies an encoder as it is now; what is returned writes the copy into a folder."""
    weights = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in encoder.state_dict().items()
    }
    settings = encoder.config.model_dump_json(indent=2) + "\n"

    def write(folder: Path) -> None:
        save_file(weights, folder / WEIGHTS_NAME)
        (folder / CONFIG_NAME).write_text(settings)

    return write


def load_encoder(folder: Path) -> Encoder:
    """Reads an encoder, in evaluation mode.

    :raises FileNotFoundError: if the folder holds no encoder.
    :raises ValueError: if a file is damaged or settings and weights do not fit each other.
    """
    encoder = Encoder(load_encoder_config(folder))
    path = folder / WEIGHTS_NAME
    try:
        encoder.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{path} does not hold the weights that {CONFIG_NAME} describes: {error}"
        ) from error
    return encoder.eval()


def load_encoder_config(folder: Path) -> EncoderConfig:
    """Reads the settings alone."""
    path = folder / CONFIG_NAME
    try:
        # Lists of YAML and JSON are tuples here, which strict validation allows in JSON mode only.
        return EncoderConfig.model_validate_json(path.read_text())
    except (ValidationError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} does not describe an encoder: {error}") from error
