"""D: torchaudio's ``hubert_pretrain_base`` with its recipe's loss: one codebook, no CQT."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.models import hubert_pretrain_base

from .common import CLASSES, Problem, Way, stepper


def torchaudio_hubert(problem: Problem) -> Way:
    if problem.size != "95M":
        raise SystemExit("D: torchaudio's recipe is of the size 95M.")
    torch.manual_seed(0)
    model = hubert_pretrain_base(
        encoder_projection_dropout=0.0,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_drop=0.0,
        mask_prob=0.8,
        mask_channel_prob=0.0,
        mask_channel_length=10,
        feature_grad_mult=0.1,
        num_classes=CLASSES,
    ).to(problem.device)
    waveform, labels = problem.waveform(), problem.codes()[..., 0]
    lengths = torch.full((problem.crops,), waveform.shape[1], device=problem.device)

    def loss() -> Tensor:
        with problem.autocast():
            masked, unmasked, penalty = model(waveform, labels, lengths)
            zero = torch.zeros(len(masked), dtype=torch.long, device=masked.device)
            return F.cross_entropy(masked.float(), zero) + 10.0 * penalty

    assert isinstance(model, nn.Module)
    return Way(
        "torchaudio hubert_pretrain_base, autocast, one codebook, no CQT",
        stepper(model.parameters(), loss),
    )
