"""The instruments as tables of numbers: what makes each one sound as it does.

Two families. A `Damped` instrument is set in motion once and rings out (strings, bars, tines) or
is an oscillator bank (organ, synths); a `Held` one is fed by bow or breath, so its pitch and
colour move while it sounds. `players.py` turns a row of these tables into sound.
"""

from __future__ import annotations

from dataclasses import dataclass

# (centre in Hz, width in octaves, gain in dB): a resonance of the body.
Resonance = tuple[float, float, float]
ENDLESS = 1e9


@dataclass(frozen=True)
class Damped:
    """Partials that each decay at their own rate."""

    low: int
    """Lowest MIDI pitch."""
    high: int
    """Highest MIDI pitch."""
    decay_seconds: float
    """Time in which the first partial of A4 falls by 60 dB."""
    slope: float = 1.0
    """Amplitude of the k-th partial is k ** -slope before all else."""
    ratios: tuple[float, ...] = ()
    """Partials as multiples of the fundamental; empty means the harmonic series."""
    levels: tuple[float, ...] = ()
    """Amplitudes that belong to `ratios`."""
    stiffness: float = 0.0
    """Inharmonicity B of a stiff string: partial k lies at k sqrt(1 + B k^2)."""
    pluck: float = 0.0
    """Where the string is excited, as a fraction of its length; 0 leaves no comb."""
    even: float = 1.0
    """Gain of the even partials."""
    pitch_decay: float = 0.5
    """How much faster high notes decay: the time goes with (440 / f0) ** pitch_decay."""
    damping: float = 0.5
    """How much faster high partials decay: the rate goes with 1 + damping * f in kHz."""
    attack_seconds: float = 0.002
    release_seconds: float = 0.08
    strings: int = 1
    """Strings or oscillators per note."""
    spread_cents: float = 0.0
    """How far apart they are tuned."""
    noise: float = 0.0
    """Level of the strike or pluck noise."""
    noise_hz: float = 1000.0
    drive: float = 0.0
    """Gain into a soft clipper; 0 leaves it out."""
    tremolo_hz: float = 0.0
    tremolo_depth: float = 0.0
    body: tuple[Resonance, ...] = ()


@dataclass(frozen=True)
class Held:
    """A harmonic spectrum under bow or breath."""

    low: int
    high: int
    dark_slope: float
    """Spectral slope when played softly."""
    bright_slope: float
    """Spectral slope when played loudly."""
    even: float = 1.0
    odd: float = 1.0
    attack_seconds: float = 0.05
    release_seconds: float = 0.08
    vibrato_hz: float = 5.5
    vibrato_cents: float = 0.0
    vibrato_delay: float = 0.2
    """Seconds before the vibrato starts to grow."""
    shimmer: float = 0.0
    """Depth of the slow random change of loudness."""
    noise: float = 0.0
    """Level of the bow or breath noise."""
    noise_hz: float = 2000.0
    scoop_cents: float = 0.0
    """How far below the pitch a note begins."""
    body: tuple[Resonance, ...] = ()


Timbre = Damped | Held

