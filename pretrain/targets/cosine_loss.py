"""Cross-entropy of cosine logits, one codebook at a time, logits never kept.

HuBERT's loss (Hsu et al. 2021, eq. 3) over K codebooks of V classes. Kept for a backward pass, the
logits of 8 x 1024 classes and their softmax would be the largest tensors of the step; here each
codebook's gradient is formed in the forward pass, while its logits are at hand, and the logits go.
The idea of making the gradient in the forward pass is Liger Kernel's (Hsu et al. 2024).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class CosineLoss(NamedTuple):
    """Per codebook, over all rows."""

    loss: Tensor
    """Mean cross-entropy in nats, (K,), with a graph."""

    accuracy: Tensor
    """Share of rows whose most likely class is the label, (K,), detached."""


def cosine_cross_entropy(
    projected: Tensor, classes: Tensor, labels: Tensor, *, temperature: float
) -> CosineLoss:
    """Cross-entropy of ``projected . classes / temperature`` against ``labels``.

    :param projected: unit vectors, float32 (K, N, d).
    :param classes: unit vectors, float32 (K, V, d).
    :param labels: int64 (N, K).
    """
    loss, accuracy = _CosineCrossEntropy.apply(  # type: ignore[no-untyped-call]
        projected, classes, labels, temperature
    )
    return CosineLoss(loss, accuracy)


class _CosineCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, projected_KND: Tensor, classes_KVD: Tensor, labels_NK: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        codebooks, rows, _ = projected_KND.shape
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        gradients = [torch.empty_like(t) for t in (projected_KND, classes_KVD)] if wanted else []
        losses, accuracies = [], []
        for k in range(codebooks):
            label_N1 = labels_NK[:, k, None]
            logits_NV = projected_KND[k] @ classes_KVD[k].T / temperature
            log_total_N1 = logits_NV.logsumexp(dim=1, keepdim=True)
            losses.append((log_total_N1 - logits_NV.gather(1, label_N1)).mean())
            accuracies.append((logits_NV.argmax(dim=1, keepdim=True) == label_N1).float().mean())
            if wanted:
                # d loss / d logits = (softmax - one hot) / N.
                slope_NV = logits_NV.sub_(log_total_N1).exp_()
                slope_NV.scatter_add_(1, label_N1, slope_NV.new_full(label_N1.shape, -1.0))
                slope_NV.mul_(1.0 / (rows * temperature))
                torch.mm(slope_NV, classes_KVD[k], out=gradients[0][k])
                torch.mm(slope_NV.T, projected_KND[k], out=gradients[1][k])
        ctx.save_for_backward(*gradients)
        loss_K, accuracy_K = torch.stack(losses), torch.stack(accuracies)
        ctx.mark_non_differentiable(accuracy_K)
        return loss_K, accuracy_K

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        projected_KND, classes_KVD = ctx.saved_tensors
        slope_K11 = upstream[0][:, None, None]
        return projected_KND * slope_K11, classes_KVD * slope_K11, None, None
