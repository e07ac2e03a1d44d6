"""Constant-Q magnitudes in the frequency domain: nnAudio's ``CQT1992v2``, by another road.

A constant-Q transform correlates the waveform x with one kernel h per bin, a tone under a Hann
window, and keeps every hop-th value: | sum_m x[t * hop + m] conj(h[m]) | in frame t. As a
convolution that is a dense product with kernels of up to 65,536 taps. In frequency a kernel is a
narrow band:

1. The crop is padded with zeros to N = R * hop samples, so that nothing wraps around, and
   transformed once: two short transforms with a twist between them (Cooley and Tukey), so that
   frequency r + j * R comes out at [r, j].
2. Each bin's band is multiplied with the spectrum. Keeping every hop-th value in time is adding up
   every R-th value in frequency; in that layout, both are one small matrix product over j for each
   r, shared by the bins of an octave.
3. A transform back, of length R, has one value per frame. Its magnitude is the result.

The window is symmetric, so a kernel centred on time 0 has a real spectrum: tables are float32, not
complex. Windows with an odd number of samples are centred half a sample before time 0; their bins
read a spectrum that has been turned by half a sample. Phases that are the same for all of a band
drop out of the magnitude.

Reading bands out of one long transform and going back at a low rate is Velasco, Holighaus,
Doerfler and Grill, "Constructing an invertible constant-Q transform with non-stationary Gabor
frames" (2011). The kernels are nnAudio's own (``create_cqt_kernels``).

Letters: B crops, P samples of a hop, R = N / hop, J blocks of R frequencies, C bins.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from nnAudio.utils import create_cqt_kernels
from torch import Tensor, nn
from torch.nn import functional as F

from etude.models.smooth import next_smooth

BAND_LOBES = 80.0
"""Frequencies kept on either side of a kernel's own, in units of 1 / its length.

