from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from training_parts import GRID, small_encoder

from etude.models.embedding import (
    Embedder,
    Features,
    TimeMeans,
    embed_waveform,
    select_layers,
    window_deviation,
)
from etude.models.encoder import Encoder
from etude.models.frames import FrameGrid
from etude.models.windows import Samples, Window, Windowing

QUICKSTART = FrameGrid(16_000, (512, 4, 4), (20, 4, 4))
HOP, FIELD = GRID.hop_samples, GRID.receptive_samples

GRIDS = pytest.mark.parametrize("grid", [GRID, QUICKSTART], ids=["released", "quickstart"])


def music(samples: int, *, seed: int = 0) -> Samples:
    random = np.random.default_rng(seed)
    time = np.arange(samples) / GRID.sample_rate
    signal = 0.1 * np.sin(2 * np.pi * 220 * time) + 0.05 * random.standard_normal(samples)
    return signal.astype(np.float32)


def blocks(waveform: Samples, size: int) -> Iterator[Samples]:
    yield from (waveform[at : at + size] for at in range(0, len(waveform), size))


def forward_of(encoder: Encoder):
    encoder.eval()
    return lambda waveform: encoder(waveform).hidden_states


def whole(encoder: Encoder, waveform: Samples) -> Features:
    """(F, L, D) of one forward over everything."""
    with torch.inference_mode():
        states = encoder.eval()(torch.from_numpy(waveform)[None]).hidden_states
    return torch.stack([state[0] for state in states], dim=1).numpy()


class Taken:
    """A file's frames, as they come."""

    def __init__(self) -> None:
        self.frames: dict[int, Tensor] = {}

    def take(self, first_frame: int, features_FLD: Features) -> None:
        for offset, frame in enumerate(features_FLD):
            assert first_frame + offset not in self.frames, "a frame came twice"
            self.frames[first_frame + offset] = torch.from_numpy(frame)

    def joined(self) -> Tensor:
        assert sorted(self.frames) == list(range(len(self.frames))), "a frame is missing"
        return torch.stack([self.frames[frame] for frame in range(len(self.frames))])


def lengths_around(windowing: Windowing) -> list[int]:
    """Lengths on both sides of where something could change: a frame, a window, a stride."""
    grid, found = windowing.grid, set()
    for windows in range(4):
        frames = windowing.frames + windows * windowing.stride_frames
        for frame in (frames - 1, frames, frames + 1, frames + 2):
            first = grid.receptive_samples + (frame - 1) * grid.hop_samples
            found |= {first - 1, first, first + 1, first + grid.hop_samples - 1}
        found |= {windowing.samples - 1, windowing.samples, windowing.samples + 1}
    return sorted(length for length in found if length > 0)


@GRIDS
@pytest.mark.parametrize("overlap", [0, 1, 2, 5, 11, 23])
@pytest.mark.parametrize("spare", [0, 131, 319], ids="{0} spare samples".format)
def test_every_frame_of_a_file_of_any_length_is_kept_exactly_once(
    grid: FrameGrid, overlap: int, spare: int
) -> None:
    samples = grid.receptive_samples + 23 * grid.hop_samples + spare
    windowing = Windowing(grid, samples, overlap)
    assert windowing.frames == 24
    for length in lengths_around(windowing):
        waveform = np.arange(length, dtype=np.float32)
        windows = list(windowing.cut([waveform]))
        kept = [frame for w in windows for frame in range(w.kept_from, w.kept_until)]
        assert kept == list(range(grid.num_frames(length))), length
        assert [w.last for w in windows] == [False] * (len(windows) - 1) + [True]
        for window in windows:
            # The window is that piece of the file, and its frames are the file's frames.
            start = window.first_frame * grid.hop_samples
            assert np.array_equal(window.samples, waveform[start : start + len(window.samples)])
            inside = range(grid.num_frames(len(window.samples)))
            assert window.kept.start in inside and window.kept.stop - 1 in inside
        assert {len(window.samples) for window in windows[:-1]} <= {samples}
        assert len(windows[-1].samples) + start == length, "the last window ends with the file"
        assert windowing.end_seconds(windows[-1]) == length / grid.sample_rate


def test_a_file_that_fits_into_a_window_is_one_window() -> None:
    windowing = Windowing(GRID, 10_000, 5)
    for length in (FIELD, 5_000, 9_999, 10_000):
        (window,) = windowing.cut([music(length)])
        assert len(window.samples) == length and window.kept == slice(0, GRID.num_frames(length))
    assert len(list(windowing.cut([music(10_000 + HOP)]))) == 2


def test_less_than_a_frame_is_no_window() -> None:
    windowing = Windowing(GRID, 10_000, 5)
    assert not list(windowing.cut([music(FIELD - 1)])) and not list(windowing.cut([]))
    with pytest.raises(ValueError, match=f"{FIELD} samples, but has {FIELD - 1}"):
        embed_waveform(forward_of(small_encoder()), music(FIELD - 1), windowing, [0])


