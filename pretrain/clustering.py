"""Fits k-means to spectral features of a stream of audio, in memory that does not grow with it.

    one pass    mean and scale of every feature dimension; a uniform sample of frames is kept
    then        k-means++ and Lloyd's iterations on the sample

Seeding is k-means++ (Arthur and Vassilvitskii 2007). A centroid that loses all its frames is put on
a random frame of the sample, and the report says how many classes are in use.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from etude.pretrain.errors import ConfigError
from etude.pretrain.quantizer import (
    FeatureQuantizer,
    FeatureSettings,
    build_features,
    nearest_centroid,
)

SAMPLE_FRAMES = 500_000
"""Frames that are kept: 460 MB for log-mel with 229 bands, 1,600 per class at K = 300."""

SEEDING_FRAMES = 50_000
"""Frames that k-means++ chooses from."""


@dataclass(frozen=True)
class ClusterReport:
    """How well the clusters fit and how evenly they are used."""

    frames: int
    """Frames that were described."""

    inertia: float
    """Mean squared distance of a frame to its centroid, per dimension, 1 = no clustering."""

    used: int
    """Classes with at least one frame."""

    largest_share: float
    """Share of the largest class: what a constant guess scores."""

    entropy: float
    """Unigram entropy of the labels in nats."""


def fit_kmeans(
    stream: Iterable[Tensor],
    settings: FeatureSettings,
    *,
    clusters: int,
    iterations: int,
    seed: int,
    sample_frames: int = SAMPLE_FRAMES,
    progress: Callable[[str], None] = lambda message: None,
) -> tuple[FeatureQuantizer, ClusterReport]:
    """Fits a quantiser.

    :param stream: waveforms (B, T); read once.
    :param iterations: Lloyd iterations.
    :raises ConfigError: if there are fewer frames than clusters.
    """
    generator = torch.Generator().manual_seed(seed)
    features = build_features(settings)
    statistics = _Statistics(settings.bins)
    sample = _Reservoir(sample_frames, settings.bins, generator)
    for waveform in stream:
        frames = features(waveform).flatten(0, 1)
        statistics.add(frames)
        sample.add(frames)
    if statistics.count < clusters:
        raise ConfigError(
            f"{statistics.count} frames cannot make {clusters} clusters: take fewer clusters or "
            "more audio."
        )
    mean, scale = statistics.result()
    points = (sample.rows() - mean) / scale
    progress(f"{statistics.count} frames described, {len(points)} of them drawn")

    centroids = seed_kmeans(points[:SEEDING_FRAMES], clusters, generator)
    for iteration in range(iterations):
        labels = nearest_centroid(points, centroids)
        counts = torch.bincount(labels, minlength=clusters).float()
        sums = torch.zeros_like(centroids).index_add_(0, labels, points)
        dead = counts == 0
        centroids = torch.where(dead[:, None], centroids, sums / counts.clamp(min=1)[:, None])
        if dead.any():
            chosen = torch.randint(len(points), (int(dead.sum()),), generator=generator)
            centroids[dead] = points[chosen]
        progress(f"iteration {iteration + 1}/{iterations}: {int(dead.sum())} dead classes moved")

    labels = nearest_centroid(points, centroids)
    share = torch.bincount(labels, minlength=clusters).float() / len(points)
    report = ClusterReport(
        frames=statistics.count,
        inertia=float((points - centroids[labels]).square().mean()),
        used=int((share > 0).sum()),
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

    def __init__(self, size: int, dim: int, generator: torch.Generator) -> None:
        self._size = size
        self._generator = generator
        self._rows = torch.zeros(0, dim)
        self._draws = torch.zeros(0)
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._waiting = 0

    def add(self, rows: Tensor) -> None:
        draws = torch.rand(len(rows), generator=self._generator)
        self._pending.append((rows, draws))
        self._waiting += len(rows)
        if self._waiting > self._size // 4:  # sorting for every batch would dominate
            self._settle()

    def rows(self) -> Tensor:
        """The sample, in random order."""
        self._settle()
        return self._rows

    def _settle(self) -> None:
        rows = torch.cat([self._rows, *(rows for rows, _ in self._pending)])
        draws = torch.cat([self._draws, *(draws for _, draws in self._pending)])
        kept = draws.argsort()[: self._size]
        self._rows, self._draws = rows[kept], draws[kept]
        self._pending, self._waiting = [], 0
