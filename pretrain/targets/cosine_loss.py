"""Cross-entropy of cosine logits, one codebook at a time, logits never kept.

HuBERT's loss (Hsu et al. 2021, eq. 3) over K codebooks of V classes. Kept for a backward pass, the
logits of 8 x 1024 classes and their softmax would be the largest tensors of the step; here each
codebook's gradient is formed in the forward pass, while its logits are at hand, and the logits go.
The idea of making the gradient in the forward pass is Liger Kernel's (Hsu et al. 2024).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from etude.pretrain.targets.half_products import Halves, wide_product


class CosineLoss(NamedTuple):
    """Per codebook, over all rows."""

    loss: Tensor
    """Mean cross-entropy in nats, (K,), with a graph."""

    accuracy: Tensor
    """Share of rows whose most likely class is the label, (K,), detached."""


Judge = Callable[[Tensor, Tensor, float, torch.dtype], tuple[Tensor, Tensor, Tensor]]
"""A form of :func:`judge`, such as a compiled one."""


def judge(
    cosines_NV: Tensor, label_N1: Tensor, temperature: float, slope_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss, accuracy, and the loss's gradient by ``cosines_NV``, which may be overwritten."""
    compiling = torch.compiler.is_compiling()  # then nothing is written that nobody reads
    logits_NV = cosines_NV / temperature if compiling else cosines_NV.div_(temperature)
    log_total_N1 = logits_NV.logsumexp(dim=1, keepdim=True)
    loss = (log_total_N1 - logits_NV.gather(1, label_N1)).mean()
    accuracy = (logits_NV.argmax(dim=1, keepdim=True) == label_N1).float().mean()
    # d loss / d logits = (softmax - one hot) / N.
    if compiling:
        # All in one pass: a comparison can be part of it, a scatter cannot.
        classes_V = torch.arange(logits_NV.shape[1], device=logits_NV.device)
        slope_NV = (logits_NV - log_total_N1).exp() - (classes_V == label_N1).to(logits_NV.dtype)
    else:
        slope_NV = logits_NV.sub_(log_total_N1).exp_()
        slope_NV.scatter_add_(1, label_N1, slope_NV.new_full(label_N1.shape, -1.0))
    slope_NV = slope_NV.mul_(1.0 / (len(logits_NV) * temperature)).to(slope_dtype)
    return loss, accuracy, slope_NV


def cosine_cross_entropy(
    projected: Tensor,
    classes: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    judge: Judge = judge,
    heard_in: torch.dtype = torch.float32,
) -> CosineLoss:
    """Cross-entropy of ``projected . classes / temperature`` against ``labels``.

    :param projected: unit vectors, float32 (K, N, d).
    :param classes: unit vectors, float32 (K, V, d).
    :param labels: int64 (N, K).
    :param heard_in: the type of what ``projected`` was made of, to which its gradient will be
        rounded. If that is half precision, a GPU's tensor cores make the products.
    """
    # Elsewhere nothing is gained.
    half = heard_in if heard_in.itemsize == 2 and _has_tensor_cores(projected) else None
    loss, accuracy = _CosineCrossEntropy.apply(  # type: ignore[no-untyped-call]
        projected, classes, labels, temperature, judge, half
    )
    return CosineLoss(loss, accuracy)


def _has_tensor_cores(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


class _CosineCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        projected_KND: Tensor,
        classes_KVD: Tensor,
        labels_NK: Tensor,
        temperature: float,
        judge: Judge,
        half: torch.dtype | None,
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        gradients = [torch.empty_like(t) for t in (projected_KND, classes_KVD)] if wanted else []
        losses, accuracies = [], []
        multiply = torch.mm if half is None else wide_product
        left_KND, right_KVD = projected_KND, classes_KVD
        if half is not None:
            # Cosines keep float32's digits; their gradients need no more than those of half.
            projected, classes = Halves(projected_KND, half), Halves(classes_KVD, half)
            left_KND, right_KVD = projected.on_the_left(), classes.on_the_right()
            projected_KND, classes_KVD = projected.rounded, classes.rounded
        for k in range(len(projected_KND)):
            cosines_NV = multiply(left_KND[k], right_KVD[k].T)
            loss, accuracy, slope_NV = judge(
                cosines_NV, labels_NK[:, k, None], temperature, classes_KVD.dtype
            )
            losses.append(loss)
            accuracies.append(accuracy)
            if wanted:
                gradients[0][k] = multiply(slope_NV, classes_KVD[k])
                gradients[1][k] = multiply(slope_NV.T, projected_KND[k])
        ctx.save_for_backward(*gradients)
        loss_K, accuracy_K = torch.stack(losses), torch.stack(accuracies)
        ctx.mark_non_differentiable(accuracy_K)
        return loss_K, accuracy_K

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        projected_KND, classes_KVD = ctx.saved_tensors
        slope_K11 = upstream[0][:, None, None]
        return projected_KND * slope_K11, classes_KVD * slope_K11, None, None, None, None
