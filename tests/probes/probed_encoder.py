"""A small encoder on disk, as probes are given one."""

from pathlib import Path

import torch

from etude.models.config import EncoderConfig
from etude.models.encoder import Encoder
from etude.models.weights import save_encoder


def save_probed_encoder(folder: Path, *, layers: int) -> Path:
    """Writes a fresh encoder of 16 kHz, the same each time, into a new ``folder``."""
    torch.manual_seed(0)
    folder.mkdir()
    config = EncoderConfig(
        sample_rate=16_000,
        conv_dims=(16,) * 7,
        layers=layers,
        dim=32,
        ffn_dim=64,
        heads=2,
        position_groups=4,
        norm="pre",
    )
    save_encoder(Encoder(config), folder)
    return folder
