"""K-means on a stream: it finds what is there, as well as scikit-learn, in bounded memory."""

import math
from collections.abc import Iterator

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from training_parts import feature_settings, noise

from etude.pretrain import clustering
from etude.pretrain.clustering import ClusterReport, _Reservoir, fit_kmeans, seed_kmeans
from etude.pretrain.errors import ConfigError
from etude.pretrain.quantizer import FeatureQuantizer, build_features, nearest_centroid

# A window of one frame's own samples: no frame of a clip hears the silence around it.
SETTINGS = feature_settings(bins=20, n_fft=400)
TONES = (220.0, 700.0, 2000.0, 6000.0)
SAMPLES = 6_000


def tone(frequency: float, *, seed: int = 0) -> Tensor:
    """A clip of one pitch in a little noise, (1, T)."""
    time = torch.arange(SAMPLES) / SETTINGS.sample_rate
    return 0.3 * torch.sin(2 * math.pi * frequency * time)[None] + 0.01 * noise(
        1, SAMPLES, seed=seed
    )


def tones(each: int = 3) -> list[Tensor]:
    return [tone(frequency, seed=seed) for seed in range(each) for frequency in TONES]


def music(clips: int = 12) -> list[Tensor]:
    """Clips without clear clusters: noise whose level and colour glide."""
    made = []
    for clip in range(clips):
        white = noise(1, SAMPLES, seed=clip)
        smooth = white.unfold(1, 8, 1).mean(dim=2)
        glide = torch.linspace(0, 1, smooth.shape[1]).roll(clip * 400)
        made.append((1 + clip % 3) * (glide * smooth * 3 + (1 - glide) * white[:, :-7]))
    return made


def fit(
    stream: list[Tensor], *, clusters: int = 4, iterations: int = 20, seed: int = 0, **more: int
) -> tuple[FeatureQuantizer, ClusterReport]:
    return fit_kmeans(
        iter(stream), SETTINGS, clusters=clusters, iterations=iterations, seed=seed, **more
    )


def described(stream: list[Tensor]) -> Tensor:
    """All frames' features, (N, D)."""
    features = build_features(SETTINGS)
    return torch.cat([features(waveform).flatten(0, 1) for waveform in stream])


