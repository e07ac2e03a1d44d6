"""What one clip is like: level, offset, clipping, silence, spectrum and bandwidth.

Levels are in dBFS of the root mean square, the clip's own mean taken away: a full-scale sine has
-3.0, a full-scale square wave 0. Bins of the spectrum add up to the clip's power in the same way:
a sine's peak bin shows the sine's level.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from etude.data.audio import Samples

SILENCE_DB = -60.0
"""A frame below this is silent."""

SILENCE_FRAME_SECONDS = 0.05

FULL_SCALE = 32767 / 32768
"""Largest value of 16 bit, positive: beyond it nothing could be written."""

FLOOR_DB = -150.0
"""What stands for the level of nothing at all."""

EMPTY_ABOVE_ROUNDING_DB = 10.0
"""A band no further above the noise that rounding to 16 bit makes holds nothing."""

BAND_HZ = 250.0
"""The bandwidth is looked for in bands of this width."""

STEEP_DB = 24.0
"""A spectrum that falls so far around the end of its band was cut by a filter: music fades."""

_EDGE_HZ = 750.0
"""Before the edge and behind it: steep filters are done by then."""

_NUTTALL = (0.355768, -0.487396, 0.144232, -0.012604)
"""Four cosines with side lobes below -93 dB that fall by 18 dB per octave (Nuttall, "Some windows
with very good sidelobe behavior", 1981): Hann's would fill the empty band beside a loud one."""

_WINDOW_SECONDS = 0.04
_BLOCK_FRAMES = 512


@final
class SpectrumGrid:
    """The frequencies of a spectrum at a rate: windows of at least 40 ms, a power of two."""

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.window_samples = int(2 ** np.ceil(np.log2(_WINDOW_SECONDS * sample_rate)))
        turns = 2 * np.pi * np.arange(self.window_samples) / self.window_samples
        terms = [weight * np.cos(k * turns) for k, weight in enumerate(_NUTTALL)]
        self.window = np.sum(terms, axis=0).astype(np.float32)
        self.scale = 2.0 / float(self.window.sum()) ** 2

    @property
    def frequencies(self) -> npt.NDArray[np.float64]:
        """Hertz of every bin."""
        bins = np.arange(self.window_samples // 2 + 1, dtype=np.float64)
        return bins * (self.sample_rate / self.window_samples)

    @property
    def rounding_db(self) -> float:
        """Level of a bin that holds only the error of rounding to 16 bit (uniform, white)."""
        variance = (1 / 32768) ** 2 / 12
        return decibel(variance * self.scale * float(np.square(self.window).sum()))

    def power(self, samples: Samples) -> npt.NDArray[np.float64]:
        """Mean power of each bin, windows overlapping by half; a short clip is padded to one."""
        size, hop = self.window_samples, self.window_samples // 2
        samples = np.pad(samples, (0, max(0, size - len(samples))))
        frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop]
        total = np.zeros(size // 2 + 1)
        for start in range(0, len(frames), _BLOCK_FRAMES):
            spectrum = np.fft.rfft(frames[start : start + _BLOCK_FRAMES] * self.window)
            total += (np.square(spectrum.real) + np.square(spectrum.imag)).sum(axis=0)
        return total * (self.scale / len(frames))


@final
@dataclass(frozen=True)
class ClipMeasures:
    """One clip."""

    rms_db: float
    peak_db: float
    """Largest absolute value, its mean included."""
    mean: float
    """DC offset, full scale being 1."""
    full_scale_samples: int
    samples: int
    silent_share: float
    """Of its frames of 50 ms, below ``SILENCE_DB``."""
    spectrum_db: npt.NDArray[np.float64]
    """Mean power per bin of the grid."""
    bandwidth: float | None
    """Hertz above which there is nothing; ``None`` for a clip that holds nothing anywhere."""
    steep: bool
    """Whether the spectrum ends there as if cut off."""


def measure(samples: Samples, grid: SpectrumGrid) -> ClipMeasures:
    """Measures a clip (frames,) of at least one sample."""
    mean = float(samples.mean(dtype=np.float64))
    centred = samples - np.float32(mean)
    spectrum = grid.power(centred)
    bandwidth, steep = _bandwidth(spectrum, grid)
    return ClipMeasures(
        rms_db=decibel(float(np.square(centred).mean(dtype=np.float64))),
        peak_db=decibel(float(np.abs(samples).max()) ** 2),
        mean=mean,
        full_scale_samples=int(np.count_nonzero(np.abs(samples) >= FULL_SCALE)),
        samples=len(samples),
        silent_share=_silent_share(centred, grid.sample_rate),
        spectrum_db=np.maximum(10 * np.log10(np.maximum(spectrum, 1e-30)), FLOOR_DB),
        bandwidth=bandwidth,
        steep=steep,
    )


def decibel(power: float) -> float:
    """Ten times the logarithm; ``FLOOR_DB`` for nothing."""
    return max(FLOOR_DB, float(10 * np.log10(max(power, 1e-30))))


def _silent_share(centred: Samples, sample_rate: int) -> float:
    size = min(len(centred), round(SILENCE_FRAME_SECONDS * sample_rate))
    frames = centred[: len(centred) // size * size].reshape(-1, size)
    power = np.square(frames).mean(axis=1, dtype=np.float64)
    return float(np.mean(power < 10 ** (SILENCE_DB / 10)))


def _bandwidth(spectrum: npt.NDArray[np.float64], grid: SpectrumGrid) -> tuple[float | None, bool]:
    """Upper end of the highest band that is not empty, and whether the level drops there."""
    width = max(1, round(BAND_HZ * grid.window_samples / grid.sample_rate))
    count = len(spectrum) // width
    bands = spectrum[: count * width].reshape(count, width).mean(axis=1)
    levels = 10 * np.log10(np.maximum(bands, 1e-30))
    filled = np.flatnonzero(levels > grid.rounding_db + EMPTY_ABOVE_ROUNDING_DB)
    if not len(filled):
        return None, False
    last, reach = int(filled[-1]), max(1, round(_EDGE_HZ / BAND_HZ))
    nyquist = grid.sample_rate / 2
    top = min(nyquist, (last + 1) * width * grid.sample_rate / grid.window_samples)
    if last + 1 >= count:
        return nyquist, False
    before = levels[max(0, last - reach)]
    behind = max(levels[min(count - 1, last + reach)], grid.rounding_db)
    return top, bool(before - behind >= STEEP_DB)
