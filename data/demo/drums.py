"""The drum kit: a few hits of each drum, rendered once per track.

Skins are a sine that falls in pitch plus noise, cymbals are high noise plus inharmonic partials.
"""

from __future__ import annotations

import numpy as np

from etude.data.demo.synthesis import Floats, coloured_noise, damped_partials, fade_edges

DRUMS = ("kick", "snare", "closed_hat", "open_hat", "tom", "ride")
VARIANTS = 2


class DrumKit:
    """Two slightly different hits per drum, as a player never hits the same spot twice."""

    def __init__(self, rng: np.random.Generator, *, sample_rate: int) -> None:
        self._rng = rng
        self._rate = sample_rate
        self._size = float(np.exp(rng.normal(0.0, 0.12)))
        self._hits: dict[str, list[Floats]] = {}

    def play(self, drum: str, *, velocity: float) -> Floats:
        """One hit, mono."""
        if drum not in self._hits:
            self._hits[drum] = [self._strike(drum) for _ in range(VARIANTS)]
        hit = self._hits[drum][int(self._rng.integers(VARIANTS))]
        return np.asarray(hit * np.float32(velocity**1.5), dtype=np.float32)

    def _strike(self, drum: str) -> Floats:
        pitch = self._size * float(np.exp(self._rng.normal(0.0, 0.02)))
        if drum == "kick":
            wave = self._skin(52.0 * pitch, drop=2.5, seconds=0.30)
            return wave + 0.15 * self._noise(0.30, decay=0.008, centre_hz=2500.0, octaves=1.0)
        if drum == "tom":
            wave = self._skin(115.0 * pitch, drop=0.5, seconds=0.45)
            return wave + 0.10 * self._noise(0.45, decay=0.03, centre_hz=700.0, octaves=1.0)
        if drum == "snare":
            wave = 0.5 * self._skin(185.0 * pitch, drop=0.3, seconds=0.22)
            return wave + 0.35 * self._noise(0.22, decay=0.055, centre_hz=3500.0, octaves=1.3)
        if drum == "closed_hat":
            return 0.3 * self._noise(0.09, decay=0.018, centre_hz=9000.0, octaves=0.5)
        if drum == "open_hat":
            return 0.3 * self._noise(0.45, decay=0.13, centre_hz=8500.0, octaves=0.5)
        wave = 0.12 * self._noise(1.0, decay=0.25, centre_hz=7000.0, octaves=0.5)
        ratios = np.array([1.0, 1.47, 2.09, 2.56, 3.13, 4.02, 5.31])
        ring = damped_partials(
            587.0 * pitch * ratios,
            np.array([0.4, 0.5, 0.7, 0.8, 1.0, 0.8, 0.6]) * 0.08,
            np.full(7, 6.0),
            self._rng.uniform(0.0, 2.0 * np.pi, 7),
            num_samples=len(wave),
            sample_rate=self._rate,
        )
        wave += ring
        fade_edges(wave, attack=16, release=2000)
        return wave

    def _skin(self, hertz: float, *, drop: float, seconds: float) -> Floats:
        times = np.arange(int(seconds * self._rate)) / self._rate
        phase = 2.0 * np.pi * np.cumsum(hertz * (1.0 + drop * np.exp(-times / 0.025))) / self._rate
        wave = (np.sin(phase) * np.exp(-times / (0.28 * seconds))).astype(np.float32)
        fade_edges(wave, attack=24, release=400)
        return wave

    def _noise(self, seconds: float, *, decay: float, centre_hz: float, octaves: float) -> Floats:
        noise = coloured_noise(
            self._rng,
            num_samples=int(seconds * self._rate),
            sample_rate=self._rate,
            centre_hz=min(centre_hz, 0.4 * self._rate),
            octaves=octaves,
        )
        noise *= np.exp(-np.arange(len(noise), dtype=np.float32) / (decay * self._rate))
        fade_edges(noise, attack=16, release=400)
        return noise
