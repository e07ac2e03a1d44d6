"""The objective of the whole family: hide spans of frames, predict targets there.

    mix -> front end -> mask -> context -> for every target: compute, head, loss on masked frames

With several views, each crop is masked in several ways and its targets are computed once (data2vec
2.0, section 3.1). Rows of views are ordered view by view: row v * B + b is view v of crop b.

MERT v1 = {codec, cqt}, MERT v0 = {logmel, chroma, cqt}, music2vec = {teacher}: the methods differ
only in the targets (Li et al., "MERT", 2023; Hsu et al., "HuBERT", 2021; Baevski et al.,
"data2vec", 2022).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from etude.data.batch import AudioBatch
from etude.models.context import EncoderOutput
from etude.models.encoder import Encoder
from etude.models.frontend import Features
from etude.pretrain.decoder import ConvDecoder
from etude.pretrain.masking import (
    FrameMask,
    masked_count,
    padded_span_mask,
    rows_at,
    span_mask,
    stack_views,
    true_rows,
)
from etude.pretrain.metrics import Mean, Metric
from etude.pretrain.objective import StepOutput
from etude.pretrain.random import derive, uniform_number
from etude.pretrain.targets.base import FrameContext, Target

Mixture = Callable[[Tensor, Tensor], Tensor]
"""(waveform (B, T), sample_ids (B,)) -> mixed waveform."""


Compute = Callable[[AudioBatch, Tensor | None], StepOutput]
"""(batch, keep_layers) -> loss and metrics."""


class Guess(NamedTuple):
    """What a target is and what is predicted of it, in the first view."""

    target_BF: Tensor
    """(B, F, …)."""

    predicted_BF: Tensor
    """The same shape; only on masked frames is a head trained to say anything."""


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
    :param views: ways in which each crop is masked, for one computation of its targets.
    :param decoder: fills in the masked frames, which the encoder's layers then do not see.
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
        views: int = 1,
        decoder: ConvDecoder | None = None,
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
        self.views = views
        self.decoder = decoder
        # The first view's masks are those of a run with one view.
        self._mask_keys = [derive(seed, "mask", *([view] if view else [])) for view in range(views)]
        self.recorded: Compute | None = None
        """Takes the place of :meth:`compute` in training, under ``train.cuda_graph``."""

    def forward(self, batch: AudioBatch) -> StepOutput:
        """Loss per masked frame, and metrics named ``TARGET/quantity``."""
        if not self.training:
            return self.compute(batch, None)
        compute = self.recorded or self.compute
        output = compute(batch, self._kept_layers(batch))
        metrics = dict(output.metrics)
        for name, target in self.targets.items():
            assert isinstance(target, Target)
            known = target.metrics(int(batch.update))
            metrics.update({f"{name}/{key}": value for key, value in known.items()})
        return StepOutput(output.loss, metrics)

    def compute(self, batch: AudioBatch, keep_layers: Tensor | None) -> StepOutput:
        """All of :meth:`forward` that is computed on the device, from tensors of the batch alone.

        :param keep_layers: layer drop's decision, bool (layers,).
        """
        clean = batch.waveform
        mixing = self.mixture is not None and self.training
        heard = self.mixture(clean, batch.sample_ids) if mixing and self.mixture else clean

        features: Features = self.encoder.frontend(heard, batch.num_samples)
        mask = self.mask(batch, features.projected.shape[1])
        predicted_BFD = self._predict(features.projected, mask, keep_layers)
        hidden_BMD = rows_at(predicted_BFD, mask.index_BM, mask.masked_counts)

        loss = clean.new_zeros(())
        metrics: dict[str, Metric] = {}
        for name, target in self.targets.items():
            assert isinstance(target, Target)
            with torch.no_grad():
                target_BF = self._target_of(target, batch, heard, features.projected, mask)
            if target.everywhere:
                compared = target.loss(predicted_BFD, target_BF, target_BF)
            else:
                compared = target.loss(
                    hidden_BMD,
                    rows_at(target_BF, mask.index_BM, mask.masked_counts),
                    rows_at(target_BF, mask.nearest_visible_BM, mask.masked_counts),
                )
            loss = loss + self.weights[name] * compared.loss
            metrics.update({f"{name}/{key}": value for key, value in compared.metrics.items()})
            if self.visible_weight and not target.everywhere:
                visible_BV = rows_at(target_BF, mask.visible_BV, mask.visible_counts)
                hidden_BVD = rows_at(predicted_BFD, mask.visible_BV, mask.visible_counts)
                seen = target.loss(hidden_BVD, visible_BV, visible_BV)
                loss = loss + self.visible_weight * self.weights[name] * seen.loss
                metrics[f"{name}/visible_loss"] = seen.metrics["loss"]

        if mixing:
            mixed = (heard != clean).any(dim=1).float().mean()
            metrics["mixture/mixed"] = Mean.of(mixed, len(clean))
        if self.feature_penalty:
            penalty = true_rows(features.raw, mask.num_frames).float().square().mean()
            loss = loss + self.feature_penalty * penalty
            metrics["feature_penalty"] = Mean.of(penalty, len(clean))
        metrics["loss"] = Mean.of(loss, len(clean))
        return StepOutput(loss, metrics)

    def mask(self, batch: AudioBatch, num_frames: int) -> FrameMask:
        """The masks of every view, (views * B) rows: pure functions of seed, view and sample id.

        A row of a padded batch gets the mask that its clip would get alone.
        """
        counts = self._frame_counts(batch)
        if counts is None:
            masks = [
                span_mask(
                    key,
                    batch.sample_ids,
                    num_frames=num_frames,
                    count=self._masked_count(num_frames),
                    span=self.mask_span,
                )
                for key in self._mask_keys
            ]
        else:
            masks = [
                padded_span_mask(
                    key,
                    batch.sample_ids,
                    num_frames=counts,
                    padded_frames=num_frames,
                    counts=[self._masked_count(count) for count in counts],
                    span=self.mask_span,
                )
                for key in self._mask_keys
            ]
        return stack_views(masks)

    @torch.no_grad()
    def inspect(self, batch: AudioBatch) -> dict[str, Tensor]:
        """What the encoder makes of whole, unmasked crops, for a look at its health.

        :returns: ``conv`` (B, F, C), ``layer0`` (the input of the first layer) to ``layerN``, and
            what a target computes where that moves, each (B, F, D).
        """
        features: Features = self.encoder.frontend(batch.waveform, batch.num_samples)
        output = self.encoder.context(features.projected, num_frames=self._frame_counts(batch))
        found = {"conv": features.raw}
        found |= {f"layer{i}": state for i, state in enumerate(output.hidden_states)}
        context = self._context(batch, features.projected)
        for name, target in self.targets.items():
            assert isinstance(target, Target)
            if target.moves:
                found[name] = target.compute(context)
        return found

    @torch.no_grad()
    def guess(self, batch: AudioBatch) -> tuple[Tensor, dict[str, Guess]]:
        """What is predicted of the crops as :meth:`forward` masks them, for people to look at.

        :returns: True where masked, (B, F), in the first view; and a guess by the target's name,
            of those that have any.
        """
        crops = len(batch.waveform)
        features: Features = self.encoder.frontend(batch.waveform, batch.num_samples)
        mask = self.mask(batch, features.projected.shape[1])
        hidden_BFD = self._predict(features.projected, mask, None)[:crops]
        found = {}
        for name, target in self.targets.items():
            assert isinstance(target, Target)
            if (predicted := target.predict(hidden_BFD)) is not None:
                args = (batch, batch.waveform, features.projected, mask)
                found[name] = Guess(self._target_of(target, *args)[:crops], predicted)
        return mask.bool_BF[:crops], found

    def after_step(self, update: int) -> None:
        """Lets targets that move without gradients move."""
        for target in self.targets.values():
            assert isinstance(target, Target)
            target.after_step(update, self.encoder)

    def _predict(self, projected: Tensor, mask: FrameMask, keep_layers: Tensor | None) -> Tensor:
        """What the student makes of all views, (views * B, F, D)."""
        projected = _per_view(projected, self.views)
        if self.decoder is None:
            output: EncoderOutput = self.encoder.context(
                projected,
                mask=mask.bool_BF,
                num_frames=mask.num_frames,
                keep_layers=keep_layers,
            )
            return output.last
        visible_BV = mask.visible_BV
        output = self.encoder.context(
            projected,
            mask=mask.bool_BF,
            num_frames=mask.num_frames,
            kept_BV=visible_BV,
            keep_layers=keep_layers,
        )
        filled: Tensor = self.decoder(output.last, visible_BV, projected.shape[1])
        # Visible frames are the encoder's own; the decoder answers for the hidden ones.
        index = visible_BV[..., None].expand_as(output.last)
        return filled.to(output.last.dtype).scatter(1, index, output.last)

    def _target_of(
        self, target: Target, batch: AudioBatch, heard: Tensor, projected: Tensor, mask: FrameMask
    ) -> Tensor:
        """The target of every row of every view, (views * B, F, …)."""
        if target.hears_clean and heard is not batch.waveform:
            projected = self.encoder.frontend(batch.waveform, batch.num_samples).projected
        context = self._context(batch, projected.detach())
        if not target.sees_other_view:
            return _per_view(target.compute(context), self.views)
        # Every view is compared with what the teacher makes of the next one.
        other_BF = mask.bool_BF.roll(-len(batch.waveform), dims=0)
        masked = self.encoder.masked(_per_view(projected.detach(), self.views), other_BF)
        return target.compute(context._replace(projected=masked, frame_counts=mask.num_frames))

    def _context(self, batch: AudioBatch, projected: Tensor) -> FrameContext:
        return FrameContext(
            batch.waveform, projected.shape[1], batch.codes, projected, self._frame_counts(batch)
        )

    def _frame_counts(self, batch: AudioBatch) -> list[int] | None:
        if batch.num_samples is None:
            return None
        return [self.encoder.grid.num_frames(length) for length in batch.num_samples.tolist()]

    def _masked_count(self, num_frames: int) -> int:
        return masked_count(
            num_frames, prob=self.mask_prob, span=self.mask_span, fraction=self.mask_fraction
        )

    def _kept_layers(self, batch: AudioBatch) -> Tensor | None:
        if self.layer_drop == 0.0:
            return None
        update = int(batch.update)
        draws = [
            uniform_number(derive(self.seed, "layer drop", layer), update)
            for layer in range(len(self.encoder.layers))
        ]
        # Filled in on the device: a copy from the host would be waited for.
        device = batch.waveform.device
        kept = [torch.full((), draw >= self.layer_drop, device=device) for draw in draws]
        return torch.stack(kept)


def _per_view(values_BF: Tensor, views: int) -> Tensor:
    """Rows of B crops, (B, F, …), repeated view by view."""
    return values_BF if views == 1 else values_BF.repeat(views, *[1] * (values_BF.dim() - 1))
