"""B: what most would write: transformers' HubertModel, autocast, linear heads, nnAudio's CQT."""

import time

import torch
from nnAudio.features.cqt import CQT1992v2
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import HubertConfig, HubertModel

from .common import CLASSES, CODEBOOKS, CQT, GEOMETRY, KERNELS, STRIDES, Problem, Way, stepper


def transformers_hubert(problem: Problem) -> Way:
    """With the faster of its two kinds of attention, as measured on the spot."""
    attention = faster_attention(problem)
    model = Hubert(problem, attention, with_cqt=True)
    what = f"transformers HubertModel ({attention}), autocast, 8 linear heads, nnAudio CQT in fp32"
    return Way(what, stepper(model.parameters(), model))


def transformers_compiled(problem: Problem) -> Way:
    """C: the same compiled, codes given, no CQT."""
    model = Hubert(problem, "sdpa", with_cqt=False)
    model.hubert.compile()
    what = "transformers HubertModel (sdpa), torch.compile, autocast, 8 linear heads, no CQT"
    return Way(what, stepper(model.parameters(), model))


def hubert(problem: Problem, attention: str) -> HubertModel:
    size = GEOMETRY[problem.size]
    config = HubertConfig(
        hidden_size=size["dim"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        intermediate_size=size["ffn_dim"],
        conv_kernel=KERNELS,
        conv_stride=STRIDES,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    return HubertModel(config).train()


class Hubert(nn.Module):
    """The model, its heads, and the loss of the problem's crops."""

    def __init__(self, problem: Problem, attention: str, *, with_cqt: bool) -> None:
        super().__init__()
        self.problem = problem
        self.hubert = hubert(problem, attention)
        dim = GEOMETRY[problem.size]["dim"]
        self.heads = nn.ModuleList(nn.Linear(dim, CLASSES) for _ in range(CODEBOOKS))
        self.cqt_head = nn.Linear(dim, CQT["bins"]) if with_cqt else None
        self.cqt = cqt(problem) if with_cqt else None
        self.to(problem.device)
        self.waveform, self.codes = problem.waveform(), problem.codes()
        self.mask = problem.mask().bool_BF

    def forward(self) -> Tensor:
        target = cqt_target(self.cqt, self.waveform, self.problem.frames) if self.cqt else None
        with self.problem.autocast():
            hidden = self.hubert(self.waveform, mask_time_indices=self.mask).last_hidden_state
            masked, labels = hidden[self.mask], self.codes[self.mask]
            loss = masked.new_zeros((), dtype=torch.float32)
            for k, head in enumerate(self.heads):
                loss = loss + F.cross_entropy(head(masked), labels[:, k])
            if target is not None and self.cqt_head is not None:
                loss = loss + F.mse_loss(self.cqt_head(masked).float(), target[self.mask])
        return loss


def cqt(problem: Problem) -> nn.Module:
    return CQT1992v2(
        sr=problem.sample_rate,
        hop_length=320,
        fmin=CQT["fmin"],
        n_bins=CQT["bins"],
        bins_per_octave=CQT["bins_per_octave"],
        pad_mode="constant",
        verbose=False,
    ).to(problem.device)


@torch.no_grad()
def cqt_target(transform: nn.Module, waveform: Tensor, frames: int) -> Tensor:
    spectrum: Tensor = transform(waveform.float())
    return spectrum.transpose(1, 2)[:, :frames]


def faster_attention(problem: Problem) -> str:
    seconds = {}
    for attention in ("sdpa", "eager"):
        model = Hubert(problem, attention, with_cqt=False)
        for _ in range(2):  # the first warms up
            began = time.process_time() if problem.device == "cpu" else time.perf_counter()
            model().backward()
            if problem.device == "cuda":
                torch.cuda.synchronize()
            ended = time.process_time() if problem.device == "cpu" else time.perf_counter()
            seconds[attention] = ended - began
    return min(seconds, key=lambda name: seconds[name])