TIMBRES: dict[str, Timbre] = {
    # Struck and plucked strings.
    "piano": Damped(
        *(28, 100, 7.0),
        slope=1.15,
        stiffness=4e-4,
        pluck=0.12,
        damping=0.9,
        strings=2,
        spread_cents=1.2,
        release_seconds=0.12,
        noise=0.05,
        noise_hz=350.0,
        body=((150.0, 1.0, 3.0), (2200.0, 1.5, 4.0)),
    ),
    "harpsichord": Damped(
        *(36, 89, 4.0),
        slope=0.45,
        stiffness=3e-5,
        pluck=0.07,
        damping=0.35,
        attack_seconds=0.001,
        release_seconds=0.05,
        noise=0.10,
        noise_hz=4500.0,
        body=((3000.0, 1.2, 6.0),),
    ),
    "harp": Damped(
        *(31, 96, 5.0),
        slope=1.7,
        pluck=0.38,
        damping=1.2,
        attack_seconds=0.004,
        release_seconds=0.35,
        noise=0.02,
        noise_hz=700.0,
        body=((250.0, 1.2, 5.0),),
    ),
    "nylon_guitar": Damped(
        *(40, 86, 2.6),
        slope=1.05,
        pluck=0.22,
        stiffness=5e-5,
        damping=1.6,
        attack_seconds=0.003,
        release_seconds=0.06,
        noise=0.07,
        noise_hz=1500.0,
        body=((110.0, 0.5, 6.0), (220.0, 0.6, 5.0), (480.0, 0.8, 3.0)),
    ),
    "electric_guitar": Damped(
        *(40, 88, 9.0),
        slope=0.9,
        pluck=0.16,
        damping=0.5,
        attack_seconds=0.003,
        release_seconds=0.05,
        noise=0.03,
        noise_hz=2500.0,
        drive=7.0,
        body=((2600.0, 0.9, 7.0),),
    ),
    # Struck bars and tines.
    "electric_piano": Damped(
        *(28, 96, 4.5),
        ratios=(1.0, 2.0, 3.0, 4.0, 7.1, 14.3),
        levels=(1.0, 0.35, 0.10, 0.05, 0.12, 0.10),
        damping=0.9,
        release_seconds=0.15,
        tremolo_hz=5.2,
        tremolo_depth=0.25,
        drive=1.2,
    ),
    "marimba": Damped(
        *(45, 96, 0.9),
        ratios=(1.0, 3.93, 9.24, 15.0),
        levels=(1.0, 0.28, 0.10, 0.03),
        pitch_decay=0.7,
        damping=2.2,
        release_seconds=0.30,
        noise=0.06,
        noise_hz=900.0,
    ),
    "vibraphone": Damped(
        *(48, 96, 6.5),
        ratios=(1.0, 4.0, 10.1, 17.5),
        levels=(1.0, 0.30, 0.12, 0.05),
        pitch_decay=0.3,
        damping=0.6,
        attack_seconds=0.003,
        release_seconds=0.5,
        tremolo_hz=6.0,
        tremolo_depth=0.5,
    ),
    # Oscillators.
    "organ": Damped(
        *(36, 96, ENDLESS),
        ratios=(1.0, 2.0, 3.0, 4.0, 6.0, 8.0),
        levels=(1.0, 0.75, 0.6, 0.35, 0.30, 0.35),
        damping=0.0,
        attack_seconds=0.012,
        release_seconds=0.04,
        noise=0.02,
        noise_hz=3000.0,
        tremolo_hz=6.6,
        tremolo_depth=0.12,
    ),
    "synth_lead": Damped(
        *(40, 96, ENDLESS),
        slope=1.0,
        damping=0.0,
        attack_seconds=0.006,
        release_seconds=0.06,
        strings=3,
        spread_cents=7.0,
        body=((1800.0, 0.8, 6.0),),
    ),
    "synth_pad": Damped(
        *(36, 96, ENDLESS),
        slope=1.6,
        damping=0.0,
        attack_seconds=0.18,
        release_seconds=0.45,
        strings=5,
        spread_cents=9.0,
        body=((600.0, 1.2, 5.0),),
    ),
    "synth_bass": Damped(
        *(28, 84, 3.0),
        slope=0.7,
        even=0.35,
        pitch_decay=0.1,
        damping=6.0,
        attack_seconds=0.003,
        release_seconds=0.04,
        strings=2,
        spread_cents=3.0,
        drive=1.5,
    ),
    # Bow and breath.
    "violin": Held(
        *(55, 96, 1.5, 0.9),
        attack_seconds=0.07,
        release_seconds=0.10,
        vibrato_hz=5.8,
        vibrato_cents=22.0,
        shimmer=0.10,
        noise=0.02,
        noise_hz=3500.0,
        scoop_cents=25.0,
        body=((460.0, 0.5, 6.0), (1000.0, 0.5, -5.0), (2700.0, 0.8, 9.0)),
    ),
    "cello": Held(
        *(36, 84, 1.6, 1.1),
        attack_seconds=0.10,
        release_seconds=0.15,
        vibrato_hz=5.0,
        vibrato_cents=16.0,
        shimmer=0.12,
        noise=0.03,
        noise_hz=1200.0,
        scoop_cents=18.0,
        body=((180.0, 0.5, 6.0), (330.0, 0.5, 6.0), (1400.0, 0.7, 3.0), (3500.0, 1.0, -8.0)),
    ),
    "flute": Held(
        *(57, 96, 2.8, 2.0),
        attack_seconds=0.06,
        release_seconds=0.07,
        vibrato_hz=5.2,
        vibrato_cents=9.0,
        vibrato_delay=0.25,
        shimmer=0.18,
        noise=0.06,
        noise_hz=2800.0,
    ),
    "clarinet": Held(
        *(48, 91, 1.5, 1.05),
        even=0.06,
        attack_seconds=0.035,
        release_seconds=0.06,
        shimmer=0.04,
        noise=0.015,
        noise_hz=1800.0,
        body=((1600.0, 0.8, 4.0),),
    ),
    "oboe": Held(
        *(52, 91, 0.7, 0.4),
        odd=0.75,
        attack_seconds=0.03,
        release_seconds=0.05,
        vibrato_hz=5.6,
        vibrato_cents=10.0,
        shimmer=0.06,
        noise=0.01,
        noise_hz=4000.0,
        body=((1150.0, 0.5, 12.0), (2900.0, 0.5, 8.0), (6000.0, 1.0, -14.0)),
    ),
    "trumpet": Held(
        *(50, 88, 1.5, 0.2),
        attack_seconds=0.025,
        release_seconds=0.05,
        vibrato_hz=5.0,
        vibrato_cents=5.0,
        vibrato_delay=0.4,
        shimmer=0.05,
        noise=0.01,
        noise_hz=2500.0,
        scoop_cents=45.0,
        body=((1300.0, 0.9, 5.0), (4500.0, 1.2, -4.0)),
    ),
}

INSTRUMENTS: tuple[str, ...] = tuple(TIMBRES)
"""Names of all melodic instruments, the classes of an instrument probe."""
