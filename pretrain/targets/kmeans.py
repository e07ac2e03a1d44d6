"""K-means labels, computed on the fly (MERT-v0; HuBERT, Hsu et al. 2021).

The centroids come from ``launch/cluster.py``; the file also holds how the features were made, so
that training cannot compute them differently. Where they are a trained encoder's hidden states
(HuBERT's second iteration), the labels cost a forward pass of that encoder.
"""

from torch import Tensor

from etude.pretrain.quantizer import FeatureQuantizer
from etude.pretrain.targets.base import FrameContext, Target, TargetLoss
from etude.pretrain.targets.heads import CosineHead, classification_metrics


class KmeansTarget(Target):
    """Cross-entropy of the nearest centroid's index on masked frames."""

    classes: int

    def __init__(
        self, quantizer: FeatureQuantizer, dim: int, *, final_dim: int, temperature: float
    ) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.classes = quantizer.num_classes
        self.head = CosineHead(
            dim, codebooks=1, classes=self.classes, final_dim=final_dim, temperature=temperature
        )

    def compute(self, context: FrameContext) -> Tensor:
        """Label of every frame, int64 (B, F)."""
        labels: Tensor = self.quantizer(context.waveform)
        return labels

    def loss(self, hidden_BMD: Tensor, target_BM: Tensor, copied_BM: Tensor) -> TargetLoss:
        """Cross-entropy, accuracy, and what costs nothing: label counts, copying a neighbour."""
        compared = self.head.loss(hidden_BMD.flatten(0, 1), target_BM.reshape(-1, 1))
        loss = compared.loss[0]
        return TargetLoss(
            loss,
            classification_metrics(
                loss, compared.accuracy[0], target_BM, copied_BM, classes=self.classes
            ),
        )

    def predict(self, hidden_BFD: Tensor) -> Tensor:
        """The most likely label, int64 (B, F)."""
        logits_1NV: Tensor = self.head(hidden_BFD.flatten(0, 1))
        return logits_1NV[0].argmax(dim=-1).view(hidden_BFD.shape[:2])
