"""An encoder as a Hugging Face folder: HuBERT, data2vec, or MERT with its code.

    check -> write beside the destination -> read back and compare every layer -> rename

so that a folder of that name is always complete and always verified.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from etude.models.encoder import Encoder
from etude.models.hf.card import CardFacts, model_card
from etude.models.hf.config import Format, to_data2vec_config, to_hubert_config, to_mert_config
from etude.models.hf.keys import to_data2vec, to_hubert
from etude.models.hf.load import CONFIG_NAME, PREPROCESSOR_NAME, WEIGHTS_NAME
from etude.models.hf.verify import verification_waveform, verify_export

CARD_NAME = "README.md"
CODE_NAMES = ("configuration_MERT.py", "modeling_MERT.py")
"""What ships with a ``mert`` export, for `trust_remote_code=True`."""

MARBLE_NAME = "marble_encoder.py"
"""The model as an encoder of the MARBLE benchmark; ships with every export."""

EXPORTED_FILES = (
    CONFIG_NAME,
    PREPROCESSOR_NAME,
    WEIGHTS_NAME,
    CARD_NAME,
    MARBLE_NAME,
    *CODE_NAMES,
)

_CODE = Path(__file__).parent / "shipped"

# `format` is what transformers asks for; the other entry marks the folder as replaceable by us.
WEIGHTS_METADATA = {"format": "pt", "exported_by": "etude"}


def export_encoder(
    encoder: Encoder, folder: Path, *, format: Format, card: CardFacts
) -> list[float]:
    """Writes ``folder`` and returns the largest difference of each hidden state.

    :param format: ``hubert`` or ``mert`` for one positional convolution, ``data2vec`` for a stack.
    :raises FileExistsError: if ``folder`` holds anything but an earlier export.
    :raises FloatingPointError: if weights are not finite.
    :raises ValueError: if the format's model cannot be this encoder, or if what was written does
        not reproduce it.
    """
    config, renamed = _converted(encoder, format)
    check_destination(folder)
    weights = {
        key: tensor.detach().to("cpu", torch.float32).contiguous()
        for key, tensor in renamed.items()
    }
    if broken := [key for key, tensor in weights.items() if not tensor.isfinite().all()]:
        raise FloatingPointError(
            f"all weights must be finite, but NaN or infinity is in {broken[0]}."
        )

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.part-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _write_json(temporary / CONFIG_NAME, config)
        _write_json(temporary / PREPROCESSOR_NAME, _preprocessor(encoder))
        save_file(weights, temporary / WEIGHTS_NAME, metadata=WEIGHTS_METADATA)
        parameters = sum(tensor.numel() for tensor in weights.values())
        text = model_card(encoder.config, card, format=format, parameters=parameters)
        (temporary / CARD_NAME).write_text(text)
        shutil.copyfile(_CODE / MARBLE_NAME, temporary / MARBLE_NAME)
        device = next(encoder.parameters()).device
        waveform = verification_waveform(encoder.config.sample_rate).to(device)
        differences = verify_export(encoder, temporary, waveform)
        if format == "mert":
            for name in CODE_NAMES:
                shutil.copyfile(_CODE / name, temporary / name)
            shipped = verify_export(encoder, temporary, waveform, shipped=True)
            differences = list(map(max, differences, shipped))
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return differences


def check_destination(folder: Path) -> None:
    """Checks that nothing of the user's would be overwritten.

    :raises FileExistsError: if ``folder`` is a file, or holds anything but an earlier export.
    """
    if folder.is_dir():
        names = {path.name for path in folder.iterdir()}
        if not names:
            return
        if {CONFIG_NAME, WEIGHTS_NAME} <= names and _is_ours(folder / WEIGHTS_NAME):
            if not (others := sorted(names.difference(EXPORTED_FILES))):
                return
            raise FileExistsError(
                f"{folder} is an earlier export, but also holds {', '.join(others)}, which a new "
                "one would remove: move that away or choose another folder."
            )
    elif not folder.exists():
        return
    raise FileExistsError(
        f"{folder} exists and is no earlier export: choose a new or an empty folder."
    )


def _is_ours(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        return False
    return metadata.get("exported_by") == WEIGHTS_METADATA["exported_by"]


def _converted(encoder: Encoder, format: Format) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of ``config.json``, and the weights under Hugging Face's names."""
    config, state = encoder.config, encoder.state_dict()
    if format == "data2vec":
        return to_data2vec_config(config), to_data2vec(state, config)
    if format == "mert":
        return to_mert_config(config), to_hubert(state, config)
    return to_hubert_config(config), to_hubert(state, config)


def _preprocessor(encoder: Encoder) -> dict[str, Any]:
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": encoder.config.sample_rate,
        "do_normalize": encoder.config.normalize,
        # A group norm over time takes the padding into its statistics, mask or not; models with
        # one were trained on full crops and are used without a mask.
        "return_attention_mask": encoder.config.conv_norm == "layer",
        "padding_side": "right",
        "padding_value": 0.0,
    }


def _publish(temporary: Path, folder: Path) -> None:
    """Renames; an earlier export steps aside first: a full folder cannot be renamed over."""
    if not folder.exists() or not any(folder.iterdir()):
        temporary.replace(folder)
        return
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    folder.replace(old)
    temporary.replace(folder)
    shutil.rmtree(old)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
