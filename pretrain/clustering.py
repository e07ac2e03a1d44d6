"""Fits k-means to spectral features, streamed: nothing but one batch and the sums is in memory.

    pass 1        mean and scale of every feature dimension; a sample of frames for seeding
    pass 2 ..     Lloyd's iterations: assign every frame, move each centroid to the mean of its own

Seeding is k-means++ (Arthur and Vassilvitskii 2007) on the sample. A centroid that loses all its
frames is put on a random frame of the sample, and the report says how many classes are in use.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from etude.pretrain.quantizer import (
    FeatureQuantizer,
    FeatureSettings,
    build_features,
    nearest_centroid,
)

SEEDING_FRAMES = 50_000
"""Frames that k-means++ chooses from."""


@dataclass(frozen=True)
class ClusterReport:
    """How well the clusters fit and how evenly they are used."""

    frames: int
    """Frames in one pass."""

    inertia: float
    """Mean squared distance of a frame to its centroid, per dimension, 1 = no clustering."""

    used: int
    """Classes with at least one frame."""

    largest_share: float
    """Share of the largest class: what a constant guess scores."""

    entropy: float
    """Unigram entropy of the labels in nats."""


def fit_kmeans(
    stream: Callable[[], Iterable[Tensor]],
    settings: FeatureSettings,
    *,
    clusters: int,
    iterations: int,
    seed: int,
    progress: Callable[[str], None] = lambda message: None,
) -> tuple[FeatureQuantizer, ClusterReport]:
    """Fits a quantiser.

    :param stream: starts a pass: waveforms (B, T), the same ones in every pass.
    :param iterations: Lloyd iterations, one pass each.
    :raises ValueError: if there are fewer frames than clusters.
    """
    generator = torch.Generator().manual_seed(seed)
    features = build_features(settings)

    statistics = _Statistics(settings.bins)
    sample = _Reservoir(SEEDING_FRAMES, generator)
    for waveform in stream():
        frames = features(waveform).flatten(0, 1)
        statistics.add(frames)
        sample.add(frames)
    if statistics.count < clusters:
        raise ValueError(f"{statistics.count} frames cannot make {clusters} clusters")
    mean, scale = statistics.result()
    progress(f"{statistics.count} frames described")

    points = (sample.rows() - mean) / scale
    centroids = seed_kmeans(points, clusters, generator)
    counts = torch.zeros(clusters)
    inertia = 0.0
    for iteration in range(iterations):
        sums, counts = torch.zeros_like(centroids), torch.zeros(clusters)
        distance = 0.0
        for waveform in stream():
            frames = (features(waveform).flatten(0, 1) - mean) / scale
            labels = nearest_centroid(frames, centroids)
            sums.index_add_(0, labels, frames)
            counts += torch.bincount(labels, minlength=clusters)
            distance += float((frames - centroids[labels]).square().mean(dim=1).sum())
        inertia = distance / statistics.count
        dead = counts == 0
        centroids = torch.where(dead[:, None], centroids, sums / counts.clamp(min=1)[:, None])
        if dead.any() and iteration + 1 < iterations:
            chosen = torch.randint(len(points), (int(dead.sum()),), generator=generator)
            centroids[dead] = points[chosen]
        progress(
            f"iteration {iteration + 1}/{iterations}: inertia {inertia:.4f}, "
            f"{int((~dead).sum())}/{clusters} classes in use"
        )
    share = counts / counts.sum()
    report = ClusterReport(
        frames=statistics.count,
        inertia=inertia,
        used=int((counts > 0).sum()),
        largest_share=float(share.max()),
        entropy=float(torch.special.entr(share).sum()),
    )
    return FeatureQuantizer(settings, centroids=centroids, mean=mean, scale=scale), report


def seed_kmeans(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next centre is a point drawn in proportion to its squared distance."""
    first = int(torch.randint(len(points), (1,), generator=generator))
    centres = [points[first]]
    nearest = (points - centres[0]).square().sum(dim=1)
    for _ in range(clusters - 1):
        if float(nearest.sum()) == 0.0:  # fewer distinct points than clusters
            nearest = torch.ones_like(nearest)
        chosen = int(torch.multinomial(nearest, 1, generator=generator))
        centres.append(points[chosen])
        nearest = torch.minimum(nearest, (points - points[chosen]).square().sum(dim=1))
    return torch.stack(centres)


class _Statistics:
    """Running mean and one common scale of the dimensions' spread."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._square = torch.zeros(dim, dtype=torch.float64)

    def add(self, frames: Tensor) -> None:
        self.count += len(frames)
        self._sum += frames.double().sum(dim=0)
        self._square += frames.double().square().sum(dim=0)

    def result(self) -> tuple[Tensor, Tensor]:
        mean = self._sum / self.count
        variance = (self._square / self.count - mean.square()).clamp(min=1e-12)
        return mean.float(), variance.sqrt().float()


class _Reservoir:
    """A uniform sample of rows of a stream: those with the smallest random numbers."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self._size = size
        self._generator = generator
        self._rows: Tensor | None = None
        self._draws = torch.zeros(0)

    def add(self, rows: Tensor) -> None:
        draws = torch.cat([self._draws, torch.rand(len(rows), generator=self._generator)])
        rows = rows if self._rows is None else torch.cat([self._rows, rows])
        if len(rows) > self._size:
            draws, kept = draws.topk(self._size, largest=False)
            rows = rows[kept]
        self._rows, self._draws = rows, draws

    def rows(self) -> Tensor:
        assert self._rows is not None
        return self._rows
