"""One track of the demo corpus: score -> parts -> panned mix -> room -> waveform and labels.

A track is a pure function of (seed, kind, index): its randomness is one Philox stream under that
key, so that any track can be rendered alone, in any order, by any worker. Keys and solo
instruments are not drawn but dealt, so that every run of 24 tracks holds all 24 keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from etude.data.demo.drums import DRUMS, DrumKit
from etude.data.demo.harmony import ALL_KEYS, Key
from etude.data.demo.instruments import INSTRUMENTS
from etude.data.demo.players import Player
from etude.data.demo.reverb import add_room, room_impulse
from etude.data.demo.score import Note, Score, compose_mix, compose_solo
from etude.data.demo.synthesis import Floats, fade_edges

__all__ = ["INSTRUMENTS", "DemoTrack", "Kind", "render_track", "track_generator"]

Kind = Literal["mix", "solo"]
KIND_CODES: dict[str, int] = {"mix": 1, "solo": 2}
KEY_DEAL_OFFSET = 16
"""Added to a kind's code for the stream that deals its keys."""

# Loudness of the parts against the lead, in dB RMS while they sound.
PART_LEVELS = {"lead": 0.0, "bass": -4.0, "chords": -7.0, "drums": -5.0}


@dataclass(frozen=True, eq=False)
class DemoTrack:
    """A rendered track and everything that is known about it."""

    name: str
    waveform: Floats
    """Shape (2, samples), peak 0.5 (-6 dBFS)."""
    sample_rate: int
    labels: dict[str, Any]
    """JSON-able; all times in seconds from the start of the track."""


def render_track(
    index: int,
    *,
    seed: int,
    kind: Kind,
    seconds: float = 15.0,
    sample_rate: int = 44100,
) -> DemoTrack:
    """Track number `index` of the corpus that `seed` and `kind` name."""
    rng = track_generator(seed, code=KIND_CODES[kind], number=index)
    key = _dealt_key(index, seed=seed, kind=kind)
    if kind == "mix":
        score = compose_mix(rng, key=key, seconds=seconds)
    else:
        instrument = INSTRUMENTS[index % len(INSTRUMENTS)]
        score = compose_solo(rng, instrument, key=key, seconds=seconds)
    waveform = _perform(rng, score, solo=kind == "solo", sample_rate=sample_rate)
    return DemoTrack(
        name=f"{kind}-{seed}-{index:05d}",
        waveform=waveform,
        sample_rate=sample_rate,
        labels=score_labels(score, kind=kind),
    )


