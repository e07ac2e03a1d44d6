"""Fits k-means to features of a corpus' audio, in memory that does not grow with it.

    describing    mean and scale of every feature dimension; a uniform sample of frames is kept
    seeding       k-means++ (Arthur and Vassilvitskii 2007) on a part of the sample
    refining      Lloyd's iterations on the sample

A residual quantiser repeats the last two on what the stages before left over of the sample. A class
that loses all its frames is put on a random frame of the sample, and the report says how evenly the
classes are used. Everything random is a function of the seed and of what it is for, so that an
interrupted fit goes on from numbers and tensors alone, to the same result to the last bit.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from etude.models.precision import plain_float32
from etude.pretrain.errors import ConfigError, PreemptedError
from etude.pretrain.quantizer import (
    FeatureQuantizer,
    FeatureSettings,
    build_features,
    nearest_centroid,
)
from etude.pretrain.random import derive, uniform

SAMPLE_FRAMES = 500_000
"""Frames that are kept: 460 MB for log-mel with 229 bands, 1,600 per class at K = 300."""

SEEDING_FRAMES = 50_000
"""Frames that k-means++ chooses from."""

LEAST_SPREAD = 0.01
"""Smallest scale of a dimension, as a part of the dimensions' root mean variance: one that hardly
moves (a band above the cutoff of an MP3) would otherwise be blown up to count like the others."""

_BLOCK = 65_536
_COLUMNS = 16


class Clips(Protocol):
    """What is clustered: waveforms (B, T), by their place in the order in which they are heard."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Tensor: ...


@dataclass(frozen=True)
class ClusterReport:
    """How well the clusters fit and how evenly they are used, on the sample of frames.

    Of several stages: how well all fit together, and how evenly the last one's classes are used.
    """

    frames: int
    """Frames that were described."""

    sampled: int
    """Frames that were kept of them; everything below is about these."""

    inertia: float
    """Mean squared distance of a frame to its centroid, per dimension, 1 = no clustering."""

    used: int
    """Classes with at least one frame."""

    rare: int
    """Classes with less than a tenth of the frames that each would have if all were used alike."""

    largest_share: float
    """Share of the largest class: what a constant guess scores."""

    entropy: float
    """Unigram entropy of the labels in nats."""

    perplexity: float
    """Its exponential: as many classes, used alike, have the same entropy."""


@final
@dataclass(frozen=True)
class PartFile:
    """Where an unfinished fit is kept. A fit that finds it there goes on from it."""

    path: Path

    request: Mapping[str, Any]
    """What the result depends on, in JSON: the file of another request is refused."""

    every_seconds: float = 300.0
    """Time between two saves; the file has the size of the sample."""

    def remove(self) -> None:
        """What is finished needs it no more."""
        self.path.unlink(missing_ok=True)
        self.temporary.unlink(missing_ok=True)

    @property
    def temporary(self) -> Path:
        """Where it is written before it takes its name."""
        return self.path.with_name(self.path.name + ".tmp")


