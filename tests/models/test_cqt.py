"""The constant-Q transform in frequency is nnAudio's, whatever the crop and the settings."""

import copy
import pickle

import numpy as np
import pytest
import torch
from nnAudio.features.cqt import CQT1992v2
from nnAudio.utils import create_cqt_kernels
from torch import Tensor
from training_parts import GRID, noise

from etude.models.cqt import FourierCqt
from etude.models.frames import FrameGrid
from etude.models.spectral import ConstantQ

RATE = 24_000
TOLERANCE = 2e-5
"""Relative L2 between the two transforms of anything that one would train on."""

SETTINGS = {
    "published": {"bins": 336, "bins_per_octave": 48, "fmin": 32.7},
    "quick start": {"bins": 60, "bins_per_octave": 12, "fmin": 65.4},
    "not a whole octave": {"bins": 31, "bins_per_octave": 24, "fmin": 220.0},
    "one bin": {"bins": 1, "bins_per_octave": 48, "fmin": 440.0},
    "up to half the rate": {"bins": 48, "bins_per_octave": 48, "fmin": 6_000.0},
    # So few periods per window that a band is wider than the whole circle of frequencies.
    "an octave per bin": {"bins": 8, "bins_per_octave": 1, "fmin": 40.0},
    # The lowest bands reach below 0, the highest beyond half the rate and around to there.
    "around the circle": {"bins": 48, "bins_per_octave": 8, "fmin": 180.0},
    "thirds of a semitone": {"bins": 72, "bins_per_octave": 36, "fmin": 880.0},
}
EVERY_SETTING = pytest.mark.parametrize("name", SETTINGS)
SMALL = SETTINGS["quick start"]


def fourier(name: str = "quick start", *, hop: int = 320) -> FourierCqt:
    return FourierCqt(sample_rate=RATE, hop_samples=hop, **SETTINGS[name])


def nnaudio(name: str, *, hop: int = 320) -> CQT1992v2:
    settings = SETTINGS[name]
    return CQT1992v2(
        sr=RATE,
        hop_length=hop,
        fmin=settings["fmin"],
        n_bins=settings["bins"],
        bins_per_octave=settings["bins_per_octave"],
        pad_mode="constant",
        output_format="Magnitude",
        verbose=False,
    )