def track_generator(seed: int, *, code: int, number: int) -> np.random.Generator:
    """The random stream of one purpose (`code`) and one `number`."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be between 0 and 2**64 - 1, but is {seed}.")
    key = np.array([seed, (code << 48) + number], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _dealt_key(index: int, *, seed: int, kind: Kind) -> Key:
    """The key of a track: each run of 24 tracks is a shuffled pack of all keys."""
    pack, card = divmod(index, len(ALL_KEYS))
    rng = track_generator(seed, code=KIND_CODES[kind] + KEY_DEAL_OFFSET, number=pack)
    return ALL_KEYS[int(rng.permutation(len(ALL_KEYS))[card])]


def score_labels(score: Score, *, kind: Kind) -> dict[str, Any]:
    """The score as plain lists and dictionaries."""
    key = score.key
    return {
        "kind": kind,
        "seconds": score.seconds,
        "key": {"tonic": key.tonic, "mode": key.mode, "name": key.name},
        "tempo": score.tempo,
        "metre": score.metre,
        "beats": _rounded(score.beats),
        "downbeats": _rounded(score.downbeats),
        "chords": [
            {
                "start": round(chord.start_seconds, 6),
                "end": round(chord.end_seconds, 6),
                "root": chord.root,
                "quality": chord.quality,
            }
            for chord in score.chords
        ],
        "notes": [
            {
                "start": note.start_seconds,
                "end": note.end_seconds,
                "pitch": note.pitch,
                "velocity": note.velocity,
                "instrument": note.instrument,
            }
            for note in score.notes
        ],
        "instruments": list(score.instruments),
        "lead": score.lead,
        "chord_style": score.chord_style,
    }


def _rounded(times: Iterable[float]) -> list[float]:
    return [round(time, 6) for time in times]


def _perform(rng: np.random.Generator, score: Score, *, solo: bool, sample_rate: int) -> Floats:
    """All parts of a score, mixed to stereo (2, samples)."""
    num_samples = round(score.seconds * sample_rate)
    mix = np.zeros((2, num_samples), dtype=np.float32)
    send = np.zeros(num_samples, dtype=np.float32)
    parts: dict[str, list[Note]] = {}
    for note in score.notes:
        role = "drums" if note.instrument in DRUMS else note.instrument
        parts.setdefault(role, []).append(note)
    lowest = {name: min(n.pitch or 0 for n in notes) for name, notes in parts.items()}
    pitched = [name for name in parts if name not in ("drums", score.lead)]
    bass = min(pitched, key=lambda name: lowest[name]) if pitched else None

    for name in sorted(parts):
        if name == score.lead:
            role, pan, width = "lead", float(rng.uniform(-0.25, 0.25)), 0.15
        elif name == "drums":
            role, pan, width = "drums", 0.0, 0.6
        elif name == bass:
            role, pan, width = "bass", float(rng.uniform(-0.1, 0.1)), 0.0
        else:
            role, pan, width = "chords", float(rng.uniform(-0.6, 0.6)), 0.5
        stereo = np.zeros((2, num_samples), dtype=np.float32)
        _play_part(rng, name, parts[name], stereo, pan=pan, width=width, sample_rate=sample_rate)
        wanted = 10.0 ** ((PART_LEVELS[role] + float(rng.normal(0.0, 1.2))) / 20.0)
        stereo *= np.float32(0.1 * wanted / max(_active_rms(stereo), 1e-6))
        mix += stereo
        if role != "bass":
            send += 0.5 * (stereo[0] + stereo[1])

    size = float(rng.uniform(0.3, 0.7) if solo else rng.uniform(0.4, 1.4))
    wetness = float(rng.uniform(0.08, 0.2) if solo else rng.uniform(0.12, 0.4))
    impulse = room_impulse(rng, seconds=size, sample_rate=sample_rate)
    add_room(mix, send, impulse, level=wetness)
    for side in range(2):
        # 30 ms at the end only: a cut note would click. The start is silence anyway.
        fade_edges(mix[side], attack=1, release=int(0.03 * sample_rate))
    peak = float(max(mix.max(), -mix.min()))
    mix *= np.float32(0.5 / max(peak, 1e-9))
    return mix


def _play_part(
    rng: np.random.Generator,
    name: str,
    notes: list[Note],
    stereo: Floats,
    *,
    pan: float,
    width: float,
    sample_rate: int,
) -> None:
    """Add one instrument's notes to `stereo`, each at its place between left and right."""
    num_samples = stereo.shape[1]
    kit = DrumKit(rng, sample_rate=sample_rate)
    player = Player(name, rng, sample_rate=sample_rate) if name in INSTRUMENTS else None
    for note in notes:
        if player is None or note.pitch is None:
            wave = kit.play(note.instrument, velocity=note.velocity)
            place = pan + width * (DRUMS.index(note.instrument) - 2.5) / 2.5
        else:
            seconds = note.end_seconds - note.start_seconds
            wave = player.play(note.pitch, seconds=seconds, velocity=note.velocity)
            # Low notes to the left, high notes to the right, as at a keyboard.
            place = pan + width * (note.pitch - 62) / 24.0
        angle = 0.25 * np.pi * (1.0 + float(np.clip(place, -1.0, 1.0)))
        start = round(note.start_seconds * sample_rate)
        wave = wave[: num_samples - start]
        stereo[0, start : start + len(wave)] += np.float32(np.cos(angle)) * wave
        stereo[1, start : start + len(wave)] += np.float32(np.sin(angle)) * wave


def _active_rms(stereo: Floats) -> float:
    """RMS over the half of the track in which the part is loudest.

    Over the whole track a part with rests would count as soft and be turned up.
    """
    frame = 4096
    count = stereo.shape[1] // frame
    if count < 2:
        return float(np.sqrt(np.mean(stereo**2)))
    frames = stereo[:, : count * frame].reshape(2, count, frame)
    power = np.sort(np.einsum("scf,scf->c", frames, frames) / (2 * frame))
    return float(np.sqrt(np.mean(power[count // 2 :])))
