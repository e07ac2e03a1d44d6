"""Hand-made features on a model's own frames: what any model has to beat, and what each can hear.

log-mel  128 bands                                        timbre, register, a little of pitch
chroma   12 pitch classes                                 harmony and nothing else
mfcc     20 coefficients, their first and second
         differences; mean and deviation over time        timbre, as music retrieval had it
"""

import math
from typing import final

import torch
from torch import Tensor
from torchaudio.functional import compute_deltas, create_dct

from etude.models.frames import FrameGrid
from etude.models.spectral import Chroma, LogMel

LOGMEL_BINS = 128
LOGMEL_WINDOW_SECONDS = 0.128
"""Long enough to tell G3 from G#3 (12 Hz apart), short beside a note of 0.25 s."""

CHROMA_BINS = 12
CHROMA_WINDOW_SECONDS = 0.256
"""Tells semitones down to A2 (6.5 Hz apart), which chords and basses are made of."""

MFCC_COEFFICIENTS = 20
MFCC_WINDOW_SECONDS = 0.064


def _n_fft(seconds: float, grid: FrameGrid) -> int:
    return int(2 ** round(math.log2(seconds * grid.sample_rate)))


@final
class LogMelModel:
    """Log-mel bands on an encoder's grid, as one layer."""

    with_deviation = False

    def __init__(self, grid: FrameGrid, *, name: str = "log-mel") -> None:
        self.name = name
        self.grid = grid
        self._n_fft = _n_fft(LOGMEL_WINDOW_SECONDS, grid)
        self._transform = LogMel(grid, bins=LOGMEL_BINS, n_fft=self._n_fft)

    @property
    def identity(self) -> str:
        """What its features depend on."""
        return f"log-mel {LOGMEL_BINS} {self._n_fft} {self.grid}"

    def layers(self, waveform: Tensor) -> list[Tensor]:
        """The bands."""
        return [self._transform(waveform)]


@final
class ChromaModel:
    """Energy of pitch classes on an encoder's grid, as one layer."""

    with_deviation = False

    def __init__(self, grid: FrameGrid, *, name: str = "chroma") -> None:
        self.name = name
        self.grid = grid
        self._n_fft = _n_fft(CHROMA_WINDOW_SECONDS, grid)
        self._transform = Chroma(grid, bins=CHROMA_BINS, n_fft=self._n_fft)

    @property
    def identity(self) -> str:
        """What its features depend on."""
        return f"chroma {CHROMA_BINS} {self._n_fft} {self.grid}"

    def layers(self, waveform: Tensor) -> list[Tensor]:
        """The pitch classes."""
        return [self._transform(waveform)]


@final
class MfccModel:
    """Cepstral coefficients with differences over time, as one layer; deviations beside means."""

    with_deviation = True

    def __init__(self, grid: FrameGrid, *, name: str = "mfcc") -> None:
        self.name = name
        self.grid = grid
        self._n_fft = _n_fft(MFCC_WINDOW_SECONDS, grid)
        self._logmel = LogMel(grid, bins=LOGMEL_BINS, n_fft=self._n_fft)
        self._dct = create_dct(MFCC_COEFFICIENTS, LOGMEL_BINS, norm="ortho")

    @property
    def identity(self) -> str:
        """What its features depend on."""
        return f"mfcc {MFCC_COEFFICIENTS} {LOGMEL_BINS} {self._n_fft} {self.grid}"

    def layers(self, waveform: Tensor) -> list[Tensor]:
        """Coefficients, their differences, and the differences of those, (B, F, 60)."""
        mfcc_BCF = (self._logmel(waveform) @ self._dct).transpose(1, 2)
        delta_BCF = compute_deltas(mfcc_BCF)
        both_BCF = torch.cat([mfcc_BCF, delta_BCF, compute_deltas(delta_BCF)], dim=1)
        return [both_BCF.transpose(1, 2)]


Spectrum = LogMelModel | ChromaModel | MfccModel