def fit_kmeans(
    clips: Clips,
    settings: FeatureSettings,
    *,
    clusters: int,
    iterations: int,
    seed: int,
    stages: int | None = None,
    sample_frames: int = SAMPLE_FRAMES,
    corpus: str | None = None,
    device: torch.device | None = None,
    part: PartFile | None = None,
    stopped: Callable[[], bool] = lambda: False,
    heard: Callable[[int], None] = lambda clips: None,
    progress: Callable[[str], None] = lambda message: None,
) -> tuple[FeatureQuantizer, ClusterReport]:
    """Fits a quantiser.

    :param iterations: Lloyd iterations (of each stage).
    :param stages: makes a residual quantiser of so many stages.
    :param corpus: fingerprint of where the clips come from, for the quantiser.
    :param device: where frames are described; all else happens on the CPU.
    :param part: where to keep what is not finished; nothing is kept if not given.
    :param stopped: asked after every clip and iteration whether to save and stop.
    :param heard: told the number of clips that are done.
    :raises ConfigError: if there are fewer frames than clusters, or ``part`` is of another request.
    :raises PreemptedError: when ``stopped``.
    """
    features = build_features(settings)
    keeper = _Keeper(part, stopped)
    kept = keeper.load()
    if kept is None or "points" not in kept:
        sample = _Sample(sample_frames, settings.bins, derive(seed, "sample"))
        if kept is not None:
            sample.restore(kept)
        heard(sample.clips)
        _describe(clips, features, sample, keeper, heard, device or torch.device("cpu"))
        check_enough(sample.frames, clusters)
        mean, scale = sample.spread()
        # In place, for they may be gigabytes.
        points = sample.rows().sub_(mean).div_(scale)
        progress(f"{sample.frames} frames described, {len(points)} of them drawn")
        kept = {
            "points": points,
            "mean": mean,
            "scale": scale,
            "frames": torch.tensor(sample.frames),
            "iterations": torch.tensor(0),
            "centroids": seed_kmeans(points[:SEEDING_FRAMES], clusters, _generator(seed, 0)),
        }
    kept.setdefault("finished", torch.empty(0, clusters, settings.bins))  # of an older part file
    _refine(kept, iterations, seed, keeper, progress)
    for stage in range(len(kept["finished"]) + 1, stages or 1):
        _leave_rest(kept, clusters, seed, stage)
        progress(f"stage {stage + 1}/{stages}")
        _refine(kept, iterations, seed, keeper, progress)
    points, centroids = kept["points"], kept["centroids"]
    quantizer = FeatureQuantizer(
        settings,
        centroids=centroids if stages is None else torch.cat([kept["finished"], centroids[None]]),
        mean=kept["mean"],
        scale=kept["scale"],
        corpus=corpus,
        features=features,
    )
    return quantizer, _report(points, centroids, frames=int(kept["frames"]))


def _leave_rest(kept: dict[str, Tensor], clusters: int, seed: int, stage: int) -> None:
    """Turns the sample into what is left of it, and seeds the next stage's centroids."""
    points, centroids = kept["points"], kept["centroids"]
    for block in torch.split(points, _BLOCK):  # views: in place, for they may be gigabytes
        block.sub_(centroids[nearest_centroid(block, centroids)])
    kept["finished"] = torch.cat([kept["finished"], centroids[None]])
    kept["centroids"] = seed_kmeans(points[:SEEDING_FRAMES], clusters, _generator(seed, 0, stage))
    kept["iterations"] = torch.tensor(0)


def check_enough(frames: int, clusters: int) -> None:
    """Refuses more clusters than frames.

    :raises ConfigError: if there are.
    """
    if frames < clusters:
        raise ConfigError(
            f"{frames} frames cannot make {clusters} clusters: take fewer clusters or more audio."
        )


