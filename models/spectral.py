"""Spectra of a waveform on the encoder's frame grid: log-mel, chroma, constant-Q.

Every transform maps a waveform (B, T) to (B, F, bins), F as the encoder counts frames. Log-mel and
chroma are centred where a conv frame is (``grid.centre_samples``); the CQT is centred on the start
of the frame, as the published models have it. All run in float32, autocast or not: their small
magnitudes do not survive bfloat16.
"""

import math
from typing import Literal

import torch
from nnAudio.features.cqt import CQT1992v2, CQT2010v2
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks

from etude.models.cqt import FourierCqt
from etude.models.frames import FrameGrid
from etude.models.precision import plain_float32

CHROMA_FMIN = 65.4
"""Lowest frequency that counts towards chroma: C2, below which FFT bins are wider than a tone."""


CqtAlgorithm = Literal["fft", "CQT1992v2", "CQT2010v2"]

_NNAUDIO_CLASSES = {"CQT1992v2": CQT1992v2, "CQT2010v2": CQT2010v2}


class PowerSpectrum(nn.Module):
    """Hann-windowed short-time power spectrum, (B, T) -> (B, F, n_fft // 2 + 1)."""

    window: Tensor

    def __init__(self, grid: FrameGrid, n_fft: int) -> None:
        super().__init__()
        self.grid = grid
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Power of each frame's window, centred on the conv frame's centre; zeros outside."""
        num_frames = self.grid.num_frames(waveform.shape[-1])
        left = self.n_fft // 2 - self.grid.centre_samples
        right = (num_frames - 1) * self.grid.hop_samples + self.n_fft - left - waveform.shape[-1]
        spectrum = torch.stft(
            F.pad(waveform.float(), (left, right)),
            self.n_fft,
            self.grid.hop_samples,
            window=self.window,
            center=False,
            return_complex=True,
        )
        return spectrum.abs().square().transpose(1, 2)


class LogMel(nn.Module):
    """Natural log of mel-band power, (B, T) -> (B, F, bins)."""

    filters: Tensor

    def __init__(self, grid: FrameGrid, *, bins: int, n_fft: int) -> None:
        super().__init__()
        self.power = PowerSpectrum(grid, n_fft)
        filters = melscale_fbanks(
            n_fft // 2 + 1, 0.0, grid.sample_rate / 2, bins, grid.sample_rate, norm="slaney"
        )
        self.register_buffer("filters", filters, persistent=False)

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Log mel power; 1e-5 (about -50 dB below full scale) keeps silence finite."""
        with torch.autocast(waveform.device.type, enabled=False):
            power: Tensor = self.power(waveform)
            return torch.log(power @ self.filters + 1e-5)


