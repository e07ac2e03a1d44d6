"""The encoder file for MARBLE that ships with an export.

MARBLE is not installed here: its two base classes, which are torch modules without methods of their
own as far as the file uses them, stand in. Its tasks and data are not tested.
"""

import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
import torch
from training_parts import noise, small_encoder

from etude.models.hf.card import CardFacts
from etude.models.hf.config import Format
from etude.models.hf.export import export_encoder

CASES: list[tuple[Format, dict[str, object]]] = [
    ("hubert", {}),
    ("mert", {"norm": "pre"}),
    ("data2vec", {"conv_norm": "layer", "position_depth": 3, "normalize": True}),
]

SCRIPT = """
import torch
from marble_encoder import Encoder, Preprocess

rate = Encoder.SAMPLING_RATE
assert (rate, Encoder.TOKEN_RATE) == (24_000, 75)
assert (Encoder.NUM_FEATURES, Encoder.N_TRANSFORMER_LAYERS) == (32, 2)
audio = torch.load("audio.pt")
sample = Preprocess()({"waveform": audio[:1], "sampling_rate": rate})
assert sample["waveform"].shape == (24_000,)
encoder = Encoder().train()
assert not encoder.model.training and not any(p.requires_grad for p in encoder.parameters())
states = encoder(sample["waveform"][None]).hidden_states
for state, expected in zip(states, torch.load("expected.pt"), strict=True):
    assert (state - expected[:1]).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))
try:
    Preprocess()({"waveform": audio[0], "sampling_rate": rate // 2})
except ValueError:
    pass
else:
    raise AssertionError("another rate passed")
tuned = Encoder(train_mode="full").train()
assert tuned.model.training
tuned(sample["waveform"][None]).last_hidden_state.sum().backward()
print("all of it")
"""


@pytest.mark.parametrize(("format", "settings"), CASES)
def test_marble_hears_what_training_heard(
    tmp_path: Path, format: Format, settings: dict[str, object]
) -> None:
    encoder = small_encoder(**settings).eval()
    card = CardFacts(name="tiny", paradigm="none", trained_on=date(2026, 1, 1))
    export_encoder(encoder, tmp_path / "out", format=format, card=card)
    core = tmp_path / "bases" / "marble" / "core"
    core.mkdir(parents=True)
    for name, base in (("base_encoder", "BaseEncoder"), ("base_transform", "BaseAudioTransform")):
        (core / f"{name}.py").write_text(
            f"from torch import nn\n\n\nclass {base}(nn.Module):\n    pass\n"
        )
    audio = noise(2, 24_000) + 0.05
    torch.save(audio, tmp_path / "audio.pt")
    with torch.no_grad():
        torch.save(encoder(audio).hidden_states, tmp_path / "expected.pt")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = ['out', 'bases']\n{SCRIPT}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all of it\n")
