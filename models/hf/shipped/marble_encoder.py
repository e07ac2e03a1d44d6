"""This folder's model as an encoder of MARBLE v2 (github.com/a43992899/MARBLE).

Ships with every export; runs inside MARBLE alone, which imports it by its file's name:

    model.init_args.encoder.class_path: marble_encoder.Encoder
    data.init_args.audio_transforms.*.class_path: marble_encoder.Preprocess

with this folder on the PYTHONPATH. See docs/marble.md of Etude.
"""

import json
from pathlib import Path
from typing import Any, Dict, Optional

import torch
from marble.core.base_encoder import BaseEncoder
from marble.core.base_transform import BaseAudioTransform
from torch import Tensor
from transformers import AutoModel, Wav2Vec2FeatureExtractor

FOLDER = Path(__file__).resolve().parent
CONFIG: Dict[str, Any] = json.loads((FOLDER / "config.json").read_text())


class Encoder(BaseEncoder):
    """All hidden states of the model: layers + 1 tensors (B, frames, dim).

    folder: another export, instead of the one this file lies in. train_mode: `freeze` or `full`.
    """

    NAME = FOLDER.name
    TOKEN_RATE = CONFIG["frame_rate"]
    SAMPLING_RATE = CONFIG["sample_rate"]
    NUM_FEATURES = CONFIG["hidden_size"]
    N_TRANSFORMER_LAYERS = CONFIG["num_hidden_layers"]

    def __init__(self, folder: Optional[str] = None, train_mode: str = "freeze") -> None:
        super().__init__()
        if train_mode not in ("freeze", "full"):
            raise ValueError(f"train_mode must be freeze or full, but is {train_mode!r}.")
        self.sample_rate = self.SAMPLING_RATE
        self.frozen = train_mode == "freeze"
        # Code of the folder runs where the folder is a MERT with code of its own.
        self.model = AutoModel.from_pretrained(
            folder or FOLDER, trust_remote_code=CONFIG["model_type"] == "mert_model"
        )
        self.model.requires_grad_(not self.frozen)
        self.train(not self.frozen)

    def train(self, mode: bool = True) -> "Encoder":
        """A frozen model stays in evaluation mode, whatever the task around it does."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """x: what `Preprocess` made of mono audio at SAMPLING_RATE, (B, T)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            output = self.model(x.to(self.model.dtype), output_hidden_states=True)
        # The last one after the final norm, in every version of transformers.
        output.hidden_states = (*output.hidden_states[:-1], output.last_hidden_state)
        return output


class Preprocess(BaseAudioTransform):
    """What the model's preprocessor does, as an audio transform of MARBLE."""

    def __init__(self, folder: Optional[str] = None, squeeze: bool = True) -> None:
        super().__init__()
        self.processor = Wav2Vec2FeatureExtractor.from_pretrained(folder or FOLDER)
        self.squeeze = squeeze

    def forward(self, sample: Dict[str, Any]) -> Dict[str, Any]:
        """sample: `waveform` (T,) or (1, T), mono, and its `sampling_rate`."""
        waveform = sample["waveform"].reshape(-1)
        processed = self.processor(
            waveform.numpy(),
            sampling_rate=sample["sampling_rate"],  # another one than the model's is an error
            return_tensors="pt",
        ).input_values
        sample["waveform"] = processed[0] if self.squeeze else processed
        return sample