class Chroma(nn.Module):
    """Energy per pitch class, octaves folded, unit maximum per frame, (B, T) -> (B, F, bins).

    Filters as in Ellis, "Chroma feature analysis and synthesis" (2007): a Gaussian around each
    pitch class, as wide as the FFT resolves there, octaves weighted around C5.
    """

    filters: Tensor

    def __init__(self, grid: FrameGrid, *, bins: int, n_fft: int) -> None:
        super().__init__()
        self.power = PowerSpectrum(grid, n_fft)
        filters = _chroma_filters(grid.sample_rate, n_fft=n_fft, bins=bins)
        self.register_buffer("filters", filters, persistent=False)

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Chroma from magnitudes; frames of silence stay near zero instead of blowing up noise."""
        with torch.autocast(waveform.device.type, enabled=False):
            power: Tensor = self.power(waveform)
            chroma = power.sqrt() @ self.filters
            return chroma / (chroma.amax(dim=-1, keepdim=True) + 1e-3)


class ConstantQ(nn.Module):
    """Constant-Q magnitudes, (B, T) -> (B, F, bins).

    The published settings are 336 bins, 48 per octave from 32.7 Hz, linear magnitude, by nnAudio's
    ``CQT1992v2`` (yizhilll/MERT ``mert_model.py``), which is a dense convolution with kernels of up
    to 65,536 taps. ``fft`` computes the same in the frequency domain (``models/cqt.py``).
    ``CQT2010v2`` (Schoerkhuber and Klapuri 2010) computes one octave and halves the rate for the
    next, and is less exact. ``docs/cqt.md`` has what each costs and misses.

    :param algorithm: ours, or a class of nnAudio.
    :param scale: linear magnitudes as published, or ``log(1 + 100 m)``.
    :param level: ``crop`` shifts and scales each crop's spectrum to mean 0 and deviation 1: the
        group-normed front end cannot hear how loud a crop is, so it cannot predict it either.
    """

    def __init__(
        self,
        grid: FrameGrid,
        *,
        bins: int,
        bins_per_octave: int,
        fmin: float,
        scale: Literal["linear", "log"],
        level: Literal["as_is", "crop"] = "as_is",
        algorithm: CqtAlgorithm = "fft",
    ) -> None:
        super().__init__()
        self.grid = grid
        self.scale = scale
        self.level = level
        self.transform: nn.Module
        if algorithm == "fft":
            self.transform = FourierCqt(
                sample_rate=grid.sample_rate,
                hop_samples=grid.hop_samples,
                bins=bins,
                bins_per_octave=bins_per_octave,
                fmin=fmin,
            )
            return
        self.transform = _NNAUDIO_CLASSES[algorithm](
            sr=grid.sample_rate,
            hop_length=grid.hop_samples,
            fmin=fmin,
            n_bins=bins,
            bins_per_octave=bins_per_octave,
            output_format="Magnitude",
            pad_mode="constant",
            verbose=False,
        )
        # The kernels follow from the settings: 176 MB at the published ones, not for checkpoints.
        for module in self.transform.modules():
            module._non_persistent_buffers_set.update(dict(module.named_buffers(recurse=False)))

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Magnitudes (or ``log(1 + 100 m)``) of the frames that the encoder has."""
        num_frames = self.grid.num_frames(waveform.shape[-1])
        with plain_float32(waveform.device):
            spectrum: Tensor = self.transform(waveform.float())
            spectrum = spectrum.transpose(1, 2)[:, :num_frames]
            if self.scale == "log":
                spectrum = torch.log1p(100.0 * spectrum)
            if self.level == "crop":
                mean = spectrum.mean(dim=(1, 2), keepdim=True)
                deviation = spectrum.std(dim=(1, 2), keepdim=True)
                spectrum = (spectrum - mean) / (deviation + 1e-3)
            return spectrum.contiguous()


def _chroma_filters(sample_rate: int, *, n_fft: int, bins: int) -> Tensor:
    frequency = torch.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    frequency[0] = frequency[1] / 4  # the constant has no pitch; it gets no weight below
    pitch = bins * torch.log2(frequency / 16.3516)  # bins above C0
    width = torch.cat([(pitch[1:] - pitch[:-1]).clamp(min=1.0), torch.ones(1)])
    distance = pitch[:, None] - torch.arange(bins)
    distance = torch.remainder(distance + bins / 2, bins) - bins / 2
    weight = torch.exp(-0.5 * (2 * distance / width[:, None]).square())
    weight = weight / weight.norm(dim=1, keepdim=True).clamp(min=1e-8)
    octave = torch.exp(-0.5 * ((pitch / bins - 5.0) / 2.0).square())
    weight = weight * octave[:, None]
    weight[frequency < CHROMA_FMIN] = 0.0
    # The Gaussians' tails reach denormal numbers, with which the product is many times slower.
    weight[weight < 1e-12] = 0.0
    # A full-scale tone then gives a chroma of order one, whatever the window's length.
    scaled: Tensor = weight * ((4.0 / n_fft) * math.sqrt(bins / 12))
    return scaled
