"""Metrics as sums that can be added over micro-batches and ranks, and only then divided.

An objective returns metrics detached and on the device; nothing synchronises until the log
interval, when the sums of all ranks are added. Averages are therefore exact for any split of the
global batch, and label statistics (majority rate, unigram entropy) are those of all frames together
rather than a mean over batches.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mean:
    """A sum and how many things it sums."""

    total: Tensor
    """Sum, scalar."""

    count: Tensor
    """Number of things, scalar."""

    @staticmethod
    def of(value: Tensor, count: int = 1) -> "Mean":
        """A mean that already was one over ``count`` things."""
        value = value.detach().float()
        return Mean(value * count, torch.full_like(value, count))


@dataclass(frozen=True)
class LabelCounts:
    """How often each class occurred: gives what a constant guess and a unigram model score."""

    counts: Tensor
    """Float (classes,)."""


@dataclass(frozen=True)
class Spread:
    """Moments of vectors: gives the error of always predicting their mean, a constant's score."""

    moments: Tensor
    """Count, sums and sums of squares, (1 + 2 D,)."""

    @staticmethod
    def of(vectors: Tensor) -> "Spread":
        """The moments of ``vectors`` (N, D)."""
        # In float32 the difference of two large sums would lose a small variance.
        wide = vectors.detach().double()
        count = wide.new_full((1,), len(wide))
        return Spread(torch.cat([count, wide.sum(dim=0), wide.square().sum(dim=0)]))


class Deviation(Spread):
    """The same moments, reported as the standard deviation of a dimension, averaged over them.

    Zero where all vectors are equal: what a collapse looks like. data2vec's ``compute_var``
    (fairseq ``data2vec_audio.py``) with n instead of n - 1.
    """

    @staticmethod
    def of(vectors: Tensor) -> "Deviation":
        """The moments of ``vectors`` (N, D)."""
        return Deviation(Spread.of(vectors).moments)


Metric = Mean | LabelCounts | Spread


class MetricSums:
    """Adds metrics up over micro-batches; :meth:`results` divides."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._kinds: dict[str, type[Metric]] = {}

    def add(self, metrics: Mapping[str, Metric]) -> None:
        """Adds one micro-batch's metrics; stays on their device."""
        for name, metric in metrics.items():
            match metric:
                case Mean():
                    value = torch.stack([metric.total.double(), metric.count.double()])
                case LabelCounts():
                    value = metric.counts.double()
                case Spread():
                    value = metric.moments
            self._kinds[name] = type(metric)
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def tensors(self) -> Iterable[Tensor]:
        """The sums in the order of their names, for an all-reduce in place."""
        return [self._sums[name] for name in sorted(self._sums)]

    def replace(self, tensors: Iterable[Tensor]) -> None:
        """Puts reduced sums back, in the order of :meth:`tensors`."""
        self._sums = dict(zip(sorted(self._sums), tensors, strict=True))

    def total(self, name: str) -> float:
        """The sum behind a mean."""
        return float(self._sums[name][0])

    def count(self, name: str) -> float:
        """The number of things behind a mean."""
        return float(self._sums[name][1])

    def results(self) -> dict[str, float]:
        """Values by name; counts ``T/labels`` give ``T/majority_rate``, ``T/unigram_entropy``."""
        results: dict[str, float] = {}
        for name, value in self._sums.items():
            if self._kinds[name] is Mean:
                results[name] = float(value[0] / value[1])
            elif issubclass(self._kinds[name], Spread):
                mean, square = (value[1:] / value[0]).chunk(2)
                variance = (square - mean.square()).clamp(min=0.0)
                if self._kinds[name] is Deviation:
                    variance = variance.sqrt()
                results[name] = float(variance.mean())
            else:
                share = value / value.sum()
                target = name.rpartition("/")[0]
                results[f"{target}/majority_rate"] = float(share.max())
                results[f"{target}/unigram_entropy"] = float(torch.special.entr(share).sum())
        return results