def inertia(points: Tensor, centroids: Tensor) -> float:
    """Mean squared distance to the nearest centroid, per dimension."""
    return (
        float(torch.cdist(points.double(), centroids.double()).amin(dim=1).square().mean())
        / (points.shape[1])
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_well_separated_clips_each_get_a_cluster_of_their_own(seed: int) -> None:
    quantizer, report = fit(tones(), seed=seed)
    labels = [
        quantizer(tone(frequency, seed=40 + take))[0] for frequency in TONES for take in range(2)
    ]
    assert all(len(row.unique()) == 1 for row in labels)
    assert [int(row[0]) for row in labels[::2]] == [int(row[0]) for row in labels[1::2]]
    assert {int(row[0]) for row in labels} == {0, 1, 2, 3}
    assert report.used == 4 and report.largest_share == 0.25


def test_mean_and_scale_are_those_of_all_frames_of_the_stream() -> None:
    quantizer, report = fit(music(), sample_frames=30)
    frames = described(music())
    assert report.frames == len(frames)
    assert torch.allclose(quantizer.mean, frames.mean(dim=0), atol=1e-4)
    assert torch.allclose(quantizer.scale, frames.std(dim=0, correction=0), rtol=1e-4)


def test_the_report_describes_the_labels_of_the_frames() -> None:
    quantizer, report = fit(music(), clusters=6)
    frames = described(music())
    points = (frames - quantizer.mean) / quantizer.scale
    assert report.inertia == pytest.approx(inertia(points, quantizer.centroids), rel=1e-4)
    shares = torch.bincount(quantizer.assign(frames), minlength=6) / len(frames)
    assert report.used == int((shares > 0).sum()) == 6
    assert report.largest_share == pytest.approx(float(shares.max()))
    entropy = -sum(share * math.log(share) for share in shares.tolist())
    assert report.entropy == pytest.approx(entropy, rel=1e-4)


def test_one_cluster_is_the_mean_and_has_an_inertia_of_one() -> None:
    quantizer, report = fit(music(), clusters=1)
    assert float(quantizer.centroids.abs().max()) < 1e-3
    assert report.inertia == pytest.approx(1.0, abs=1e-3)
    assert (report.used, report.largest_share, report.entropy) == (1, 1.0, 0.0)


def test_every_iteration_lowers_the_inertia_until_far_below_that_of_random_centroids() -> None:
    inertias = [fit(music(), clusters=8, iterations=n)[1].inertia for n in (0, 1, 2, 5, 20)]
    assert inertias == sorted(inertias, reverse=True)
    assert inertias[-1] < inertias[0]
    quantizer, _ = fit(music(), clusters=8)
    points = (described(music()) - quantizer.mean) / quantizer.scale
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        chosen = points[torch.randperm(len(points), generator=generator)[:8]]
        assert inertias[-1] < 0.9 * inertia(points, chosen)


@pytest.mark.parametrize("clusters", [4, 16])
def test_the_inertia_is_within_5_percent_of_scikit_learns(clusters: int) -> None:
    fits = [fit(music(), clusters=clusters, iterations=50, seed=seed) for seed in range(4)]
    quantizer = fits[0][0]
    points = ((described(music()) - quantizer.mean) / quantizer.scale).numpy()
    reference = KMeans(clusters, n_init=4, random_state=0, max_iter=50).fit(points)
    best = min(report.inertia for _, report in fits)
    assert best == pytest.approx(reference.inertia_ / points.size, rel=0.05)


def test_the_same_seed_gives_the_same_centroids_and_another_seed_others() -> None:
    one, same, other = (fit(music(), clusters=8, seed=seed)[0] for seed in (3, 3, 4))
    assert torch.equal(one.centroids, same.centroids)
    assert not torch.equal(one.centroids, other.centroids)


def test_fewer_frames_than_clusters_are_refused() -> None:
    frames = len(described([tone(220.0)]))
    with pytest.raises(ConfigError, match=f"{frames} frames cannot make {frames + 1} clusters"):
        fit([tone(220.0)], clusters=frames + 1)
    with pytest.raises(ConfigError, match="0 frames cannot make 1 clusters"):
        fit([], clusters=1)
    _, report = fit([tone(220.0)], clusters=frames)
    assert report.frames == frames and report.inertia < 1e-6


def test_a_cluster_that_lost_all_its_frames_is_put_on_a_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Chosen from two frames, five of seven first centres are copies, to which no frame belongs.
    monkeypatch.setattr(clustering, "SEEDING_FRAMES", 2)
    assert fit(music(), clusters=7, iterations=0)[1].used == 2
    messages: list[str] = []
    quantizer, report = fit_kmeans(
        music(), SETTINGS, clusters=7, iterations=1, seed=0, progress=messages.append
    )
    assert messages[1] == "iteration 1/1: 5 dead classes moved"
    assert report.used == 7
    points = (described(music()) - quantizer.mean) / quantizer.scale
    distance = torch.cdist(quantizer.centroids, points, compute_mode="donot_use_mm_for_euclid_dist")
    assert int((distance.amin(dim=1) < 1e-5).sum()) == 5


def test_silence_gives_finite_centroids() -> None:
    quantizer, report = fit([torch.zeros(1, SAMPLES)], clusters=3, iterations=3)
    assert quantizer.centroids.isfinite().all() and report.used == 1
    assert int(quantizer(torch.zeros(1, SAMPLES)).unique().numel()) == 1


def test_a_stream_is_read_once_and_may_hold_several_waveforms_at_a_time() -> None:
    read = []

    def stream() -> Iterator[Tensor]:
        for index in range(0, 12, 3):
            read.append(index)
            yield torch.cat(music()[index : index + 3])

    _, report = fit_kmeans(stream(), SETTINGS, clusters=4, iterations=2, seed=0)
    assert read == [0, 3, 6, 9]
    assert report.frames == len(described(music()))


def test_centres_are_drawn_among_the_points_and_far_from_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(5, 1, 3, generator=generator) * 100
    points = (groups + torch.randn(5, 200, 3, generator=generator)).flatten(0, 1)
    for seed in range(20):
        centres = seed_kmeans(points, 5, torch.Generator().manual_seed(seed))
        assert all((points == centre).all(dim=1).any() for centre in centres)
        # One in each group, as points chosen evenly would have it in 4 % of all cases.
        assert len(nearest_centroid(centres, groups[:, 0]).unique()) == 5


# The sample of the stream.


def drawn(size: int, batches: list[int], seed: int) -> Tensor:
    """Positions in the stream that a reservoir keeps."""
    reservoir = _Reservoir(size, 1, torch.Generator().manual_seed(seed))
    for part in torch.arange(float(sum(batches)))[:, None].split(batches):
        reservoir.add(part)
    return reservoir.rows().flatten().long()


@pytest.mark.parametrize("size", [1, 40, 100])
def test_the_sample_has_the_wanted_size_and_holds_no_row_twice(size: int) -> None:
    rows = drawn(size, [7, 1, 150, 42], seed=0)
    assert len(rows) == len(rows.unique()) == size
    assert int(rows.max()) < 200


def test_a_stream_shorter_than_the_sample_is_kept_whole_in_random_order() -> None:
    rows = drawn(300, [7, 1, 150, 42], seed=0)
    assert rows.sort().values.tolist() == list(range(200))
    assert rows.tolist() != list(range(200))


def test_every_row_of_a_stream_is_kept_equally_often() -> None:
    trials, size, total = 400, 50, 500
    often = torch.zeros(total)
    for seed in range(trials):
        often[drawn(size, [3, 200, 1, 96, 200], seed=seed)] += 1
    expected = trials * size / total
    deviation = math.sqrt(expected * (1 - size / total))
    assert float((often - expected).abs().max()) < 5 * deviation
    # Tenths of the stream: a bias for its start or end would add up here.
    tenths = often.view(10, -1).mean(dim=1)
    assert float((tenths - expected).abs().max()) < 5 * deviation / math.sqrt(total / 10)
    spread = float(((often - expected) / deviation).square().mean())
    assert spread == pytest.approx(1.0, abs=5 * math.sqrt(2 / total))


def test_the_memory_of_the_sample_does_not_grow_with_the_stream() -> None:
    reservoir = _Reservoir(100, 2, torch.Generator().manual_seed(0))
    for _ in range(200):
        reservoir.add(torch.zeros(10, 2))
        held = len(reservoir._rows) + sum(len(rows) for rows, _ in reservoir._pending)
        assert held <= 100 + 25 + 10
    messages: list[str] = []
    fit_kmeans(
        music(),
        SETTINGS,
        clusters=4,
        iterations=1,
        seed=0,
        sample_frames=60,
        progress=messages.append,
    )
    assert messages[0] == f"{len(described(music()))} frames described, 60 of them drawn"
