"""Proof that an exported folder is the encoder that was trained: same audio, same hidden states.

The folder is read as any user would read it, by transformers and with what its preprocessor says (a
``mert`` one as a HuBERT, and by the code that ships with it), and every hidden state is compared
with the training encoder's. Two seconds are enough: every weight of the network acts on every
frame. The mask embedding alone acts on no user's audio; a test masks with it.
"""

from pathlib import Path

import torch
from torch import Tensor

from etude.models.encoder import Encoder
from etude.models.hf.load import load_hf_encoder

TOLERANCE = 1e-4
"""Largest difference allowed, times the largest value of the layer where that exceeds 1."""

VERIFICATION_SECONDS = 2.0


def verification_waveform(sample_rate: int) -> Tensor:
    """Two rows (2, T): noise, and a chord; the same at every call."""
    samples = round(VERIFICATION_SECONDS * sample_rate)
    noise = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(0))
    time = torch.arange(samples) / sample_rate
    notes = torch.tensor([220.0, 277.18, 329.63])
    chord = 0.2 * torch.sin(2 * torch.pi * notes[:, None] * time).sum(dim=0)
    return torch.stack([noise, chord])


def verify_export(
    encoder: Encoder, folder: Path, waveform: Tensor, *, shipped: bool = False
) -> list[float]:
    """Largest absolute difference of each of the ``layers + 1`` hidden states.

    :param encoder: what was exported.
    :param folder: where it was exported to.
    :param shipped: reads it with the code that ships with a ``mert`` export.
    :param waveform: (B, T), float in [-1, 1].
    :raises ValueError: if the folder does not load, or any difference exceeds the tolerance.
    """
    exported = load_hf_encoder(folder, device=waveform.device, shipped=shipped, masking=True)
    was_training = encoder.training
    encoder.eval()
    with torch.inference_mode():
        ours = encoder(waveform).hidden_states
        theirs = exported.hidden_states(waveform)
    encoder.train(was_training)
    if len(ours) != len(theirs):
        raise ValueError(
            f"{folder} must give {len(ours)} hidden states, as training does, but gives "
            f"{len(theirs)}."
        )
    differences: list[float] = []
    for layer, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        difference = float((own - other).abs().max())
        allowed = TOLERANCE * max(1.0, float(own.abs().max()))
        # Written so that a NaN fails too.
        if not difference <= allowed:
            raise ValueError(
                f"hidden state {layer} of {folder} differs from the training encoder's by "
                f"{difference:.2e}, more than {allowed:.2e}: the export is wrong and was not kept."
            )
        differences.append(difference)
    return differences
