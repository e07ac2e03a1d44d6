"""A teacher that follows the student: data2vec's and music2vec's target, and BYOL's.

    teacher   exponential moving average of the student's transformer, in float32
    input     the student's projected features, unmasked (BYOL: masked otherwise)
    target    mean over the top layers of what each made, normalised per layer

Sources: Baevski et al. 2022 ("data2vec"), section 3.3, and fairseq's ``data2vec_audio.py``; Li et
al. 2022 ("MAP-Music2Vec"); Grill et al. 2020 ("BYOL"), section 3.1, for the normalised distance
and the predictor.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.models.context import Context
from etude.models.encoder import Encoder
from etude.pretrain.metrics import Deviation, Mean, Metric, Spread
from etude.pretrain.schedules import Schedule
from etude.pretrain.targets.base import FrameContext, Target, TargetLoss

Feature = Literal["ffn", "hidden"]
Norm = Literal["instance", "layer", "none"]
Distance = Literal["mse", "cosine"]

_NORM_EPS = 1e-5


class TeacherTarget(Target):
    """Regression of an EMA teacher's layers.

    :param encoder: the student, of which the teacher starts as a copy.
    :param top_layers: layers that are averaged, from the last one down.
    :param feature: ``ffn``: a layer's feed-forward output before the residual sum; ``hidden``: its
        output.
    :param norm: of each layer before averaging: over time per dimension (``instance``), over
        dimensions per frame (``layer``), or ``none``.
    :param decay: of the average, by the number of applied updates.
    :param average_positions: whether the positional convolutions are averaged too; else copied.
    :param predictor_dim: inner width of a predictor of two layers; 0 is one linear layer.
    :param distance: ``mse``: sum of squares over dimensions times 1 / sqrt(D); ``cosine``:
        2 - 2 cos, which is BYOL's squared distance of unit vectors.
    :param pooled: compares the mean over all frames of a clip instead of each masked frame.
    """

    moves = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        top_layers: int,
        feature: Feature,
        norm: Norm,
        decay: Schedule,
        average_positions: bool,
        predictor_dim: int,
        distance: Distance,
        pooled: bool,
        hears_clean: bool,
        sees_other_view: bool,
    ) -> None:
        super().__init__()
        self.everywhere = pooled
        self.hears_clean = hears_clean
        self.sees_other_view = sees_other_view
        self._top_layers = top_layers
        self._feature = feature
        self._norm = norm
        self._decay = decay
        self._average_positions = average_positions
        self._distance = distance
        dim = encoder.config.dim
        self.teacher = Context(encoder.config)
        self.teacher.load_state_dict(_context_state(encoder, self.teacher))
        self.teacher.requires_grad_(False).eval()
        self.head = _predictor(dim, predictor_dim)

    def train(self, mode: bool = True) -> "TeacherTarget":
        """The teacher itself never drops anything out."""
        super().train(mode)
        self.teacher.eval()
        return self

    def compute(self, context: FrameContext) -> Tensor:
        """Mean of the teacher's normalised top layers, float32 (B, F, D)."""
        assert context.projected is not None
        output = self.teacher.transform(context.projected, num_frames=context.frame_counts)
        layers = output.layers[-self._top_layers :]
        total: Tensor | float = 0.0
        for layer in layers:
            value = layer.ffn if self._feature == "ffn" else layer.hidden
            total = total + self._normalised(value.float(), context.frame_counts)
        assert isinstance(total, Tensor)
        return total / len(layers)

    def loss(self, hidden_BMD: Tensor, target_BM: Tensor, copied_BM: Tensor) -> TargetLoss:
        """Distance of the prediction, beside that of copying and of the constant prediction."""
        predicted = self.head(hidden_BMD).float()
        if self.everywhere:
            predicted, target_BM = predicted.mean(dim=1), target_BM.mean(dim=1)
        vectors = target_BM.shape[:-1].numel()
        loss = self._compare(predicted, target_BM)
        metrics: dict[str, Metric] = {
            "loss": Mean.of(loss, vectors),
            "target_std": Deviation.of(target_BM.flatten(0, -2)),
            "prediction_std": Deviation.of(predicted.flatten(0, -2)),
        }
        if not self.everywhere:
            metrics["copy_loss"] = Mean.of(self._compare(copied_BM, target_BM), vectors)
        if self._distance == "mse":
            # The best constant is the mean target: its loss is sqrt(D) times the mean variance.
            scaled = target_BM.flatten(0, -2) * target_BM.shape[-1] ** 0.25
            metrics["constant_loss"] = Spread.of(scaled)
        return TargetLoss(loss, metrics)

    def predict(self, hidden_BFD: Tensor) -> Tensor:
        """The regression, float32 (B, F, D)."""
        predicted: Tensor = self.head(hidden_BFD)
        return predicted.float()

    def metrics(self, update: int) -> Mapping[str, Metric]:
        """The decay that this update will be followed by."""
        return {"decay": Mean.of(torch.tensor(self._decay(update + 1)))}

    @torch.no_grad()
    def after_step(self, update: int, encoder: Encoder) -> None:
        """Moves the teacher towards the student by 1 - decay."""
        student = dict(encoder.named_parameters())
        averaged: list[tuple[Tensor, Tensor]] = []
        copied: list[tuple[Tensor, Tensor]] = []
        for name, parameter in self.teacher.named_parameters():
            follows = self._average_positions or not name.startswith("positions.")
            (averaged if follows else copied).append((parameter, student[name]))
        teachers, students = map(list, zip(*averaged, strict=True))
        torch._foreach_lerp_(teachers, students, 1.0 - self._decay(update + 1))
        if copied:
            teachers, students = map(list, zip(*copied, strict=True))
            torch._foreach_copy_(teachers, students)

    def _compare(self, predicted: Tensor, target: Tensor) -> Tensor:
        if self._distance == "cosine":
            return (2.0 - 2.0 * F.cosine_similarity(predicted, target, dim=-1)).mean()
        summed = (predicted - target).square().sum(dim=-1)
        return summed.mean() / math.sqrt(target.shape[-1])

    def _normalised(self, value_BFD: Tensor, counts: Sequence[int] | None) -> Tensor:
        if self._norm == "layer":
            return F.layer_norm(value_BFD, value_BFD.shape[-1:])
        if self._norm == "none":
            return value_BFD
        if counts is None:
            normed: Tensor = F.instance_norm(value_BFD.transpose(1, 2), eps=_NORM_EPS)
            return normed.transpose(1, 2)
        count_B11 = torch.tensor(list(counts), device=value_BFD.device)[:, None, None]
        frame_F1 = torch.arange(value_BFD.shape[1], device=value_BFD.device)[:, None]
        inside = frame_F1 < count_B11
        mean = value_BFD.where(inside, 0.0).sum(dim=1, keepdim=True) / count_B11
        centred = (value_BFD - mean).where(inside, 0.0)
        variance = centred.square().sum(dim=1, keepdim=True) / count_B11
        return centred / torch.sqrt(variance + _NORM_EPS)


def _context_state(encoder: Encoder, context: Context) -> dict[str, Tensor]:
    state = encoder.state_dict()
    return {name: state[name] for name in context.state_dict()}


def _predictor(dim: int, inner: int) -> nn.Module:
    if not inner:
        return nn.Linear(dim, dim)
    # BYOL has a batch norm here, whose statistics would depend on how many ranks share a batch.
    return nn.Sequential(
        nn.Linear(dim, inner), nn.LayerNorm(inner), nn.ReLU(), nn.Linear(inner, dim)
    )
