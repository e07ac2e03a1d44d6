"""A: MERT's step as published: its cosine loss by broadcasting, its CQT by dense convolution.

The network is transformers' HubertModel (the same layers as fairseq's, attention the faster way),
in bfloat16 with a float32 copy of all parameters for the optimizer, as fairseq's ``FP16Optimizer``
has it. The loss is written from HuBERT's formula (Hsu et
al. 2021, eq. 3) in the form of fairseq's ``compute_nce``: for each codebook, similarities of every
masked frame to its positive and to all classes, a (1 + V, S, D) comparison, with the class that
equals the positive set to minus infinity.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .common import CLASSES, CODEBOOKS, CQT, FINAL_DIM, GEOMETRY, Problem, Way, adamw, stepper
from .transformers_hubert import cqt, cqt_target, faster_attention, hubert

TEMPERATURE = 0.1


def published(problem: Problem) -> Way:
    attention = faster_attention(problem)
    model = Published(problem, attention)
    what = (
        f"published MERT: cosine loss by broadcasting, nnAudio CQT in fp32, network ({attention})"
    )
    parameters = list(model.parameters())
    if problem.precision == "fp32":
        return Way(what, stepper(parameters, model))
    return Way(what, copied_stepper(parameters, model))


def copied_stepper(
    parameters: list[nn.Parameter], loss_of: Callable[[], Tensor]
) -> Callable[[], float]:
    """Forward, backward, and AdamW on one flat float32 copy of the parameters."""
    copy = nn.Parameter(torch.cat([p.detach().float().flatten() for p in parameters]))
    copy.grad = torch.zeros_like(copy)
    optimizer = adamw([copy])
    sizes = [p.numel() for p in parameters]
    values, grads = (
        [part.view_as(p) for part, p in zip(flat.split(sizes), parameters, strict=True)]
        for flat in (copy.detach(), copy.grad)
    )

    def step() -> float:
        loss = loss_of()
        loss.backward()
        torch._foreach_copy_(grads, [p.grad for p in parameters])
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(parameters, values)
        for parameter in parameters:
            parameter.grad = None
        return float(loss.detach())

    return step


class Published(nn.Module):
    """The network with MERT's heads and the loss of the problem's crops."""

    def __init__(self, problem: Problem, attention: str) -> None:
        super().__init__()
        self.problem = problem
        self.hubert = hubert(problem, attention)
        dim, final_dim = GEOMETRY[problem.size]["dim"], FINAL_DIM[problem.size]
        self.final = nn.Linear(dim, CODEBOOKS * final_dim)
        self.embeddings = nn.ParameterList(torch.rand(CLASSES, final_dim) for _ in range(CODEBOOKS))
        self.cqt_head = nn.Linear(dim, CQT["bins"])
        if problem.precision == "bf16":
            self.bfloat16()
        self.to(problem.device)
        self.cqt = cqt(problem)
        self.waveform, self.codes = problem.waveform(), problem.codes()
        self.mask = problem.mask().bool_BF

    def forward(self) -> Tensor:
        target = cqt_target(self.cqt, self.waveform, self.problem.frames)
        heard = self.waveform.to(self.final.weight.dtype)
        hidden = self.hubert(heard, mask_time_indices=self.mask).last_hidden_state
        masked, labels = hidden[self.mask], self.codes[self.mask]
        loss = masked.new_zeros((), dtype=torch.float32)
        for k, projected in enumerate(self.final(masked).chunk(CODEBOOKS, dim=-1)):
            logits = compute_nce(projected, self.embeddings[k], labels[:, k])
            zero = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
            loss = loss + F.cross_entropy(logits.float(), zero)
        return loss + F.mse_loss(self.cqt_head(masked).float(), target[self.mask])


def compute_nce(projected_SD: Tensor, embeddings_VD: Tensor, labels_S: Tensor) -> Tensor:
    """Logits (S, 1 + V): the positive first, then all classes but the positive itself."""
    positive_SD = embeddings_VD[labels_S]
    classes_VSD = embeddings_VD[:, None].expand(-1, len(projected_SD), -1)
    same_VS = (positive_SD == classes_VSD).all(-1)
    compared = torch.cat([positive_SD[None], classes_VSD])
    logits = F.cosine_similarity(projected_SD.float(), compared.float(), dim=-1)
    logits = logits.type_as(projected_SD) / TEMPERATURE
    if same_VS.any():
        logits[1:][same_VS] = float("-inf")
    return logits.transpose(0, 1)
