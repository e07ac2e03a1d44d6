"""A player holds one instrument for one track and plays notes on it.

Two tracks never have the same violin: body, brightness, decay, vibrato and tuning are drawn once
per player, and each note varies a little again. What depends only on the player and the pitch is
computed once and kept.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from etude.data.demo.instruments import TIMBRES, Damped, Held, Resonance
from etude.data.demo.synthesis import (
    Doubles,
    Floats,
    coloured_noise,
    control_times,
    damped_partials,
    fade_edges,
    harmonic_wave,
    one_cycle,
    to_samples,
)

MAX_PARTIALS = 28
MAX_HZ = 11000.0
NOISE_SECONDS = 1.5


class Player:
    """Plays notes of one instrument; all its variety comes from the generator it is given."""

    def __init__(self, instrument: str, rng: np.random.Generator, *, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self._rng = rng
        self._timbre = _personal(TIMBRES[instrument], rng)
        self._tuning_cents = float(np.clip(rng.normal(0.0, 1.2), -2.5, 2.5))
        self._partials: dict[int, tuple[Doubles, Doubles, Doubles]] = {}
        self._cycles: dict[int, tuple[Floats, Floats]] = {}
        self._phases = rng.uniform(0.0, 2.0 * np.pi, 128)
        self._noise = coloured_noise(
            rng,
            num_samples=int(NOISE_SECONDS * sample_rate),
            sample_rate=sample_rate,
            centre_hz=self._timbre.noise_hz * float(np.exp(rng.normal(0.0, 0.15))),
            octaves=0.9,
        )

    def play(self, pitch: int, *, seconds: float, velocity: float) -> Floats:
        """One note, `seconds` long and then its release, mono, RMS about 0.1 at full velocity."""
        if isinstance(self._timbre, Damped):
            return self._ring(self._timbre, pitch, seconds=seconds, velocity=velocity)
        return self._sing(self._timbre, pitch, seconds=seconds, velocity=velocity)

    def _hertz(self, pitch: int) -> float:
        return float(440.0 * 2.0 ** ((pitch - 69 + self._tuning_cents / 100.0) / 12.0))

    def _noise_piece(self, num_samples: int) -> Floats:
        first = int(self._rng.integers(len(self._noise)))
        repeats = -(-(first + num_samples) // len(self._noise))
        return np.tile(self._noise, repeats)[first : first + num_samples]

    def _ring(self, timbre: Damped, pitch: int, *, seconds: float, velocity: float) -> Floats:
        if pitch not in self._partials:
            self._partials[pitch] = _partial_table(timbre, self._hertz(pitch), self.sample_rate)
        frequencies, amplitudes, rates = self._partials[pitch]
        rng = self._rng
        # A soft touch loses the upper partials first.
        ranks = frequencies / frequencies[0]
        amplitudes = amplitudes * ranks ** (0.9 * (velocity - 0.8))
        amplitudes = amplitudes * np.exp(rng.normal(0.0, 0.08, len(amplitudes)))
        bends = np.linspace(-1.0, 1.0, timbre.strings) if timbre.strings > 1 else np.zeros(1)
        bends = bends * timbre.spread_cents + rng.normal(0.0, 0.4, timbre.strings)
        scale = 2.0 ** (bends / 1200.0)
        phases = rng.uniform(0.0, 2.0 * np.pi, len(frequencies) * timbre.strings)
        if timbre.drive > 0.0:
            # Sines of either sign, the same on each string, make an odd wave; the clipper would
            # turn any other into a constant offset.
            signs = np.where(phases[: len(frequencies)] < np.pi, 0.5 * np.pi, 1.5 * np.pi)
            phases = np.tile(signs, timbre.strings)

        release = int(timbre.release_seconds * self.sample_rate)
        num_samples = max(64, int(seconds * self.sample_rate)) + release
        # Nothing is heard of a decaying note once its slowest partial is 70 dB down.
        audible = int(8.0 / float(rates.min()) * self.sample_rate)
        num_samples = min(num_samples, max(audible, 2048))
        wave = damped_partials(
            np.outer(scale, frequencies).reshape(-1),
            np.tile(amplitudes, timbre.strings) / np.sqrt(timbre.strings),
            np.tile(rates, timbre.strings),
            phases,
            num_samples=num_samples,
            sample_rate=self.sample_rate,
        )
        wave *= 0.25 / np.sqrt(np.sum(amplitudes**2))
        if timbre.noise > 0.0:
            length = min(num_samples, int(0.06 * self.sample_rate))
            fall = np.exp(-np.arange(length, dtype=np.float32) / (0.012 * self.sample_rate))
            wave[:length] += (timbre.noise * velocity) * fall * self._noise_piece(length)
        if timbre.drive > 0.0:
            wave *= 4.0 * timbre.drive * (0.5 + velocity)
            np.tanh(wave, out=wave)
            wave *= 0.25 / np.sqrt(1.0 + timbre.drive * 0.25)
        if timbre.tremolo_depth > 0.0:
            times = control_times(num_samples, sample_rate=self.sample_rate)
            turn = 2.0 * np.pi * (timbre.tremolo_hz * times + rng.uniform())
            tremolo = 1.0 - timbre.tremolo_depth * (0.5 + 0.5 * np.sin(turn))
            wave *= to_samples(tremolo, num_samples=num_samples)
        attack = min(timbre.attack_seconds, 0.4 * seconds)
        fade_edges(wave, attack=int(attack * self.sample_rate), release=release)
        wave *= np.float32(velocity**1.4)
        return wave

    def _sing(self, timbre: Held, pitch: int, *, seconds: float, velocity: float) -> Floats:
        if pitch not in self._cycles:
            hertz = self._hertz(pitch)
            dark, bright = (
                _harmonic_levels(timbre, hertz, slope, self.sample_rate)
                for slope in (timbre.dark_slope, timbre.bright_slope)
            )
            phases = self._phases[: len(dark)]
            self._cycles[pitch] = (one_cycle(dark, phases), one_cycle(bright, phases))
        dark_cycle, bright_cycle = self._cycles[pitch]
        rng = self._rng
        num_samples = max(64, int((seconds + timbre.release_seconds) * self.sample_rate))
        times = control_times(num_samples, sample_rate=self.sample_rate)
        attack = min(timbre.attack_seconds * float(np.exp(rng.normal(0.0, 0.2))), 0.35 * seconds)

        depth = timbre.vibrato_cents * float(np.exp(rng.normal(0.0, 0.2)))
        grown = np.clip((times - timbre.vibrato_delay) / 0.25, 0.0, 1.0)
        rate = timbre.vibrato_hz * float(np.exp(rng.normal(0.0, 0.04)))
        vibrato = np.sin(2.0 * np.pi * (rate * times + rng.uniform()))
        cents = depth * grown * vibrato + rng.normal(0.0, 1.0)
        cents -= timbre.scoop_cents * np.exp(-times / 0.02)
        frequency = self._hertz(pitch) * 2.0 ** (cents / 1200.0)

        shimmer = np.interp(times, np.arange(0.0, times[-1] + 0.2, 0.1), _walk(rng, times[-1]))
        loudness = 1.0 + timbre.shimmer * shimmer + 0.25 * timbre.shimmer * grown * vibrato
        rise = np.clip(times / max(attack, 1e-3), 0.0, 1.0)
        rise = rise * rise * (3.0 - 2.0 * rise)
        fall = np.clip((seconds + timbre.release_seconds - times) / timbre.release_seconds, 0, 1)
        # A long tone swells a little towards its middle, as a bow or a breath does.
        arch = 0.85 + 0.15 * np.sin(np.pi * np.clip(times / seconds, 0.0, 1.0))
        envelope = rise * fall * fall * arch * loudness
        # Colour follows loudness: the start and the end of a tone are darker than its middle.
        brightness = np.clip(velocity * (0.35 + 0.65 * rise * fall * arch), 0.0, 1.0)

        wave = harmonic_wave(
            dark_cycle,
            bright_cycle,
            frequency=frequency,
            brightness=to_samples(brightness, num_samples=num_samples),
            sample_rate=self.sample_rate,
        )
        wave *= 0.16
        # More noise while the tone is not yet established.
        chiff = timbre.noise * (1.0 + 2.0 * np.exp(-times / 0.04))
        wave += to_samples(0.3 * chiff, num_samples=num_samples) * self._noise_piece(num_samples)
        wave *= to_samples(envelope * velocity**1.2, num_samples=num_samples)
        return wave


def _walk(rng: np.random.Generator, seconds: float) -> Doubles:
    """Random values for points 0.1 s apart, enough for `seconds`."""
    return rng.standard_normal(len(np.arange(0.0, seconds + 0.2, 0.1)))


def _personal(timbre: Damped | Held, rng: np.random.Generator) -> Damped | Held:
    """This player's copy of an instrument: the same kind, not the same specimen."""
    jitter = np.exp(rng.normal(0.0, 1.0, 4) * (0.06, 0.12, 0.12, 0.08))
    body = tuple(
        (hertz * float(np.exp(rng.normal(0.0, 0.05))), width, gain + float(rng.normal(0.0, 1.0)))
        for hertz, width, gain in timbre.body
    )
    if isinstance(timbre, Damped):
        return replace(
            timbre,
            slope=timbre.slope * float(jitter[0]),
            decay_seconds=timbre.decay_seconds * float(jitter[1]),
            pluck=timbre.pluck * float(jitter[2]),
            tremolo_hz=timbre.tremolo_hz * float(jitter[3]),
            body=body,
        )
    return replace(
        timbre,
        dark_slope=timbre.dark_slope * float(jitter[0]),
        bright_slope=timbre.bright_slope * float(jitter[0]),
        vibrato_cents=timbre.vibrato_cents * float(jitter[1]),
        vibrato_hz=timbre.vibrato_hz * float(jitter[3]),
        body=body,
    )


