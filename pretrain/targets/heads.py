"""Prediction heads for discrete targets."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.pretrain.metrics import LabelCounts, Mean, Metric
from etude.pretrain.targets.cosine_loss import CosineLoss, Judge, cosine_cross_entropy, judge


class CosineHead(nn.Module):
    """Cosine similarity to learned class embeddings, over a temperature, for K codebooks at once.

    HuBERT's loss (Hsu et al. 2021, eq. 3) with MERT's untied projections: codebook k compares its
    own chunk of one Linear(D -> K * final_dim) with its own V embeddings. fairseq's ``compute_nce``
    expands an (V + 1, M, final_dim) tensor per codebook; as a product of normalised matrices the
    logits are the same at a small fraction of the memory and time.
    """

    def __init__(
        self, dim: int, *, codebooks: int, classes: int, final_dim: int, temperature: float
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.judge: Judge = judge
        """What makes losses of cosines; ``train.compile`` puts a compiled one here."""
        self.projection = nn.Linear(dim, codebooks * final_dim)
        # U[0, 1), as fairseq's `label_embs_concat.uniform_()`.
        self.embedding = nn.Parameter(torch.rand(codebooks, classes, final_dim))

    def forward(self, hidden: Tensor) -> Tensor:
        """``hidden`` (N, D) to logits (K, N, V), float32."""
        projected, classes, _ = self._unit_vectors(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.bmm(projected, classes.transpose(1, 2)) / self.temperature

    def loss(self, hidden: Tensor, labels: Tensor) -> CosineLoss:
        """Cross-entropy and accuracy per codebook, without keeping any logits.

        :param hidden: (N, D).
        :param labels: int64 (N, K).
        """
        projected, classes, heard_in = self._unit_vectors(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return cosine_cross_entropy(
                projected,
                classes,
                labels,
                temperature=self.temperature,
                judge=self.judge,
                heard_in=heard_in,
            )

    def _unit_vectors(self, hidden: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
        """Projected frames, classes, and the type that the projection had."""
        codebooks, _, final_dim = self.embedding.shape
        projected = self.projection(hidden).view(-1, codebooks, final_dim).transpose(0, 1)
        # Float32 from here on: cosines over 0.1 in bfloat16 would be steps of 0.04 nats.
        frames = F.normalize(projected.float(), dim=-1)
        return frames, F.normalize(self.embedding.float(), dim=-1), projected.dtype


def classification_metrics(
    loss: Tensor, accuracy: Tensor, labels_BM: Tensor, copied_BM: Tensor, *, classes: int
) -> dict[str, Metric]:
    """What is reported of one codebook, beside what costs nothing on the same frames.

    :param loss: mean cross-entropy over the frames.
    :param accuracy: share of right answers.
    :param labels_BM: int64 (B, M).
    :param copied_BM: the label at the nearest visible frame of each.
    """
    frames = labels_BM.numel()
    # Not `bincount`, which looks for the largest label first, and the host would wait for it.
    ones = torch.ones((), device=labels_BM.device).expand(frames)
    counts = ones.new_zeros(classes).scatter_add_(0, labels_BM.flatten(), ones)
    return {
        "loss": Mean.of(loss, frames),
        "accuracy": Mean.of(accuracy, frames),
        "copy_accuracy": Mean.of((labels_BM == copied_BM).float().mean(), frames),
        "labels": LabelCounts(counts),
    }
