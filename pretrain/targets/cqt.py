"""Constant-Q spectrum regression (MERT, section 3: the acoustic and musical teachers)."""

from torch import Tensor, nn
from torch.nn import functional as F

from etude.models.spectral import ConstantQ
from etude.pretrain.metrics import Mean, Spread
from etude.pretrain.targets.base import FrameContext, Target, TargetLoss


class CqtTarget(Target):
    """Mean squared error of one linear layer against the CQT of the clean audio."""

    def __init__(self, transform: ConstantQ, dim: int, *, bins: int) -> None:
        super().__init__()
        self.transform = transform
        self.head = nn.Linear(dim, bins)

    def compute(self, context: FrameContext) -> Tensor:
        """Spectrum of every frame, float32 (B, F, bins)."""
        spectrum: Tensor = self.transform(context.waveform)
        return spectrum

    def loss(self, hidden_BMD: Tensor, target_BM: Tensor, copied_BM: Tensor) -> TargetLoss:
        """MSE over masked frames and bins, beside that of copying and of the mean spectrum."""
        predicted = self.head(hidden_BMD).float()
        loss = F.mse_loss(predicted, target_BM)
        frames = target_BM.shape[0] * target_BM.shape[1]
        copied = F.mse_loss(copied_BM, target_BM)
        return TargetLoss(
            loss,
            {
                "loss": Mean.of(loss, frames),
                "copy_loss": Mean.of(copied, frames),
                # The best constant is the mean spectrum: its error is the variance over frames.
                "variance": Spread.of(target_BM.flatten(0, 1)),
            },
        )

    def predict(self, hidden_BFD: Tensor) -> Tensor:
        """Spectrum, float32 (B, F, bins)."""
        spectrum: Tensor = self.head(hidden_BFD)
        return spectrum.float()