@pytest.mark.parametrize("size", [1, 77, 4_096, 50_000])
def test_the_blocks_of_a_stream_do_not_matter(size: int) -> None:
    waveform, windowing = music(31_111), Windowing(GRID, 8_000, 7)
    one, many = list(windowing.cut([waveform])), list(windowing.cut(blocks(waveform, size)))
    assert len(one) == len(many) > 4
    for ours, theirs in zip(one, many, strict=True):
        assert np.array_equal(ours.samples, theirs.samples)
        assert (ours.first_frame, ours.kept, ours.last) == (
            theirs.first_frame,
            theirs.kept,
            theirs.last,
        )


def test_every_kept_frame_has_half_the_overlap_around_it_or_the_files_end() -> None:
    windowing = Windowing(GRID, GRID.receptive_samples + 23 * HOP, 8)
    for length in lengths_around(windowing):
        frames = GRID.num_frames(length)
        for window in windowing.cut([np.zeros(length, np.float32)]):
            end = window.first_frame + GRID.num_frames(len(window.samples))
            assert window.first_frame == 0 or window.kept_from - window.first_frame >= 4
            assert end == frames or end - window.kept_until >= 4


@pytest.mark.parametrize(
    ("samples", "overlap", "message"),
    [
        (FIELD - 1, 0, f"must hold one frame, {FIELD} samples, but has {FIELD - 1}"),
        (FIELD + 3 * HOP, 4, "windows of 4 frames may overlap by 0 to 3 of them, but overlap by 4"),
        (FIELD + 3 * HOP, -1, "but overlap by -1"),
    ],
)
def test_windows_that_cannot_be_are_refused(samples: int, overlap: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Windowing(GRID, samples, overlap)


@pytest.mark.parametrize(
    "settings",
    [{}, {"conv_norm": "layer", "normalize": True}, {"norm": "pre"}],
    ids=["group norm", "layer norm", "pre-norm"],
)
def test_a_file_no_longer_than_the_window_has_the_models_own_features(
    settings: dict[str, object],
) -> None:
    encoder, windowing = small_encoder(**settings), Windowing(GRID, 24_000, 15)
    for length in (FIELD, 12_345, 24_000):
        features = embed_waveform(forward_of(encoder), music(length), windowing, range(3))
        np.testing.assert_array_equal(features, whole(encoder, music(length)))


@pytest.mark.parametrize("length", [50_000, 50_001, 63_999])
def test_what_sees_less_than_half_the_overlap_is_the_same_in_windows(length: int) -> None:
    # Layer norms per frame, and a positional convolution of 16 frames: layer 0 sees 8 of them.
    encoder = small_encoder(conv_norm="layer", position_kernel=16)
    windowing = Windowing(GRID, 16_000, 16)
    features = embed_waveform(forward_of(encoder), music(length), windowing, range(3))
    expected = whole(encoder, music(length))
    np.testing.assert_allclose(features[:, 0], expected[:, 0], rtol=1e-4, atol=1e-5)
    # Attention sees the whole window, and so is another in every one.
    assert np.abs(features[:, 2] - expected[:, 2]).max() > 1e-3


def test_only_frames_beside_a_join_miss_what_they_saw_in_the_whole_file() -> None:
    encoder = small_encoder(conv_norm="layer", position_kernel=16)
    windowing = Windowing(GRID, 16_000, 4)  # two frames dropped, where eight are seen
    waveform = music(50_000)
    features = embed_waveform(forward_of(encoder), waveform, windowing, [0])[:, 0]
    distance = np.abs(features - whole(encoder, waveform)[:, 0]).max(axis=1)
    joins = [window.kept_from for window in windowing.cut([waveform])][1:]
    beside = np.array([min(abs(f + 0.5 - join) for join in joins) for f in range(len(distance))])
    assert distance[beside > 8].max() < 1e-5
    assert distance[beside < 2].max() > 1e-3


def test_the_deviation_is_none_where_nothing_is_seen_beyond_the_overlap() -> None:
    encoder = small_encoder(conv_norm="layer", position_kernel=16)
    layer0, *_, last = window_deviation(
        forward_of(encoder), music(50_000), Windowing(GRID, 16_000, 16)
    )
    assert layer0 < 1e-5 < 1e-4 < last < 1
    same = window_deviation(forward_of(encoder), music(9_000), Windowing(GRID, 16_000, 16))
    assert same == [0, 0, 0]


def test_windows_of_many_files_in_one_batch_are_what_each_is_alone() -> None:
    encoder, windowing = small_encoder(), Windowing(GRID, 8_000, 7)
    files = [music(samples, seed=samples) for samples in (30_000, 9_000, 8_000, 41_234, 5_000)]
    sizes: list[int] = []

    def forward(waveform_BT: Tensor) -> tuple[Tensor, ...]:
        sizes.append(len(waveform_BT))
        return encoder.eval()(waveform_BT).hidden_states

    embedder, taken = Embedder(forward, range(3), batch=4), [Taken() for _ in files]
    for waveform, taker in zip(files, taken, strict=True):
        for window in windowing.cut([waveform]):
            embedder.push(window, taker)
    embedder.flush()
    assert max(sizes) == 4 and sizes.count(4) >= 2
    for waveform, taker in zip(files, taken, strict=True):
        alone = embed_waveform(forward_of(encoder), waveform, windowing, range(3))
        assert len(alone) == GRID.num_frames(len(waveform))
        torch.testing.assert_close(taker.joined().numpy(), alone, rtol=1e-5, atol=1e-5)


def test_no_forward_hears_more_than_its_windows_however_long_the_file() -> None:
    encoder, heard = small_encoder(), []
    windowing = Windowing(GRID, 8_000, 7)

    def forward(waveform_BT: Tensor) -> tuple[Tensor, ...]:
        heard.append(waveform_BT.shape)
        return encoder.eval()(waveform_BT).hidden_states

    produced = 0

    def stream() -> Iterator[Samples]:
        nonlocal produced
        for seed in range(100):
            produced += 3_000
            yield music(3_000, seed=seed)
            # Read and not yet heard: never more than a window and a block.
            reached = len(heard) * windowing.stride_frames * HOP
            assert produced - reached <= windowing.most_samples + 3_000

    embedder, taker = Embedder(forward, [2], batch=1), Taken()
    for window in windowing.cut(stream()):
        embedder.push(window, taker)
    embedder.flush()
    assert len(taker.joined()) == GRID.num_frames(300_000)
    assert max(rows for rows, _ in heard) == 1
    assert max(samples for _, samples in heard) <= windowing.most_samples < 8_000 + HOP


def test_few_windows_wait_for_others_of_their_length() -> None:
    encoder, sizes = small_encoder(), []

    def forward(waveform_BT: Tensor) -> tuple[Tensor, ...]:
        sizes.append(len(waveform_BT))
        return encoder.eval()(waveform_BT).hidden_states

    embedder, taken = Embedder(forward, [0], batch=4), []
    for number in range(40):  # no two are of the same length
        taken.append(Taken())
        samples = music(FIELD + number)
        embedder.push(Window(samples, 0, 0, 1, last=True), taken[-1])
        waiting = sum(not taker.frames for taker in taken)
        assert waiting < 8 and all(taker.frames for taker in taken[:-8])
    embedder.flush()
    assert all(taker.frames for taker in taken) and set(sizes) == {1}


def test_a_file_that_came_to_nothing_gets_no_features_and_costs_none() -> None:
    encoder, sizes = small_encoder(), []

    def forward(waveform_BT: Tensor) -> tuple[Tensor, ...]:
        sizes.append(len(waveform_BT))
        return encoder.eval()(waveform_BT).hidden_states

    embedder, good, bad = Embedder(forward, [0], batch=8), Taken(), Taken()
    embedder.push(Window(music(FIELD), 0, 0, 1, last=True), good)
    embedder.push(Window(music(FIELD), 0, 0, 1, last=True), bad)
    embedder.push(Window(music(FIELD + 1), 0, 1, 2, last=True), bad)
    embedder.forget(bad)
    embedder.flush()
    assert sizes == [1] and not bad.frames and len(good.frames) == 1


def test_layers_are_chosen_by_number_in_the_order_asked_for_or_averaged() -> None:
    states = [torch.full((2, 5, 3), float(layer)) for layer in range(4)]
    assert select_layers(states, [3]).shape == (2, 5, 1, 3)
    assert select_layers(states, [3, 0])[1, 4].tolist() == [[3.0] * 3, [0.0] * 3]
    assert select_layers(states, "mean")[0, 0].tolist() == [[1.5] * 3]


def test_means_over_time_are_those_of_the_frames_centred_there() -> None:
    random = np.random.default_rng(0)
    features = random.standard_normal((400, 2, 3)).astype(np.float32)
    centres = np.array(GRID.frame_times(400))
    means = TimeMeans(GRID, seconds=0.5)
    for first, end in ((100, 170), (0, 100), (399, 400), (170, 399)):  # in whatever order
        means.take(first, features[first:end])
    assert means.means().shape == (11, 2, 3)  # 400 frames at 75 Hz: the last one is a part
    for index, (mean, time) in enumerate(zip(means.means(), means.times(), strict=True)):
        inside = (centres >= 0.5 * index) & (centres < 0.5 * (index + 1))
        np.testing.assert_allclose(mean, features[inside].mean(axis=0), atol=1e-6)
        assert time == pytest.approx(centres[inside].mean())
    total = TimeMeans(GRID, seconds=float("inf"))
    total.take(0, features)
    np.testing.assert_allclose(total.means()[0], features.mean(axis=0), atol=1e-6)
    assert total.times() == pytest.approx(centres.mean())