def defining_sums(name: str, waveform: Tensor, frames: list[int], *, hop: int = 320) -> Tensor:
    """The transform as it is defined, in float64: a sum per bin and frame, zeros outside."""
    settings = SETTINGS[name]
    quality = 1.0 / (2.0 ** (1.0 / settings["bins_per_octave"]) - 1.0)
    kernels, width, lengths, _ = create_cqt_kernels(
        quality, RATE, settings["fmin"], settings["bins"], settings["bins_per_octave"]
    )
    padded = np.pad(waveform.double().numpy(), (width // 2, width))
    windows = np.stack([padded[frame * hop : frame * hop + width] for frame in frames], axis=1)
    spectrum = np.empty((len(kernels), len(frames)))
    for row, kernel in enumerate(kernels):
        held = np.flatnonzero(kernel)
        sums = kernel[held].astype(np.complex128).conj() @ windows[held]
        spectrum[row] = np.sqrt(float(lengths[row])) * np.abs(sums)
    return torch.from_numpy(spectrum)


def music(samples: int, *, seed: int = 0) -> Tensor:
    """A loud bass, a chord that begins late, and faint noise: weak beside loud."""
    time = torch.arange(samples, dtype=torch.float64) / RATE
    bass = torch.remainder(55.0 * time, 1.0) - 0.5
    chord = sum(torch.sin(2 * torch.pi * pitch * time) for pitch in (440.0, 554.4, 659.3, 2_637.0))
    assert isinstance(chord, Tensor)
    late = (torch.arange(samples) > samples // 3) * chord
    return (bass + 0.1 * late).float() + 0.01 * noise(1, samples, seed=seed)[0]


def relative(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


# -- the same numbers -----------------------------------------------------------------------------


@EVERY_SETTING
def test_it_is_nnaudios_transform(name: str) -> None:
    waveform = torch.stack([music(16_000), noise(1, 16_000)[0]])
    ours, theirs = fourier(name)(waveform), nnaudio(name)(waveform)
    assert ours.shape == theirs.shape and ours.dtype == torch.float32
    for row in range(2):
        assert relative(ours[row], theirs[row]) < TOLERANCE


@pytest.mark.parametrize("hop", [1, 7, 97, 320, 512, 1_000])
@pytest.mark.parametrize("samples", [1, 100, 3_001, 8_000])
def test_any_hop_and_any_length_will_do(hop: int, samples: int) -> None:
    name = "thirds of a semitone"
    waveform = noise(1, samples)
    ours, theirs = fourier(name, hop=hop)(waveform), nnaudio(name, hop=hop)(waveform)
    assert ours.shape == theirs.shape == (1, 72, samples // hop + 1)
    assert relative(ours, theirs) < TOLERANCE


@EVERY_SETTING
def test_it_is_the_sum_that_defines_it(name: str) -> None:
    waveform, frames = music(16_000), [0, 1, 24, 49, 50]
    ours = fourier(name)(waveform[None])[0][:, frames]
    assert relative(ours.double(), defining_sums(name, waveform, frames)) < TOLERANCE


@pytest.mark.parametrize("name", ["quick start", "thirds of a semitone", "around the circle"])
@pytest.mark.parametrize("samples", [2_000, 16_000])
@pytest.mark.parametrize("end", [0, -1])
def test_beyond_the_ends_of_a_crop_there_is_silence(name: str, samples: int, end: int) -> None:
    waveform = torch.zeros(samples)
    waveform[end] = 1.0  # a click at one end would show at the other one if the crop were a circle
    ours = fourier(name)(waveform[None])[0]
    wanted = defining_sums(name, waveform, list(range(samples // 320 + 1)))
    assert relative(ours.double(), wanted) < TOLERANCE


def test_what_is_quiet_is_exact_beside_what_is_loud() -> None:
    waveform = torch.sin(2 * torch.pi * 70.0 * torch.arange(16_000) / RATE)
    frames = [10, 25, 40]
    ours = fourier()(waveform[None])[0][:, frames].double()
    wanted = defining_sums("quick start", waveform, frames)
    assert wanted[-12:].amax() < 1e-2 * wanted.amax()
    assert (ours - wanted)[-12:].abs().amax() < TOLERANCE * wanted.amax()


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("level", ["as_is", "crop"])
def test_the_target_is_that_of_nnaudio_in_every_scale_and_level(scale: str, level: str) -> None:
    ours, theirs = (
        ConstantQ(GRID, **SMALL, scale=scale, level=level, algorithm=algorithm)
        for algorithm in ("fft", "CQT1992v2")
    )
    waveform = torch.stack([music(16_000), noise(1, 16_000)[0]])
    assert isinstance(ConstantQ(GRID, **SMALL, scale="linear").transform, FourierCqt)
    assert ours(waveform).shape == (2, GRID.num_frames(16_000), 60)
    assert relative(ours(waveform), theirs(waveform)) < TOLERANCE


# -- rows, silence, precision ---------------------------------------------------------------------


def test_silence_is_exactly_zero() -> None:
    spectrum = fourier()(torch.zeros(2, 8_000))
    assert torch.equal(spectrum, torch.zeros(2, 60, 26))


@pytest.mark.parametrize("name", ["quick start", "around the circle"])
def test_a_row_does_not_depend_on_its_neighbours(name: str) -> None:
    transform = fourier(name)
    waveform = noise(3, 8_000) * torch.tensor([[1.0], [1e-3], [30.0]])
    together = transform(waveform)
    for row in range(3):
        assert relative(together[row], transform(waveform[row : row + 1])[0]) < 1e-6
    waveform[0] = torch.nan
    assert relative(transform(waveform)[1:], together[1:]) < 1e-6


def test_the_same_crop_gives_the_same_bits() -> None:
    transform, waveform = fourier(), noise(2, 8_000)
    first = transform(waveform)
    assert torch.equal(transform(waveform), first)
    assert torch.equal(fourier()(waveform), first)


@pytest.mark.parametrize("algorithm", ["fft", "CQT1992v2"])
def test_neither_autocast_nor_a_lower_matmul_precision_reaches_it(
    algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform = ConstantQ(GRID, **SMALL, scale="linear", algorithm=algorithm)
    seen = []
    transform.transform.register_forward_pre_hook(
        lambda *_: seen.append(
            (
                torch.get_float32_matmul_precision(),
                torch.backends.cudnn.allow_tf32,
                torch.is_autocast_enabled("cpu"),
            )
        )
    )
    waveform = noise(2, 8_000)
    wanted = transform(waveform)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(transform(waveform), wanted)
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == [("highest", False, False)] * 2


# -- tables ---------------------------------------------------------------------------------------


def test_crops_of_the_same_padded_length_share_their_tables() -> None:
    transform = fourier()
    assert len(transform.tables) == 0
    first = transform(noise(1, 24_000))
    (tables,) = transform.tables.values()
    pointer = tables.bands.data_ptr()
    transform(noise(3, 24_100))
    assert [each.bands.data_ptr() for each in transform.tables.values()] == [pointer]
    transform(noise(1, 48_000))
    assert len(transform.tables) == 2
    assert torch.equal(transform(noise(1, 24_000)), first)


def test_no_checkpoint_holds_the_tables() -> None:
    transform = fourier()
    transform(noise(1, 8_000))
    assert sum(buffer.numel() for buffer in transform.buffers()) > 100_000
    assert transform.state_dict() == {} and list(transform.parameters()) == []
    fourier().load_state_dict(transform.state_dict())


def test_copies_and_pickles_compute_the_same() -> None:
    waveform = noise(1, 8_000)
    fresh, used = fourier(), fourier()
    wanted = used(waveform)
    for transform in (fresh, used):
        for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
            assert torch.equal(other(waveform), wanted)
    assert copy.deepcopy(used).tables.keys() == used.tables.keys() != fresh.tables.keys()


def test_tables_move_with_the_module_and_new_ones_go_where_the_waveform_is() -> None:
    transform = fourier()
    transform(noise(1, 8_000))
    transform.to("meta")
    assert {buffer.device.type for buffer in transform.buffers()} == {"meta"}
    spectrum = transform(noise(1, 48_000).to("meta"))
    assert spectrum.device.type == "meta" and spectrum.shape == (1, 60, 151)
    assert {buffer.device.type for buffer in transform.buffers()} == {"meta"}


def test_it_compiles_into_one_graph_once_its_tables_are_there() -> None:
    transform, waveform = fourier("one bin"), noise(2, 8_000)
    wanted = transform(waveform)
    compiled = torch.compile(transform, backend="aot_eager", fullgraph=True)
    assert relative(compiled(waveform), wanted) < 1e-6


def test_compiled_it_makes_its_tables_itself() -> None:
    target = ConstantQ(FrameGrid(RATE, (320,), (320,)), **SETTINGS["one bin"], scale="linear")
    compiled = torch.compile(target, backend="aot_eager")
    for samples in (8_000, 16_000):
        waveform = noise(2, samples)
        spectrum = compiled(waveform)
        assert relative(spectrum, target(waveform)) < 1e-6
