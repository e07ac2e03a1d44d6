"""Frames are counted as the convolutions count them, and lie where the convolutions look."""

import random

import pytest
import torch
from torch import Tensor

from etude.models.frames import FrameGrid
from etude.models.frontend import WaveformFrontend

RELEASED = ((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
QUICKSTART = ((512, 4, 4), (20, 4, 4))
STACKS = pytest.mark.parametrize(
    ("kernels", "strides"), [RELEASED, QUICKSTART], ids=["released", "quickstart"]
)


def conv_frontend(kernels: tuple[int, ...], strides: tuple[int, ...]) -> WaveformFrontend:
    # Layer norm: with a group norm every frame would see the whole waveform's statistics.
    layers = [(4, kernel, stride) for kernel, stride in zip(kernels, strides, strict=True)]
    return WaveformFrontend(layers, 4, layer_norm=True)


def interesting_lengths(grid: FrameGrid) -> list[int]:
    """Around the first frames, where the count steps, and anywhere up to a minute."""
    edges = [grid.receptive_samples + frames * grid.hop_samples for frames in (0, 1, 2, 70)]
    draw = random.Random(0)
    anywhere = [draw.randrange(grid.receptive_samples, 1_500_000) for _ in range(60)]
    return [edge + offset for edge in edges for offset in (0, 1, 7, 319)] + anywhere


@STACKS
def test_the_convolutions_give_the_frames_that_the_grid_counts(
    kernels: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    grid = FrameGrid(24_000, kernels, strides)
    with torch.device("meta"):  # the real convolutions' own shapes, at no cost
        frontend = conv_frontend(kernels, strides)
        for length in interesting_lengths(grid):
            features = frontend(torch.empty(1, length))
            assert features.raw.shape[1] == features.projected.shape[1] == grid.num_frames(length)
    frontend = conv_frontend(kernels, strides)
    for length in (grid.receptive_samples, 24_000, 24_319):
        assert frontend(torch.zeros(1, length)).raw.shape[1] == grid.num_frames(length)


@STACKS
def test_less_than_one_frame_sees_is_no_frame(
    kernels: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    grid = FrameGrid(24_000, kernels, strides)
    assert grid.num_frames(grid.receptive_samples) == 1
    for length in (0, 1, kernels[0] - 1, kernels[0], grid.receptive_samples - 1):
        assert grid.num_frames(length) == 0
    with pytest.raises(ValueError, match="at least the .* samples that one frame sees"):
        conv_frontend(kernels, strides)(torch.zeros(1, grid.receptive_samples - 1))


@pytest.mark.parametrize(
    ("sample_rate", "samples", "frames"),
    [
        (24_000, 120_000, 374),  # 5 s; the codec gives 375, a centred CQT 376
        (24_000, 122_880, 383),
        (16_000, 80_000, 249),
        (16_000, 480_000, 1499),
        (24_000, 24_000, 74),
        (24_000, 399, 0),
        (24_000, 400, 1),
        (24_000, 719, 1),
        (24_000, 720, 2),
    ],
)
def test_the_released_stack_gives_the_published_counts(
    sample_rate: int, samples: int, frames: int
) -> None:
    assert FrameGrid(sample_rate, *RELEASED).num_frames(samples) == frames


def test_the_released_stack_hops_320_samples_and_sees_400() -> None:
    grid = FrameGrid(24_000, *RELEASED)
    assert (grid.hop_samples, grid.receptive_samples, grid.centre_samples) == (320, 400, 200)
    assert (grid.frame_rate, FrameGrid(16_000, *RELEASED).frame_rate) == (75.0, 50.0)
    assert grid.frame_times(3) == [200 / 24_000, 520 / 24_000, 840 / 24_000]


def test_the_quick_starts_stack_keeps_the_hop_and_sees_812_samples() -> None:
    grid = FrameGrid(16_000, *QUICKSTART)
    assert (grid.hop_samples, grid.receptive_samples, grid.frame_rate) == (320, 812, 50.0)
    assert grid.num_frames(80_000) == 248  # a wider field costs the last frame


def samples_heard(frontend: WaveformFrontend, waveform: Tensor, frame: int) -> list[int]:
    waveform = waveform.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(frontend(waveform).raw[0, frame].square().sum(), waveform)
    return gradient[0].nonzero().flatten().tolist()


@STACKS
def test_a_frame_hears_exactly_the_samples_that_the_grid_says(
    kernels: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    grid = FrameGrid(24_000, kernels, strides)
    frontend = conv_frontend(kernels, strides)
    waveform = torch.randn(1, 4_000)
    for frame in (0, 3, grid.num_frames(4_000) - 1):
        heard = samples_heard(frontend, waveform, frame)
        start = frame * grid.hop_samples
        assert heard == list(range(start, start + grid.receptive_samples))
        centre = grid.frame_times(frame + 1)[frame] * grid.sample_rate
        assert centre == pytest.approx((heard[0] + heard[-1] + 1) / 2, abs=0.5)


@pytest.mark.parametrize(
    ("kernels", "strides"), [((10, 3), (5,)), ((10,), (5, 2)), ((), ())], ids=str
)
def test_a_convolution_without_kernel_or_stride_is_refused(
    kernels: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="needs a kernel and a stride"):
        FrameGrid(24_000, kernels, strides)


def test_one_convolution_is_a_grid_of_its_own() -> None:
    grid = FrameGrid(8_000, [25], [10])
    assert (grid.hop_samples, grid.receptive_samples, grid.frame_rate) == (10, 25, 800.0)
    assert [grid.num_frames(samples) for samples in (24, 25, 34, 35)] == [0, 1, 1, 2]
