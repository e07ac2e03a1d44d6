"""Sound generators of the demo corpus, each vectorised over a whole note.

`damped_partials` is additive synthesis as one matrix product: sample n = block * row + column of
the partial exp(s n) is exp(s block row) * exp(s column), so K partials over N samples need a few
thousand exponentials and one (rows x 2K) @ (2K x block) product instead of K * N sines. It cannot
bend pitch. `harmonic_wave` can: it reads two one-cycle tables with a free phase.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

BLOCK = 256
SERIAL_PRODUCT = 250_000
"""Multiplications in a matrix product that OpenBLAS still does on one thread (limit 262144)."""
CONTROL_HOP = 32
"""Envelopes are drawn on every 32nd sample (0.7 ms) and joined by straight lines."""
TABLE_SIZE = 4096


def damped_partials(
    frequencies: Doubles,
    amplitudes: Doubles,
    decay_rates: Doubles,
    phases: Doubles,
    *,
    num_samples: int,
    sample_rate: int,
) -> Floats:
    """Sum of amplitude * exp(-rate t) * cos(2 pi frequency t + phase), t in seconds."""
    rows = -(-num_samples // BLOCK)
    exponents = (2j * np.pi * frequencies - decay_rates) / sample_rate
    within = np.exp(exponents[:, None] * np.arange(BLOCK))
    starts = np.exp(np.arange(rows)[:, None] * (exponents * BLOCK))
    starts *= amplitudes * np.exp(1j * phases)
    left = np.concatenate([starts.real, -starts.imag], axis=1).astype(np.float32)
    right = np.concatenate([within.real, within.imag], axis=0).astype(np.float32)
    # In slices below the size from which OpenBLAS starts threads: threads for products this small
    # cost four times what they save, and the sums would depend on the number of cores.
    size = max(1, SERIAL_PRODUCT // right.size)
    wave = np.empty((rows, BLOCK), dtype=np.float32)
    for first in range(0, rows, size):
        np.matmul(left[first : first + size], right, out=wave[first : first + size])
    return wave.reshape(-1)[:num_samples]


def one_cycle(amplitudes: Doubles, phases: Doubles) -> Floats:
    """One period of a harmonic sum; its first sample is repeated at the end."""
    spectrum = np.zeros(TABLE_SIZE // 2 + 1, dtype=np.complex128)
    spectrum[1 : 1 + len(amplitudes)] = amplitudes * np.exp(1j * phases)
    cycle = np.fft.irfft(spectrum, n=TABLE_SIZE) * (TABLE_SIZE / 2)
    return np.append(cycle, cycle[0]).astype(np.float32)


def harmonic_wave(
    dark: Floats, bright: Floats, *, frequency: Doubles, brightness: Floats, sample_rate: int
) -> Floats:
    """Read two cycles at `frequency` (Hz on the control grid), mixed by `brightness` (samples).

    `brightness` 0 gives `dark`, 1 gives `bright`; its length is the length of the note.
    """
    num_samples = len(brightness)
    steps = np.repeat(frequency * (TABLE_SIZE / sample_rate), CONTROL_HOP)[:num_samples]
    position = np.cumsum(steps)
    whole = position.astype(np.int64)
    fraction = (position - whole).astype(np.float32)
    whole &= TABLE_SIZE - 1
    low = np.take(dark, whole) + fraction * np.take(np.diff(dark), whole)
    contrast = bright - dark
    high = np.take(contrast, whole) + fraction * np.take(np.diff(contrast), whole)
    return np.asarray(low + brightness * high, dtype=np.float32)


def control_times(num_samples: int, *, sample_rate: int) -> Doubles:
    """The times in seconds of a note's control points, one more than it has hops."""
    count = -(-num_samples // CONTROL_HOP) + 1
    return np.asarray(np.arange(count) * (CONTROL_HOP / sample_rate), dtype=np.float64)


def to_samples(control: Doubles, *, num_samples: int) -> Floats:
    """Straight lines through control points."""
    points = control.astype(np.float32)
    ramp = np.arange(CONTROL_HOP, dtype=np.float32) / np.float32(CONTROL_HOP)
    lines = points[:-1, None] + np.diff(points)[:, None] * ramp
    return np.asarray(lines.reshape(-1)[:num_samples], dtype=np.float32)


def fade_edges(wave: Floats, *, attack: int, release: int) -> None:
    """Raised-cosine attack over the first samples and release over the last, in place."""
    attack = max(1, min(attack, len(wave)))
    release = max(1, min(release, len(wave)))
    wave[:attack] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(attack, dtype=np.float32) / attack)
    wave[-release:] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(release, dtype=np.float32) / release)


def coloured_noise(
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    centre_hz: float,
    octaves: float,
) -> Floats:
    """Noise of unit RMS around `centre_hz`, a bell `octaves` wide; it can be looped seamlessly."""
    white = rng.standard_normal(num_samples, dtype=np.float32)
    spectrum = np.fft.rfft(white)
    frequencies = np.fft.rfftfreq(num_samples, 1.0 / sample_rate)
    distance = np.log2(np.maximum(frequencies, 1.0) / centre_hz) / octaves
    noise = np.fft.irfft(spectrum * np.exp(-0.5 * distance**2), n=num_samples)
    return np.asarray(noise / np.sqrt(np.mean(noise**2)), dtype=np.float32)
