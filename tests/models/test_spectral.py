"""Spectra show a tone in its band, a click in its frame, and as many frames as the encoder has."""

import math

import pytest
import torch
from torch import Tensor, nn
from training_parts import GRID, noise

from etude.models.frames import FrameGrid
from etude.models.spectral import Chroma, ConstantQ, LogMel

RATE = GRID.sample_rate
QUICKSTART_GRID = FrameGrid(RATE, (512, 4, 4), (20, 4, 4))
CQT_FMIN = 65.4


def tone(*frequencies: float, seconds: float = 1.0, gain: float = 1.0) -> Tensor:
    """One sine per row, (B, T)."""
    time = torch.arange(round(seconds * RATE), dtype=torch.float64) / RATE
    phase = 2.0 * math.pi * torch.tensor(frequencies, dtype=torch.float64)[:, None] * time
    return (gain * torch.sin(phase)).float()


def click(sample: int, samples: int = 24_000) -> Tensor:
    waveform = torch.zeros(1, samples)
    waveform[0, sample] = 1.0
    return waveform


def small_cqt(grid: FrameGrid = GRID, **settings: object) -> ConstantQ:
    values = {"bins": 48, "bins_per_octave": 12, "fmin": CQT_FMIN, "scale": "linear", **settings}
    return ConstantQ(grid, **values)


TRANSFORMS = {
    "logmel": lambda: LogMel(GRID, bins=20, n_fft=1024),
    "chroma": lambda: Chroma(GRID, bins=12, n_fft=4096),
    "cqt": small_cqt,
    "cqt-log-crop": lambda: small_cqt(scale="log", level="crop"),
}
EVERY_TRANSFORM = pytest.mark.parametrize("kind", TRANSFORMS)


@EVERY_TRANSFORM
@pytest.mark.parametrize("samples", [400, 719, 720, 24_000, 24_159, 24_160, 24_319, 40_000])
def test_there_are_as_many_frames_as_the_encoder_has(kind: str, samples: int) -> None:
    spectrum = TRANSFORMS[kind]()(noise(2, samples))
    bins = {"logmel": 20, "chroma": 12}.get(kind, 48)
    assert spectrum.shape == (2, GRID.num_frames(samples), bins)
    assert spectrum.isfinite().all()


@EVERY_TRANSFORM
def test_autocast_changes_nothing(kind: str) -> None:
    transform = TRANSFORMS[kind]()
    waveform = noise(2, 8_000)
    wanted = transform(waveform)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        spectrum = transform(waveform)
    assert spectrum.dtype == torch.float32 and torch.equal(spectrum, wanted)


@EVERY_TRANSFORM
def test_kernels_move_with_the_module_but_stay_out_of_checkpoints(kind: str) -> None:
    transform = TRANSFORMS[kind]()
    transform(noise(1, 8_000))  # the CQT makes its tables when it first sees a length
    assert nn.ModuleDict({"target": transform}).state_dict() == {}
    assert list(transform.parameters()) == []
    assert len(list(transform.buffers())) >= 2
    assert all(buffer.device.type == "meta" for buffer in transform.to("meta").buffers())


@EVERY_TRANSFORM
def test_no_gradient_reaches_the_waveform(kind: str) -> None:
    waveform = noise(1, 8_000).requires_grad_()
    assert not TRANSFORMS[kind]()(waveform).requires_grad


@EVERY_TRANSFORM
def test_a_row_does_not_depend_on_its_neighbours(kind: str) -> None:
    transform = TRANSFORMS[kind]()
    waveform = noise(3, 8_000) * torch.tensor([[1.0], [0.1], [3.0]])
    together = transform(waveform)
    for row in range(3):
        alone = transform(waveform[row : row + 1])[0]
        torch.testing.assert_close(alone, together[row], rtol=1e-4, atol=1e-4)


# -- log-mel --------------------------------------------------------------------------------------


def mel_centres(bins: int) -> Tensor:
    """Centres in Hz of bands spaced evenly in mel (HTK: 2595 log10(1 + f / 700))."""
    top = 2595.0 * math.log10(1.0 + RATE / 2 / 700.0)
    mel = torch.arange(1, bins + 1, dtype=torch.float64) * top / (bins + 1)
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


def test_log_mel_of_a_tone_peaks_in_its_band() -> None:
    bands = [2, 5, 11, 19, 30, 39]
    waveform = tone(*mel_centres(40)[bands].tolist())
    peaks = LogMel(GRID, bins=40, n_fft=1024)(waveform).argmax(dim=-1)
    assert torch.equal(peaks, torch.tensor(bands)[:, None].expand_as(peaks))


def test_log_mel_is_the_natural_logarithm_of_power() -> None:
    transform = LogMel(GRID, bins=40, n_fft=1024)
    loud, quiet = transform(tone(1_000.0)), transform(tone(1_000.0, gain=0.5))
    # 6 dB at the band of the tone, where the floor of 1e-5 does not matter.
    torch.testing.assert_close(
        loud.amax(dim=-1) - quiet.amax(dim=-1), torch.full((1, 74), math.log(4.0))
    )
    silence = transform(torch.zeros(1, 8_000))
    torch.testing.assert_close(silence, torch.full_like(silence, math.log(1e-5)))


