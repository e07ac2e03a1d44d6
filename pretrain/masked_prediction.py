"""The objective of the whole family: hide spans of frames, predict targets there.

    mix -> front end -> mask -> context -> for every target: compute, head, loss on masked frames

MERT v1 = {codec, cqt}, MERT v0 = {logmel, chroma, cqt}, music2vec = {teacher}: the methods differ
only in the targets (Li et al., "MERT", 2023; Hsu et al., "HuBERT", 2021; Baevski et al.,
"data2vec", 2022).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from etude.data.batch import AudioBatch
from etude.models.encoder import Encoder
from etude.pretrain.masking import FrameMask, masked_count, span_mask
from etude.pretrain.metrics import Mean, Metric
from etude.pretrain.objective import StepOutput
from etude.pretrain.random import derive, uniform_number
from etude.pretrain.targets.base import FrameContext, Target

Mixture = Callable[[Tensor, Tensor], Tensor]
"""(waveform (B, T), sample_ids (B,)) -> mixed waveform."""


class MaskedPrediction(nn.Module):
    """Predicts every target's masked frames from the visible ones.

    :param targets: by name, in the order in which their losses are added.
    :param weights: factor of each target's loss.
    :param mask_prob: share of frames that the starts of spans stand for (``masked_count``).
    :param mask_span: frames per span.
    :param mask_fraction: masked share of the frames; replaces the count that ``mask_prob`` gives.
    :param visible_weight: factor of the same losses on visible frames (fairseq's
        ``pred_nomask_weight``; HuBERT's 1 - alpha). 0 in MERT; above 0 the front end learns from
        every frame directly.
    :param feature_penalty: factor of the mean square of the raw conv features (fairseq's
        ``features_pen``; 10 in MERT).
    :param layer_drop: probability that a layer is passed over, in training alone.
    :param mixture: applied to the input and never to the targets, in training alone.
    """

    def __init__(
        self,
        encoder: Encoder,
        targets: Mapping[str, Target],
        *,
        weights: Mapping[str, float],
        seed: int,
        mask_prob: float,
        mask_span: int,
        mask_fraction: float | None = None,
        visible_weight: float = 0.0,
        feature_penalty: float = 0.0,
        layer_drop: float = 0.0,
        mixture: Mixture | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.targets = nn.ModuleDict(targets)
        self.weights = dict(weights)
        self.seed = seed
        self.mask_prob = mask_prob
        self.mask_span = mask_span
        self.mask_fraction = mask_fraction
        self.visible_weight = visible_weight
        self.feature_penalty = feature_penalty
        self.layer_drop = layer_drop
        self.mixture = mixture
        self._mask_key = derive(seed, "mask")

    def forward(self, batch: AudioBatch) -> StepOutput:
        """Loss per masked frame, and metrics named ``TARGET/quantity``."""
        clean = batch.waveform
        mixing = self.mixture is not None and self.training
        heard = self.mixture(clean, batch.sample_ids) if mixing and self.mixture else clean

        features = self.encoder.frontend(heard)
        num_frames = features.projected.shape[1]
        mask = self.mask(batch.sample_ids, num_frames)
        output = self.encoder.context(
            features.projected, mask=mask.bool_BF, keep_layers=self._kept_layers(batch)
        )
        hidden_BMD = _rows(output.last, mask.index_BM)

        context = FrameContext(clean, num_frames, batch.codes)
        loss = clean.new_zeros(())
        metrics: dict[str, Metric] = {}
        for name, target in self.targets.items():
            assert isinstance(target, Target)
            with torch.no_grad():
                target_BF = target.compute(context)
            compared = target.loss(
                hidden_BMD,
                _rows(target_BF, mask.index_BM),
                _rows(target_BF, mask.nearest_visible_BM),
            )
            loss = loss + self.weights[name] * compared.loss
            metrics.update({f"{name}/{key}": value for key, value in compared.metrics.items()})
            if self.visible_weight:
                visible_BV = _rows(target_BF, mask.visible_BV)
                seen = target.loss(_rows(output.last, mask.visible_BV), visible_BV, visible_BV)
                loss = loss + self.visible_weight * self.weights[name] * seen.loss
                metrics[f"{name}/visible_loss"] = seen.metrics["loss"]

        if mixing:
            mixed = (heard != clean).any(dim=1).float().mean()
            metrics["mixture/mixed"] = Mean.of(mixed, len(clean))
        if self.feature_penalty:
            penalty = features.raw.float().square().mean()
            loss = loss + self.feature_penalty * penalty
            metrics["feature_penalty"] = Mean.of(penalty, len(clean))
        metrics["loss"] = Mean.of(loss, len(clean))
        return StepOutput(loss, metrics)

    def mask(self, sample_ids: Tensor, num_frames: int) -> FrameMask:
        """The mask of each sample: a pure function of the seed and its id."""
        if self.mask_fraction is None:
            count = masked_count(num_frames, prob=self.mask_prob, span=self.mask_span)
        else:
            count = min(max(1, round(self.mask_fraction * num_frames)), num_frames - 1)
        return span_mask(
            self._mask_key, sample_ids, num_frames=num_frames, count=count, span=self.mask_span
        )

    def after_step(self, update: int) -> None:
        """Lets targets that move without gradients move."""
        for target in self.targets.values():
            assert isinstance(target, Target)
            target.after_step(update)

    def _kept_layers(self, batch: AudioBatch) -> Tensor | None:
        if not self.training or self.layer_drop == 0.0:
            return None
        update = int(batch.update)
        draws = [
            uniform_number(derive(self.seed, "layer drop", layer), update)
            for layer in range(len(self.encoder.layers))
        ]
        return torch.tensor(draws, device=batch.waveform.device) >= self.layer_drop


def _rows(values_BF: Tensor, index_BM: Tensor) -> Tensor:
    """Picks frames ``index_BM`` of ``values_BF`` (B, F, …)."""
    return values_BF[torch.arange(len(values_BF), device=values_BF.device)[:, None], index_BM]
