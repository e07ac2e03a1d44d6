"""A room: convolution with synthetic decaying noise, one FFT of the whole track.

The noise differs between left and right, which is what makes the room wide. Its high part decays
faster than its low part, as air and walls do.
"""

from __future__ import annotations

import numpy as np

from etude.data.demo.synthesis import Floats


def room_impulse(rng: np.random.Generator, *, seconds: float, sample_rate: int) -> Floats:
    """Stereo impulse response (2, samples) that falls by 60 dB in `seconds`, of unit energy."""
    num_samples = int(seconds * sample_rate)
    times = np.arange(num_samples, dtype=np.float32) / sample_rate
    noise = rng.standard_normal((2, num_samples), dtype=np.float32)
    # A running mean of eight samples keeps what lies below about 2.5 kHz.
    total = np.cumsum(noise, axis=1)
    low = noise.copy()
    low[:, 8:] = (total[:, 8:] - total[:, :-8]) / np.sqrt(8.0)
    impulse = low * np.exp(-6.9 * times / seconds)
    impulse += 0.35 * noise * np.exp(-6.9 * times / (0.45 * seconds))
    # The first sound of a room comes after the direct sound: 8 to 25 ms by its size.
    gap = int(rng.uniform(0.008, 0.025) * sample_rate)
    impulse[:, :gap] = 0.0
    # The sharp end at -60 dB would click on loud drums.
    impulse[:, -256:] *= np.linspace(1.0, 0.0, 256, dtype=np.float32)
    return np.asarray(impulse / np.sqrt(np.mean(np.sum(impulse**2, axis=1))), dtype=np.float32)


def add_room(dry: Floats, send: Floats, impulse: Floats, *, level: float) -> None:
    """Add the room's answer to the mono `send` onto the stereo `dry`, in place."""
    num_samples = dry.shape[1]
    size = _fast_length(num_samples + impulse.shape[1])
    spectrum = np.fft.rfft(send, n=size)
    for side in range(2):
        wet = np.fft.irfft(spectrum * np.fft.rfft(impulse[side], n=size), n=size)
        dry[side] += np.float32(level) * wet[:num_samples].astype(np.float32)


def _fast_length(minimum: int) -> int:
    """The smallest even 2^a 3^b 5^c that is not below `minimum`: the FFT is fast there."""
    best = 1 << (minimum - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            size = 2 * three
            while size < minimum:
                size *= 2
            best = min(best, size)
            three *= 3
        five *= 5
    return best
