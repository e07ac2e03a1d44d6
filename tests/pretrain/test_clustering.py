"""K-means on a stream: it finds what is there, as well as scikit-learn, in bounded memory.

And it can be stopped anywhere: what goes on later ends at the same bits.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from audio_files import tune
from safetensors import safe_open
from sklearn.cluster import KMeans, MiniBatchKMeans
from torch import Tensor
from training_parts import feature_settings, noise, small_encoder

from etude.models.weights import save_encoder
from etude.pretrain import clustering
from etude.pretrain.clustering import (
    ClusterReport,
    PartFile,
    _Sample,
    differences,
    fit_kmeans,
    seed_kmeans,
)
from etude.pretrain.errors import ConfigError, PreemptedError
from etude.pretrain.quantizer import (
    FeatureQuantizer,
    build_features,
    describe_encoder,
    nearest_centroid,
    save_quantizer,
)

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
    return fit_kmeans(stream, SETTINGS, clusters=clusters, iterations=iterations, seed=seed, **more)


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
    assert report.perplexity == pytest.approx(math.exp(entropy), rel=1e-3)
    assert report.frames == report.sampled == len(frames)


def test_classes_with_less_than_a_tenth_of_an_equal_share_are_counted_as_rare() -> None:
    # 1,000 points: an equal share of four classes is 250, a tenth of it 25.
    points = torch.tensor([0.0] * 700 + [10.0] * 251 + [20.0] * 25 + [30.0] * 24)[:, None]
    centroids = torch.tensor([0.0, 10.0, 20.0, 30.0])[:, None]
    report = clustering._report(points, centroids, frames=2_000)
    assert (report.rare, report.used, report.largest_share) == (1, 4, 0.7)
    centroids = torch.cat([centroids, torch.tensor([[99.0]])])
    report = clustering._report(points, centroids, frames=2_000)
    assert (report.rare, report.used) == (1, 4)  # a tenth is 20 now; the unused class is rare
    assert (report.frames, report.sampled, report.inertia) == (2_000, 1_000, 0.0)


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


def test_a_dimension_that_hardly_moves_counts_for_little() -> None:
    # A band above the cutoff of an MP3: constant but for rounding.
    frames = torch.cat([noise(500, 3, seed=1) * 20 - 4, -11.5 + 1e-5 * noise(500, 1, seed=2)], 1)
    sample = _Sample(500, 4, 0)
    sample.add(frames)
    mean, scale = sample.spread()
    typical = float(frames.var(dim=0, correction=0).mean().sqrt())
    assert torch.allclose(scale[:3], frames.std(dim=0, correction=0)[:3], rtol=1e-4)
    assert float(scale[3]) == pytest.approx(0.01 * typical, rel=1e-3)
    assert float(((frames - mean) / scale)[:, 3].abs().max()) < 0.01


@pytest.mark.parametrize("clusters", [12, 40])
def test_held_frames_are_as_near_to_the_centroids_as_to_scikit_learns(clusters: int) -> None:
    settings = feature_settings(bins=40, n_fft=2048)
    clips = [torch.from_numpy(tune(3, seed=seed))[None] for seed in range(16)]
    features = build_features(settings)
    held = torch.cat([features(clip).flatten(0, 1) for clip in clips[12:]])
    for seed in range(3):
        quantizer, _ = fit_kmeans(clips[:12], settings, clusters=clusters, iterations=20, seed=seed)
        heard = torch.cat([features(clip).flatten(0, 1) for clip in clips[:12]])
        points, unheard = (
            ((frames - quantizer.mean) / quantizer.scale).numpy() for frames in (heard, held)
        )
        reference = MiniBatchKMeans(
            clusters, batch_size=1024, n_init=3, max_iter=100, random_state=seed
        ).fit(points)
        theirs = -reference.score(unheard) / unheard.size
        ours = inertia(torch.from_numpy(unheard), quantizer.centroids)
        assert ours < 1.05 * theirs
        # Frames of other tunes are described at all: chance would be 1 and more.
        assert ours < 0.8


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
    # Chosen from two frames, five of seven first centres are copies, to which no frame belongs; but
    # some processors round the distances to copies differently, and deal frames out among them.
    monkeypatch.setattr(clustering, "SEEDING_FRAMES", 2)
    dead = 7 - fit(music(), clusters=7, iterations=0)[1].used
    assert 0 < dead <= 5
    messages: list[str] = []
    quantizer, report = fit_kmeans(
        music(), SETTINGS, clusters=7, iterations=1, seed=0, progress=messages.append
    )
    assert messages[1] == f"iteration 1/1: {dead} dead classes moved"
    assert report.used == 7
    points = (described(music()) - quantizer.mean) / quantizer.scale
    distance = torch.cdist(quantizer.centroids, points, compute_mode="donot_use_mm_for_euclid_dist")
    assert int((distance.amin(dim=1) < 1e-5).sum()) >= dead


def test_silence_gives_finite_centroids() -> None:
    quantizer, report = fit([torch.zeros(1, SAMPLES)], clusters=3, iterations=3)
    assert quantizer.centroids.isfinite().all() and report.used == 1
    assert int(quantizer(torch.zeros(1, SAMPLES)).unique().numel()) == 1


class Counted:
    """Clips that remember how often they were asked for."""

    def __init__(self, clips: list[Tensor]) -> None:
        self.clips = clips
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, position: int) -> Tensor:
        self.read.append(position)
        return self.clips[position]


def test_every_clip_is_read_once_and_may_hold_several_waveforms() -> None:
    clips = Counted([torch.cat(music()[index : index + 3]) for index in range(0, 12, 3)])
    heard: list[int] = []
    _, report = fit_kmeans(clips, SETTINGS, clusters=4, iterations=2, seed=0, heard=heard.append)
    assert clips.read == [0, 1, 2, 3] and heard == [0, 1, 2, 3, 4]
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
    """Positions in the stream that are kept of it."""
    sample = _Sample(size, 1, seed)
    for part in torch.arange(float(sum(batches)))[:, None].split(batches):
        sample.add(part)
    return sample.rows().flatten().long()


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


def test_the_first_rows_of_the_sample_are_a_sample_too() -> None:
    # k-means++ chooses from the first rows alone.
    trials, total = 400, 100
    often = torch.zeros(total)
    for seed in range(trials):
        often[drawn(60, [30, 70], seed=seed)[:20]] += 1
    expected = trials * 20 / total
    assert float((often - expected).abs().max()) < 5 * math.sqrt(expected)


def test_the_sample_does_not_depend_on_when_rows_were_dropped() -> None:
    def kept(look: Callable[[int], bool], size: int = 50) -> Tensor:
        sample = _Sample(size, 1, 3)
        for clip in range(40):
            sample.add(torch.arange(clip * 10.0, clip * 10.0 + 10)[:, None])
            if look(clip):
                sample.state()
        return sample.rows()

    never = kept(lambda clip: False)
    assert torch.equal(never, kept(lambda clip: False, size=1_000)[:50])  # none was dropped
    assert torch.equal(never, kept(lambda clip: True))
    assert torch.equal(never, kept(lambda clip: clip % 7 == 0))


def test_the_memory_of_the_sample_does_not_grow_with_the_stream() -> None:
    sample = _Sample(100, 2, 0)
    room = len(sample._rows)
    assert room <= 100 + 25 + 1
    for _ in range(200):
        sample.add(torch.zeros(10, 2))
        assert len(sample._rows) == len(sample._draws) == room
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


# Stopping and going on.

REQUEST = {"corpus": "abc", "clusters": 5, "conv_strides": (5, 2)}


def after(looks: int) -> Callable[[], bool]:
    """True at the last of so many questions."""
    asked = itertools.count(1)
    return lambda: next(asked) == looks


def fit_in_parts(path: Path, looks: int, clips: list[Tensor] | Counted) -> Path:
    """A fit that is stopped after so many clips and iterations at a time, until it is done."""
    part = PartFile(path / "part.safetensors", REQUEST)
    for _ in range(100):
        try:
            quantizer, report = fit_kmeans(
                clips,
                SETTINGS,
                clusters=5,
                iterations=6,
                seed=1,
                sample_frames=60,
                corpus="abc",
                part=part,
                stopped=after(looks),
            )
        except PreemptedError as stop:
            assert stop.exit_status == 75 and "The same command goes on there" in str(stop)
            assert part.path.is_file()
            continue
        file = path / "kmeans.safetensors"
        save_quantizer(quantizer, file, report=dataclasses.asdict(report), request=REQUEST)
        return file
    raise AssertionError("never done")


@pytest.mark.parametrize("looks", [1, 4, 13])
def test_a_fit_that_was_stopped_ends_at_the_same_bytes_and_reads_no_clip_twice(
    looks: int, tmp_path: Path
) -> None:
    clips = Counted(music())
    straight = fit_in_parts(tmp_path, 1_000, music())
    whole = straight.read_bytes()
    assert not (tmp_path / "part.safetensors").exists()
    parts = fit_in_parts(tmp_path, looks, clips)
    assert clips.read == list(range(12))
    assert parts.read_bytes() == whole
    assert fit(music(), clusters=5, iterations=6, seed=1, sample_frames=60)[1].sampled == 60


def test_a_fit_saves_now_and_then_though_nobody_stops_it(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "part.safetensors", REQUEST, every_seconds=0.0)
    seen: list[object] = []

    class Falling(Counted):
        """Clips whose sixth cannot be read."""

        def __getitem__(self, position: int) -> Tensor:
            if position == 5:
                with safe_open(part.path, framework="pt") as file:
                    seen.append((int(file.get_tensor("clips")), file.metadata()["request"]))
                raise OSError("the disk is gone")
            return super().__getitem__(position)

    settings = {"clusters": 5, "iterations": 6, "seed": 1, "sample_frames": 60}
    with pytest.raises(OSError, match="the disk is gone"):
        fit_kmeans(Falling(music()), SETTINGS, part=part, **settings)
    assert seen == [(5, json.dumps(REQUEST))]
    clips = Counted(music())
    quantizer, _ = fit_kmeans(clips, SETTINGS, part=part, **settings)
    assert clips.read == list(range(5, 12))
    assert torch.equal(quantizer.centroids, fit(music(), **settings)[0].centroids)
    part.remove()
    assert not list(tmp_path.iterdir())


def test_a_fit_that_is_killed_while_it_saves_keeps_what_was_saved_before(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "part.safetensors", REQUEST)
    with pytest.raises(PreemptedError):
        fit_kmeans(music(), SETTINGS, clusters=5, iterations=6, seed=1, part=part, stopped=after(3))
    part.temporary.write_bytes(part.path.read_bytes()[:100])
    clips = Counted(music())
    fit_kmeans(clips, SETTINGS, clusters=5, iterations=6, seed=1, part=part)
    assert clips.read[0] == 3
    part.remove()
    assert not list(tmp_path.iterdir())


def test_what_another_fit_left_is_refused_and_kept(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "part.safetensors", REQUEST)
    settings = {"clusters": 5, "iterations": 6, "seed": 1}
    with pytest.raises(PreemptedError, match="stopped after clip 2 of 12"):
        fit_kmeans(music(), SETTINGS, part=part, stopped=after(2), **settings)
    left = part.path.read_bytes()
    other = dataclasses.replace(part, request={**REQUEST, "corpus": "def", "hours": 2.0})
    clips = Counted(music())
    with pytest.raises(ConfigError) as caught:
        fit_kmeans(clips, SETTINGS, part=other, **settings)
    message = str(caught.value)
    assert "corpus (there 'abc', here 'def'); hours (there None, here 2.0)." in message
    assert "clusters" not in message and "conv_strides" not in message
    assert str(part.path) in message and "delete the file" in message
    assert clips.read == [] and part.path.read_bytes() == left


def test_what_is_damaged_is_not_gone_on_from(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "part.safetensors", REQUEST)
    for content in (b"", b"not safetensors, but text of some length"):
        part.path.write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be read .* Delete it to start anew"):
            fit_kmeans(music(), SETTINGS, clusters=5, iterations=1, seed=1, part=part)


def test_a_stop_without_a_place_to_keep_things_says_so() -> None:
    with pytest.raises(PreemptedError, match=r"stopped after clip 1 of 12\. Nothing is kept"):
        fit_kmeans(music(), SETTINGS, clusters=5, iterations=1, seed=1, stopped=lambda: True)


def test_differences_are_told_by_key() -> None:
    assert differences({"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 2]}) == []
    assert differences({"a": 1, "c": 3}, {"a": 2, "b": 0}) == [
        "a (there 1, here 2)",
        "b (there None, here 0)",
        "c (there 3, here None)",
    ]


# A trained encoder's frames.


def test_the_hidden_states_of_an_encoder_are_clustered_as_spectra_are(tmp_path: Path) -> None:
    save_encoder(small_encoder(dropout=0.2), tmp_path)
    settings = describe_encoder(tmp_path, layer=1)
    quantizer, report = fit_kmeans(tones(), settings, clusters=4, iterations=10, seed=0)
    encoder = small_encoder(dropout=0.2).eval()
    frames = torch.cat([encoder(clip).hidden_states[1].flatten(0, 1) for clip in tones()])
    assert torch.allclose(quantizer.mean, frames.mean(dim=0), atol=1e-4)
    points = (frames.detach() - quantizer.mean) / quantizer.scale
    assert report.inertia == pytest.approx(inertia(points, quantizer.centroids), rel=1e-3)
    assert report.frames == len(frames) and report.inertia < 0.5
    unheard = tone(300.0, seed=40)
    states = (encoder(unheard).hidden_states[1][0] - quantizer.mean) / quantizer.scale
    nearest = torch.cdist(states.double(), quantizer.centroids.double()).argmin(dim=1)
    assert torch.equal(quantizer(unheard)[0], nearest)


def test_an_encoder_whose_weights_are_not_finite_is_refused_at_the_first_clip(
    tmp_path: Path,
) -> None:
    encoder = small_encoder()
    with torch.no_grad():
        next(encoder.layers[1].parameters()).fill_(float("nan"))
    save_encoder(encoder, tmp_path)
    clips = Counted(tones())
    with pytest.raises(ConfigError, match="not finite"):
        settings = describe_encoder(tmp_path, layer=2)
        fit_kmeans(clips, settings, clusters=4, iterations=1, seed=0)
    assert clips.read == [0]