@pytest.mark.parametrize("n_fft", [256, 512, 1024])
@pytest.mark.parametrize("grid", [GRID, QUICKSTART_GRID], ids=["released", "quickstart"])
@pytest.mark.parametrize("frame", [0, 1, 30, -1])
def test_a_click_at_a_frames_centre_shows_in_that_frame(
    grid: FrameGrid, n_fft: int, frame: int
) -> None:
    num_frames = grid.num_frames(24_000)
    frame %= num_frames
    waveform = click(frame * grid.hop_samples + grid.centre_samples)
    energy = LogMel(grid, bins=20, n_fft=n_fft)(waveform)[0].exp().sum(dim=-1)
    assert energy.argmax() == frame
    if 0 < frame < num_frames - 1:  # the neighbours see it from either side, equally
        torch.testing.assert_close(energy[frame - 1], energy[frame + 1])
        assert energy[frame - 1] < 0.5 * energy[frame]


# -- chroma ---------------------------------------------------------------------------------------

OCTAVES_OF_A = (110.0, 220.0, 440.0, 880.0, 1760.0)


@pytest.mark.parametrize(("bins", "bin_of_a"), [(12, 9), (24, 18)])
def test_chroma_of_an_a_peaks_at_a_in_every_octave(bins: int, bin_of_a: int) -> None:
    chroma = Chroma(GRID, bins=bins, n_fft=4096)(tone(*OCTAVES_OF_A))
    steady = chroma[:, 10:-10]
    assert (steady.argmax(dim=-1) == bin_of_a).all()
    torch.testing.assert_close(steady.amax(dim=-1), torch.ones(5, 54), rtol=0.02, atol=0.0)


def test_chroma_of_a_semitone_up_peaks_one_bin_up() -> None:
    scale = [440.0 * 2.0 ** (step / 12.0) for step in range(12)]
    peaks = Chroma(GRID, bins=12, n_fft=4096)(tone(*scale))[:, 37].argmax(dim=-1)
    assert peaks.tolist() == [(9 + step) % 12 for step in range(12)]


def test_chroma_hears_neither_rumble_nor_what_is_all_but_silent() -> None:
    transform = Chroma(GRID, bins=12, n_fft=4096)
    quiet_tone = tone(440.0, gain=0.1)
    clean, rumbling = transform(quiet_tone), transform(quiet_tone + tone(30.0, gain=0.8))
    torch.testing.assert_close(rumbling[:, 10:-10], clean[:, 10:-10], rtol=0.0, atol=0.01)
    assert transform(tone(440.0, gain=1e-5)).amax() < 0.1
    assert transform(torch.zeros(1, 8_000)).amax() == 0.0


# -- constant-Q -----------------------------------------------------------------------------------


def test_constant_q_of_a_tone_peaks_at_its_bin() -> None:
    bins = torch.arange(48)
    frequencies = CQT_FMIN * 2.0 ** (bins / 12.0)
    peaks = small_cqt()(tone(*frequencies.tolist()))[:, 25:50].argmax(dim=-1)
    assert torch.equal(peaks, bins[:, None].expand_as(peaks))


@pytest.mark.parametrize("frame", [0, 1, 30, 73])
def test_constant_q_is_centred_on_the_start_of_a_frame(frame: int) -> None:
    spectrum = small_cqt()(click(frame * GRID.hop_samples))[0]
    # The lowest bin's window of 0.26 s and the highest one's of 18 ms agree on where it was.
    assert spectrum[:, 0].argmax() == spectrum[:, -1].argmax() == frame
    if 0 < frame < 73:
        before, after = spectrum[frame - 1], spectrum[frame + 1]
        torch.testing.assert_close(before, after, rtol=0.01, atol=1e-4)


def test_constant_q_with_the_published_settings_has_the_published_magnitude() -> None:
    transform = ConstantQ(GRID, bins=336, bins_per_octave=48, fmin=32.7, scale="linear")
    spectrum = transform(tone(440.0))[0]
    assert spectrum.shape == (74, 336)
    # nnAudio 0.3.4, "librosa" normalisation: half the square root of the window's 3,764 samples.
    assert spectrum[37].argmax() == 180
    assert spectrum.amax().item() == pytest.approx(30.62, abs=0.05)


def test_a_logarithmic_constant_q_is_that_of_a_hundred_magnitudes() -> None:
    waveform = noise(2, 8_000)
    linear, log = small_cqt()(waveform), small_cqt(scale="log")(waveform)
    torch.testing.assert_close(log, (1.0 + 100.0 * linear).log())


def test_a_level_per_crop_makes_gain_irrelevant() -> None:
    waveform = noise(2, 8_000)
    as_is, crop = small_cqt(), small_cqt(level="crop")
    torch.testing.assert_close(as_is(4.0 * waveform), 4.0 * as_is(waveform))
    torch.testing.assert_close(crop(4.0 * waveform), crop(waveform), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_a_level_per_crop_gives_each_crop_mean_0_and_deviation_1(scale: str) -> None:
    waveform = noise(3, 8_000) * torch.tensor([[1.0], [2.0], [5.0]])
    transform = small_cqt(scale=scale, level="crop")
    spectrum = transform(waveform)
    torch.testing.assert_close(spectrum.mean(dim=(1, 2)), torch.zeros(3), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(spectrum.std(dim=(1, 2)), torch.ones(3), atol=0.02, rtol=0.0)
    assert transform(torch.zeros(1, 8_000)).abs().amax() == 0.0
