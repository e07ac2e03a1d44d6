"""Whether representations are alive: what a loss cannot tell.

A student and teacher that put out the same vector for everything agree perfectly. So, besides the
loss, two looks at any objective:

    Health          conv features, layers and moving targets on held-out crops: spread, effective
                    rank, likeness of frames and of clips
    StopAtCollapse  the published rule: training stops where targets or predictions have hardly any
                    spread left (fairseq ``data2vec_audio.py``)
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from etude.pretrain.errors import CollapseError
from etude.pretrain.hooks import Hook, SaveCheckpoints

if TYPE_CHECKING:
    from etude.pretrain.trainer import Trainer

_NEAR = 3.0
"""Within this multiple of a limit every check that is passed leaves a checkpoint."""

_ROUND_OFF = 1e-12
"""Of the mean square, in float64: a smaller variance is none."""

_SENTENCES = {
    "target_std": "the teacher makes nearly the same of every frame",
    "prediction_std": "the student predicts nearly the same for every frame",
}


class FeatureHealth:
    """Adds up frame features; :meth:`results` says how much they differ from each other."""

    def __init__(self) -> None:
        self._frames = 0
        self._sum_C: Tensor | None = None
        self._products_CC: Tensor | None = None
        self._frame_cosines: list[Tensor] = []
        self._clips: list[Tensor] = []

    def add(self, features_BFC: Tensor) -> None:
        """Adds crops, float (B, F, C)."""
        features = features_BFC.detach().double()
        flat = features.flatten(0, 1)
        self._frames += len(flat)
        total, products = flat.sum(dim=0), flat.T @ flat
        self._sum_C = total if self._sum_C is None else self._sum_C + total
        self._products_CC = products if self._products_CC is None else self._products_CC + products
        self._frame_cosines += [_mean_cosine(rows) for rows in features]
        self._clips.append(features.mean(dim=1))

    def results(self) -> dict[str, float]:
        """``std``, ``rank``, ``frame_cosine`` and ``clip_cosine``.

        ``std``: standard deviation of a dimension over all frames, averaged. ``rank``: effective
        rank, the exponential of the entropy of the normalised singular values of the centred
        features (Roy and Vetterli 2007; RankMe, Garrido et al. 2023). ``frame_cosine``: mean cosine
        between two frames of a clip; ``clip_cosine``: between the mean frames of two clips.
        """
        assert self._sum_C is not None and self._products_CC is not None
        if not self._products_CC.isfinite().all():
            return dict.fromkeys(("std", "rank", "frame_cosine", "clip_cosine"), float("nan"))
        mean = self._sum_C / self._frames
        covariance = self._products_CC / self._frames - torch.outer(mean, mean)
        eigenvalues = torch.linalg.eigvalsh(covariance)
        # The difference of two large sums leaves a little of nothing, which the root would raise.
        smallest = _ROUND_OFF * self._products_CC.diagonal().sum() / self._frames
        singular = torch.where(eigenvalues > smallest, eigenvalues, 0.0).sqrt()
        share = singular / singular.sum().clamp(min=1e-30)
        return {
            "std": float(covariance.diagonal().clamp(min=0.0).sqrt().mean()),
            "rank": float(torch.special.entr(share).sum().exp()),
            "frame_cosine": float(torch.stack(self._frame_cosines).mean()),
            "clip_cosine": float(_mean_cosine(torch.cat(self._clips))),
        }


class Health(Hook):
    """Reports ``health/FEATURE/QUANTITY`` every so many updates.

    :param inspect: yields the features of a few held-out crops by name, a part at a time; the same
        on every rank.
    """

    def __init__(
        self, inspect: Callable[[], Iterable[Mapping[str, Tensor]]], *, every: int, max_steps: int
    ) -> None:
        self._inspect = inspect
        self._every = every
        self._max_steps = max_steps

    def step_end(self, trainer: "Trainer") -> None:
        """Looks when it is time."""
        if trainer.step % self._every and trainer.step != self._max_steps:
            return
        found: dict[str, FeatureHealth] = {}
        for part in self._inspect():
            for name, features in part.items():
                found.setdefault(name, FeatureHealth()).add(features)
        trainer.report(
            {
                f"health/{name}/{quantity}": value
                for name, features in found.items()
                for quantity, value in features.results().items()
            }
        )


class StopAtCollapse(Hook):
    """Ends a run whose targets or predictions have lost their spread.

    Judged at every log line, from all frames of all ranks since the line before. Close to a limit
    each line that passes leaves a checkpoint, so that the last healthy state is not lost. To come
    after the hook that writes the line.

    :param limits: smallest allowed ``target_std`` and ``prediction_std``; 0 allows everything.
    :param after_steps: updates before which nothing is judged.
    """

    def __init__(
        self, limits: Mapping[str, float], *, after_steps: int, saver: SaveCheckpoints
    ) -> None:
        self._limits = limits
        self._after_steps = after_steps
        self._saver = saver
        self._healthy = 0

    def start(self, trainer: "Trainer") -> None:
        """A checkpoint that training continues from is taken to be healthy."""
        self._healthy = trainer.step

    def logged(self, trainer: "Trainer", values: Mapping[str, float]) -> None:
        """Judges the line.

        :raises CollapseError: if a spread is below its limit.
        """
        judged = {
            key: (value, self._limits[key.rpartition("/")[2]])
            for key, value in values.items()
            if self._limits.get(key.rpartition("/")[2]) and not key.startswith("valid/")
        }
        # Written so that a NaN is no health either.
        low = [key for key, (value, limit) in judged.items() if not value >= limit]
        if low and trainer.step > self._after_steps:
            self._stop(trainer, low[0], *judged[low[0]])
        if low or not judged:
            return
        self._healthy = trainer.step
        near = any(value < _NEAR * limit for value, limit in judged.values())
        if near and trainer.step > self._after_steps:
            self._saver.save(trainer)

    def _stop(self, trainer: "Trainer", key: str, value: float, limit: float) -> None:
        quantity = key.rpartition("/")[2]
        checkpoint = self._saver.newest_until(self._healthy)
        kept = (
            "There is no checkpoint from before."
            if checkpoint is None
            else f"The last healthy checkpoint is {checkpoint}."
        )
        raise CollapseError(
            f"collapse at update {trainer.step}: {key} is {value:.3g}, below "
            f"health.min_{quantity} ({limit:g}): {_SENTENCES[quantity]}. The last healthy log line "
            f"is that of update {self._healthy}. {kept} Lower optim.lr, or let the teacher follow "
            "more slowly (a decay nearer to 1); train from those weights with init_from.",
            checkpoint=checkpoint,
        )


def _mean_cosine(rows_NC: Tensor) -> Tensor:
    """Mean cosine between two different rows; 1 where there is one row alone, or all are zero."""
    unit = F.normalize(rows_NC, dim=-1)
    count, itself = len(unit), unit.square().sum()
    if count < 2 or not itself:
        return rows_NC.new_ones(())
    return (unit.sum(dim=0).square().sum() - itself) / (count * (count - 1))