def seed_kmeans(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next centre is a point drawn in proportion to its squared distance.

    Of a few such points the one that lowers the distances most, as in scikit-learn.
    """
    trials = 2 + int(math.log(clusters))
    squares = points.square().sum(dim=1)
    nearest = torch.full_like(squares, math.inf)
    drawn = torch.randint(len(points), (1,), generator=generator)
    centres: list[int] = []
    while True:
        both = squares[:, None] + squares[drawn]
        distance = both - 2.0 * (points @ points[drawn].T)
        # What cancellation leaves of equal points is no distance.
        distance = torch.where(distance > 1e-5 * both, distance, 0.0)
        distance = torch.minimum(distance, nearest[:, None])
        best = int(distance.sum(dim=0).argmin())
        centres.append(int(drawn[best]))
        if len(centres) == clusters:
            return points[centres]
        nearest = distance[:, best]
        if float(nearest.sum()) == 0.0:  # fewer distinct points than clusters
            nearest = torch.ones_like(nearest)
        drawn = torch.multinomial(nearest, trials, replacement=True, generator=generator)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What two requests differ in, for people: ``clusters (there 300, here 200)``."""
    return [
        f"{key} (there {there.get(key)!r}, here {here.get(key)!r})"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]


def _describe(
    clips: Clips,
    features: nn.Module,
    sample: "_Sample",
    keeper: "_Keeper",
    heard: Callable[[int], None],
    device: torch.device,
) -> None:
    features.to(device)
    for position in range(sample.clips, len(clips)):
        with plain_float32(device):
            frames = features(clips[position].to(device)).flatten(0, 1).cpu()
        if not frames.isfinite().all():
            raise ConfigError(
                f"the features of clip {position + 1} in this order are not finite, so that no "
                "centroid would be. Are the encoder's weights?"
            )
        sample.add(frames)
        heard(sample.clips)
        keeper.look(sample.state, f"clip {sample.clips} of {len(clips)}")
    features.cpu()


def _refine(
    kept: dict[str, Tensor],
    iterations: int,
    seed: int,
    keeper: "_Keeper",
    progress: Callable[[str], None],
) -> None:
    points = kept["points"]
    for iteration in range(int(kept["iterations"]) + 1, iterations + 1):
        centroids = kept["centroids"]
        clusters = len(centroids)
        labels = nearest_centroid(points, centroids)
        counts = torch.bincount(labels, minlength=clusters).float()
        sums = torch.zeros_like(centroids).index_add_(0, labels, points)
        dead = counts == 0
        centroids = torch.where(dead[:, None], centroids, sums / counts.clamp(min=1)[:, None])
        if dead.any():
            generator = _generator(seed, iteration, len(kept["finished"]))
            chosen = torch.randint(len(points), (int(dead.sum()),), generator=generator)
            centroids[dead] = points[chosen]
        kept["centroids"], kept["iterations"] = centroids, torch.tensor(iteration)
        moved = f": {int(dead.sum())} dead classes moved" if dead.any() else ""
        progress(f"iteration {iteration}/{iterations}{moved}")
        keeper.look(lambda: kept, f"iteration {iteration} of {iterations}")


def _generator(seed: int, iteration: int, stage: int = 0) -> torch.Generator:
    """Random numbers of one iteration; 0 is the seeding."""
    key = derive(seed, "clusters", iteration, *([stage] if stage else []))
    return torch.Generator().manual_seed(key & ((1 << 63) - 1))


def _report(points: Tensor, centroids: Tensor, *, frames: int) -> ClusterReport:
    counts = torch.zeros(len(centroids), dtype=torch.float64)
    squares = 0.0
    for block in torch.split(points, _BLOCK):
        labels = nearest_centroid(block, centroids)
        counts += torch.bincount(labels, minlength=len(centroids))
        squares += float((block - centroids[labels]).square().sum(dtype=torch.float64))
    share = counts / len(points)
    entropy = float(torch.special.entr(share).sum())
    return ClusterReport(
        frames=frames,
        sampled=len(points),
        inertia=squares / points.numel(),
        used=int((share > 0).sum()),
        rare=int((share < 0.1 / len(centroids)).sum()),
        largest_share=float(share.max()),
        entropy=entropy,
        perplexity=math.exp(entropy),
    )


class _Sample:
    """Statistics of all frames of a stream, and a uniform sample of them.

    Each frame has a random number, a function of the seed and of its place in the stream; those
    with the smallest are kept, whatever the stream was cut into and wherever it was interrupted.
    """

    def __init__(self, size: int, dim: int, key: int) -> None:
        self.clips = 0
        self.frames = 0
        self._size = size
        self._key = key
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._square = torch.zeros(dim, dtype=torch.float64)
        # Room to append a quarter before the largest are dropped; sorting for every clip would
        # dominate. Memory that is not touched is not taken.
        self._rows = torch.empty(size + size // 4 + 1, dim)
        self._draws = torch.empty(len(self._rows), dtype=torch.int64)
        self._held = 0
        self._limit = torch.iinfo(torch.int64).max

    def add(self, frames: Tensor) -> None:
        """The frames (N, D) of the next clip."""
        self._sum += frames.double().sum(dim=0)
        self._square += frames.double().square().sum(dim=0)
        draws = self._draw(len(frames))
        self.clips += 1
        self.frames += len(frames)
        chosen = draws < self._limit
        rows, draws = frames[chosen], draws[chosen]
        while len(rows):
            part = slice(self._held, self._held + len(rows))
            fitting = len(self._rows[part])
            self._rows[part], self._draws[part] = rows[:fitting], draws[:fitting]
            self._held += fitting
            rows, draws = rows[fitting:], draws[fitting:]
            if self._held == len(self._rows):
                self._drop()

    def spread(self) -> tuple[Tensor, Tensor]:
        """Mean and scale (D,) of all frames."""
        mean = self._sum / self.frames
        variance = self._square / self.frames - mean.square()
        least = max(float(variance.mean()) * LEAST_SPREAD**2, 1e-12)
        return mean.float(), variance.clamp(min=least).sqrt().float()

    def rows(self) -> Tensor:
        """The sample in random order; a view of what is held here."""
        self._drop()
        rows, draws = self._rows[: self._held], self._draws[: self._held]
        order = draws.argsort()
        for columns in torch.split(rows, _COLUMNS, dim=1):  # a few at a time: no second copy of all
            columns.copy_(columns[order])
        draws.copy_(draws[order])
        return rows

    def state(self) -> dict[str, Tensor]:
        """What :meth:`restore` needs to go on."""
        self._drop()
        return {
            "rows": self._rows[: self._held],
            "draws": self._draws[: self._held],
            "sum": self._sum,
            "square": self._square,
            "clips": torch.tensor(self.clips),
            "frames": torch.tensor(self.frames),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a state."""
        self.clips, self.frames = int(state["clips"]), int(state["frames"])
        self._sum, self._square = state["sum"], state["square"]
        self._held = len(state["rows"])
        self._rows[: self._held], self._draws[: self._held] = state["rows"], state["draws"]
        self._limit = self._largest()

    def _draw(self, count: int) -> Tensor:
        # 63 bits: of the 24 that a float has, a long stream would have many equal ones.
        numbers = uniform(self._key, torch.tensor([self.clips]), 3 * count) * 2.0**24
        high, middle, low = numbers.long().view(count, 3).unbind(dim=1)
        return (high << 39) | (middle << 15) | (low >> 9)

    def _drop(self) -> None:
        if self._held <= self._size:
            return
        order = self._draws[: self._held].argsort()
        kept, dropped = order[: self._size], order[self._size :]
        # What stays of the end moves to where something at the front goes.
        free, moved = dropped[dropped < self._size], kept[kept >= self._size]
        self._rows[free], self._draws[free] = self._rows[moved], self._draws[moved]
        self._held = self._size
        self._limit = self._largest()

    def _largest(self) -> int:
        full = self._held == self._size
        return int(self._draws[: self._held].max()) if full else torch.iinfo(torch.int64).max


class _Keeper:
    """Saves now and then what is not finished, and stops when asked to."""

    def __init__(self, part: PartFile | None, stopped: Callable[[], bool]) -> None:
        self._part = part
        self._stopped = stopped
        self._saved = time.monotonic()

    def load(self) -> dict[str, Tensor] | None:
        """What an interrupted fit of the same request left, if there is something."""
        if self._part is None or not self._part.path.is_file():
            return None
        path = self._part.path
        try:
            with safe_open(path, framework="pt") as file:
                there = json.loads((file.metadata() or {})["request"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise ConfigError(
                f"{path} should be what an interrupted launch/cluster.py left, but cannot be read "
                f"({error}). Delete it to start anew."
            ) from error
        # Compared as JSON has it: a tuple is a list there.
        different = differences(there, json.loads(json.dumps(self._part.request)))
        if different:
            raise ConfigError(
                f"{path} is of an interrupted launch/cluster.py that was asked for something else: "
                f"{'; '.join(different)}. Give the same to finish that one, or delete the file."
            )
        return tensors

    def look(self, state: Callable[[], dict[str, Tensor]], place: str) -> None:
        """Between two clips or iterations: saves if it is time, or if this is the end."""
        stopped = self._stopped()
        if self._part is not None:
            due = time.monotonic() - self._saved >= self._part.every_seconds
            if stopped or due:
                self._save(self._part, state())
        if stopped:
            raise PreemptedError(
                f"stopped after {place}. "
                + ("Nothing is kept." if self._part is None else "The same command goes on there.")
            )

    def _save(self, part: PartFile, state: dict[str, Tensor]) -> None:
        temporary = part.temporary
        save_file(state, temporary, {"request": json.dumps(part.request)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(part.path)
        self._saved = time.monotonic()
