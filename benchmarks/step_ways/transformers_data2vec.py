"""E: transformers' Data2VecAudioModel with a teacher that follows it, written by hand."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Data2VecAudioConfig, Data2VecAudioModel

from .common import GEOMETRY, KERNELS, STRIDES, Problem, Way, stepper

_DECAY = 0.999


def transformers_data2vec(problem: Problem) -> Way:
    size = GEOMETRY[problem.size]
    torch.manual_seed(0)
    config = Data2VecAudioConfig(
        hidden_size=size["dim"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        intermediate_size=size["ffn_dim"],
        conv_kernel=KERNELS,
        conv_stride=STRIDES,
        num_conv_pos_embeddings=5,
        conv_pos_kernel_size=19,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
        attn_implementation="sdpa",
    )
    student = Data2VecAudioModel(config).train().to(problem.device)
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    head = nn.Linear(size["dim"], size["dim"]).to(problem.device)
    waveform, mask = problem.waveform(), problem.mask().bool_BF

    def loss() -> Tensor:
        with problem.autocast():
            with torch.no_grad():
                states = teacher(waveform, output_hidden_states=True).hidden_states[-8:]
                normed = [
                    F.instance_norm(s.float().transpose(1, 2)).transpose(1, 2) for s in states
                ]
                target = torch.stack(normed).mean(dim=0)
            hidden = student(waveform, mask_time_indices=mask).last_hidden_state
            predicted = head(hidden[mask]).float()
            return F.mse_loss(predicted, target[mask]) * size["dim"] ** 0.5

    @torch.no_grad()
    def follow() -> None:
        for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
            old.lerp_(new, 1.0 - _DECAY)

    trained = [*student.parameters(), *head.parameters()]
    return Way(
        "transformers Data2VecAudioModel (sdpa), autocast, EMA parameter by parameter",
        stepper(trained, loss, after=follow),
    )