The spectrum of a Hann window falls as 1 / (pi x^3), so what lies beyond x holds 1 / (7.5 pi^2 x^5)
of its energy: white noise loses 2e-6 at 80 (relative L2), as much as nnAudio's float32, and 2e-5 at
32. From 69 on, the published kernels' bands reach down to 0 Hz: a loud bass, however far below a
bin, is heard by it just as much as by nnAudio's kernel. docs/cqt.md has the cost of either.
"""


class FourierCqt(nn.Module):
    """Magnitudes of every hop of a waveform, zeros outside: (B, T) -> (B, bins, T // hop + 1).

    What depends on the length of the waveform is made when a length is first seen and kept, one
    set of tables for all lengths with the same padded length. Buffers are in no checkpoint.
    """

    def __init__(
        self, *, sample_rate: int, hop_samples: int, bins: int, bins_per_octave: int, fmin: float
    ) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.hop_samples = hop_samples
        self.bins = bins
        self.bins_per_octave = bins_per_octave
        self.fmin = fmin
        self.quality: float = 1.0 / (2.0 ** (1.0 / bins_per_octave) - 1.0)
        """Periods of its own tone that a kernel holds."""
        self.tables = nn.ModuleDict()

    def forward(self, waveform_BT: Tensor) -> Tensor:
        """Magnitudes, float32; frame t is centred on sample ``t * hop``."""
        frames = waveform_BT.shape[-1] // self.hop_samples + 1
        hops = self._padded_hops(waveform_BT.shape[-1])
        if str(hops) not in self.tables:
            self._add_tables(hops, waveform_BT.device)
        spectrum_BFC: Tensor = self.tables[str(hops)](waveform_BT, frames)
        return spectrum_BFC.transpose(1, 2)

    def _padded_hops(self, samples: int) -> int:
        """Hops that hold the crop and half of the longest kernel, which reads zeros there.

        One half is enough for both ends: what reaches out to the left comes back from the right.
        """
        reach = math.ceil(self.quality * self.sample_rate / self.fmin) // 2 + 1
        return next_smooth(-(-(samples + reach) // self.hop_samples))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _add_tables(self, hops: int, device: torch.device) -> None:
        tables = _Tables(
            sample_rate=self.sample_rate,
            hop_samples=self.hop_samples,
            hops=hops,
            bins=self.bins,
            bins_per_octave=self.bins_per_octave,
            fmin=self.fmin,
            quality=self.quality,
        )
        self.tables[str(hops)] = tables.to(device)


class _Group(NamedTuple):
    """Bins that share blocks of the spectrum: those of an octave whose windows are odd, or even."""

    odd: bool
    first: int
    """First block."""
    last: int
    """One after the last block."""
    bins: int


class _Tables(nn.Module):
    """The kernels' bands for crops that are padded to ``hops`` hops."""

    twist: Tensor
    half_sample: Tensor
    bands: Tensor
    order: Tensor

    def __init__(
        self,
        *,
        sample_rate: int,
        hop_samples: int,
        hops: int,
        bins: int,
        bins_per_octave: int,
        fmin: float,
        quality: float,
    ) -> None:
        super().__init__()
        self.hops, self.hop_samples = hops, hop_samples
        size = hops * hop_samples
        kernels, width, lengths, frequencies = create_cqt_kernels(
            quality, sample_rate, fmin, bins, bins_per_octave, norm=1, window="hann"
        )
        lengths = lengths.numpy().astype(np.int64)
        starts = width // 2 - (lengths + 1) // 2  # of each window in its row of ``kernels``
        cycles = frequencies / sample_rate  # per sample
        lowest, highest = _blocks(cycles, lengths, hop_samples=hop_samples)
        origin = int(lowest.min())

        self.groups: list[_Group] = []
        bands: list[npt.NDArray[np.float32]] = []
        order: list[npt.NDArray[np.int64]] = []
        for octave in range(-(-bins // bins_per_octave)):
            for odd in (False, True):
                in_octave = np.arange(bins) // bins_per_octave == octave
                members = np.flatnonzero(in_octave & (lengths % 2 == odd))
                if not members.size:
                    continue
                first, last = int(lowest[members].min()), int(highest[members].max())
                spectra_CN = _real_spectra(
                    [kernels[bin_, starts[bin_] :][: lengths[bin_]] for bin_ in members],
                    cycles[members],
                    size,
                    np.arange(first * hops, last * hops),
                )
                spectra_CN *= np.sqrt(lengths[members])[:, None] / hop_samples
                band_CJR = spectra_CN.reshape(len(members), last - first, hops)
                bands.append(band_CJR.transpose(2, 1, 0).astype(np.float32).ravel())
                order.append(members)
                self.groups.append(_Group(odd, first - origin, last - origin, len(members)))
        self.blocks = max(group.last for group in self.groups)

        # Block 0 of the layout is block ``origin``, which is negative where a band reaches below 0.
        remainder_R, phase_P = np.arange(hops), np.arange(hop_samples)
        frequency_RJ = remainder_R[:, None] + hops * (origin + np.arange(self.blocks))
        twist_PR = _turn(np.outer(phase_P, remainder_R + hops * origin) / size)
        for name, values in {
            "twist": twist_PR.astype(np.complex64),
            "half_sample": _turn(frequency_RJ / (2 * size)).astype(np.complex64),
            "bands": np.concatenate(bands),
            "order": np.argsort(np.concatenate(order)),
        }.items():
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def forward(self, waveform_BT: Tensor, frames: int) -> Tensor:
        """Magnitudes of the first ``frames`` frames, (B, F, C)."""
        crops, samples = waveform_BT.shape
        padded_BN = F.pad(waveform_BT, (0, self.hops * self.hop_samples - samples))
        # Along the last dimension of something contiguous: quicker, and the only way that inductor
        # gets right (torch 2.9 is wrong about the strides of a real input's transform otherwise).
        hops_BPR = padded_BN.view(crops, self.hops, self.hop_samples).transpose(1, 2).contiguous()
        twisted_BPR = torch.fft.fft(hops_BPR, dim=2) * self.twist
        spectrum_BRJ = torch.fft.fft(twisted_BPR.transpose(1, 2).contiguous(), dim=2)
        spectrum_BRJ = spectrum_BRJ[..., : self.blocks]
        # Rows of the products below: real and imaginary parts of each crop.
        even, odd = (
            torch.view_as_real(spectrum).permute(1, 0, 3, 2).reshape(self.hops, 2 * crops, -1)
            for spectrum in (spectrum_BRJ, spectrum_BRJ * self.half_sample)
        )
        folded, offset = [], 0
        for group in self.groups:
            shape_RJC = (self.hops, group.last - group.first, group.bins)
            band_RJC = self.bands[offset : offset + math.prod(shape_RJC)].view(shape_RJC)
            rows = (odd if group.odd else even)[:, :, group.first : group.last]
            folded.append(torch.bmm(rows, band_RJC))
            offset += band_RJC.numel()
        real_RBC, imag_RBC = torch.cat(folded, dim=2).view(self.hops, crops, 2, -1).unbind(dim=2)
        series_FBC = torch.fft.ifft(torch.complex(real_RBC, imag_RBC), dim=0)[:frames]
        # Like this, a magnitude takes less than half of the time of ``abs`` on a CPU.
        magnitude_FBC: Tensor = (series_FBC.real.square() + series_FBC.imag.square()).sqrt()
        return magnitude_FBC.transpose(0, 1).index_select(2, self.order)


def _blocks(
    cycles_C: npt.NDArray[np.float64], lengths_C: npt.NDArray[np.int64], *, hop_samples: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First block of each bin's band and one after its last; all lie within one circle of blocks.

    The circle, from 0 to the sample rate, has N / R = ``hop_samples`` blocks; those below 0 are
    negative frequencies. A band that would go around past the lowest block takes the whole circle.
    """
    reach_C = BAND_LOBES / lengths_C
    lowest = np.floor((cycles_C - reach_C) * hop_samples).astype(np.int64)
    highest = np.floor((cycles_C + reach_C) * hop_samples).astype(np.int64) + 1
    # A band from below minus half the rate is wider than the circle; if it were let down there, it
    # would take the narrower ones with it.
    lowest = np.maximum(lowest, -(hop_samples // 2))
    origin = lowest.min()
    around = highest > origin + hop_samples
    return np.where(around, origin, lowest), np.where(around, origin + hop_samples, highest)


def _real_spectra(
    kernels: Sequence[npt.NDArray[np.complex64]],
    cycles_C: npt.NDArray[np.float64],
    size: int,
    frequencies: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """Spectra about the windows' centres, where they are real, on a circle of ``size`` samples.

    :param kernels: their samples, from ``-ceil(length / 2)`` on; all lengths odd, or all even.
    :param cycles_C: their frequencies, in cycles per sample.
    :param frequencies: those wanted, in cycles per ``size`` samples; any sign.
    """
    centre = -0.5 if len(kernels[0]) % 2 else 0.0
    places, turn = frequencies % size, _turn(-centre * frequencies / size)
    spectra_CN = np.empty((len(kernels), len(frequencies)))
    for row, (kernel, cycles) in enumerate(zip(kernels, cycles_C, strict=True)):
        # A kernel may be longer than a short padded crop: it goes around, and meets the zeros.
        circle = np.zeros(size, np.complex128)
        np.add.at(circle, np.arange(-((len(kernel) + 1) // 2), len(kernel) // 2) % size, kernel)
        spectrum = np.fft.fft(circle)[places]
        spectra_CN[row] = (spectrum * (turn * _turn(centre * cycles))).real
    return spectra_CN


def _turn(turns: npt.NDArray[np.float64] | float) -> npt.NDArray[np.complex128]:
    """``exp(-2 pi i turns)``."""
    turned: npt.NDArray[np.complex128] = np.exp(-2j * np.pi * turns)
    return turned