def _body_gain(frequencies: Doubles, body: tuple[Resonance, ...]) -> Doubles:
    decibels = np.zeros_like(frequencies)
    for hertz, width, gain in body:
        decibels += gain * np.exp(-0.5 * (np.log2(frequencies / hertz) / width) ** 2)
    return np.asarray(10.0 ** (decibels / 20.0), dtype=np.float64)


def _partial_table(
    timbre: Damped, hertz: float, sample_rate: int
) -> tuple[Doubles, Doubles, Doubles]:
    """Frequencies in Hz, amplitudes, and decay rates per second of one note's partials."""
    if timbre.ratios:
        ratios = np.array(timbre.ratios)
        amplitudes = np.array(timbre.levels)
    else:
        ranks = np.arange(1.0, MAX_PARTIALS + 1.0)
        # The first partial stays at the labelled pitch: tuners stretch, the label does not.
        stretch = np.sqrt((1.0 + timbre.stiffness * ranks**2) / (1.0 + timbre.stiffness))
        ratios = ranks * stretch
        amplitudes = ranks**-timbre.slope
        amplitudes[1::2] *= timbre.even
        if timbre.pluck > 0.0:
            # Floor of the comb: no real string has a perfect node under the finger.
            amplitudes *= 0.08 + np.abs(np.sin(np.pi * timbre.pluck * ranks))
    frequencies = hertz * ratios
    below = frequencies < min(MAX_HZ, 0.45 * sample_rate)
    below[0] = True
    frequencies, amplitudes = frequencies[below], amplitudes[below]
    amplitudes = amplitudes * _body_gain(frequencies, timbre.body)
    seconds = timbre.decay_seconds * (440.0 / hertz) ** timbre.pitch_decay
    rates = np.log(1000.0) / seconds * (1.0 + timbre.damping * frequencies / 1000.0)
    rates /= 1.0 + timbre.damping * 0.44
    return frequencies, amplitudes, rates


def _harmonic_levels(timbre: Held, hertz: float, slope: float, sample_rate: int) -> Doubles:
    """Amplitudes of a held tone's harmonics, of unit power."""
    count = max(1, min(60, int(min(MAX_HZ, 0.45 * sample_rate) / hertz)))
    ranks = np.arange(1.0, count + 1.0)
    amplitudes = ranks**-slope * _body_gain(hertz * ranks, timbre.body)
    amplitudes[1::2] *= timbre.even
    amplitudes[2::2] *= timbre.odd
    return np.asarray(amplitudes / np.sqrt(np.sum(amplitudes**2)), dtype=np.float64)
