"""The demo corpus sounds as its labels say."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from etude.data.demo.files import write_demo_files
from etude.data.demo.harmony import ALL_KEYS
from etude.data.demo.instruments import TIMBRES
from etude.data.demo.players import Player
from etude.data.demo.render import INSTRUMENTS, DemoTrack, Kind, render_track, track_generator
from etude.data.demo.score import compose_mix
from etude.data.errors import InputError

RATE = 22050
MAJOR_PROFILE = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR_PROFILE = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)


@pytest.fixture(scope="module")
def mixes() -> list[DemoTrack]:
    return [
        render_track(index, seed=3, kind="mix", seconds=10.0, sample_rate=RATE)
        for index in range(24)
    ]


@pytest.fixture(scope="module")
def solos() -> list[DemoTrack]:
    return [
        render_track(index, seed=3, kind="solo", seconds=8.0, sample_rate=RATE)
        for index in range(24)
    ]


def tone(instrument: str, pitch: int, *, number: int = 0, seconds: float = 1.2) -> Any:
    rng = track_generator(0, code=99, number=number)
    player = Player(instrument, rng, sample_rate=44100)
    return player.play(pitch, seconds=seconds, velocity=0.8)


def chroma(track: DemoTrack) -> Any:
    """Energy of the twelve pitch classes between 60 and 1000 Hz, of unit sum."""
    mono = track.waveform.mean(axis=0)
    spectrum = np.abs(np.fft.rfft(mono * np.hanning(len(mono)))) ** 2
    hertz = np.fft.rfftfreq(len(mono), 1.0 / track.sample_rate)
    band = (hertz > 60.0) & (hertz < 1000.0)
    classes = np.round(69.0 + 12.0 * np.log2(hertz[band] / 440.0)).astype(int) % 12
    energy = np.bincount(classes, weights=spectrum[band], minlength=12)
    return energy / energy.sum()


def nearest_key(weights: Any) -> tuple[int, str]:
    """The key whose Krumhansl-Kessler profile lies nearest to twelve pitch-class weights."""
    scores = {
        (tonic, mode): np.corrcoef(np.roll(profile, tonic), weights)[0, 1]
        for mode, profile in (("major", MAJOR_PROFILE), ("minor", MINOR_PROFILE))
        for tonic in range(12)
    }
    return max(scores, key=lambda guess: float(scores[guess]))


def test_a_track_is_a_function_of_seed_kind_and_index() -> None:
    first = render_track(5, seed=1, kind="mix", seconds=4.0, sample_rate=RATE)
    again = render_track(5, seed=1, kind="mix", seconds=4.0, sample_rate=RATE)
    np.testing.assert_array_equal(first.waveform, again.waveform)
    assert first.labels == again.labels
    others: tuple[tuple[int, Kind, int], ...] = ((2, "mix", 5), (1, "solo", 5), (1, "mix", 6))
    for seed, kind, index in others:
        other = render_track(index, seed=seed, kind=kind, seconds=4.0, sample_rate=RATE)
        likeness = np.corrcoef(first.waveform.reshape(-1), other.waveform.reshape(-1))[0, 1]
        assert abs(likeness) < 0.3
        assert other.labels != first.labels


def test_every_24_tracks_hold_all_24_keys(mixes: list[DemoTrack], solos: list[DemoTrack]) -> None:
    names = {key.name for key in ALL_KEYS}
    assert len(names) == 24
    for tracks in (mixes, solos):
        assert {track.labels["key"]["name"] for track in tracks} == names


def test_the_corpus_has_several_metres_tempi_and_ensembles() -> None:
    scores = [compose_mix(track_generator(0, code=98, number=n)) for n in range(60)]
    assert {score.metre for score in scores} == {"4/4", "3/4", "6/8"}
    tempi = [score.tempo for score in scores]
    assert min(tempi) < 80.0 and max(tempi) > 140.0
    assert all(60.0 <= tempo <= 180.0 for tempo in tempi)
    assert {score.lead for score in scores} >= set(INSTRUMENTS) - {"synth_bass"} - {"piano"}
    with_drums = sum("kick" in score.instruments for score in scores)
    assert 20 <= with_drums <= 52


def test_labels_agree_with_each_other(mixes: list[DemoTrack], solos: list[DemoTrack]) -> None:
    for track in mixes + solos:
        labels = json.loads(json.dumps(track.labels))
        length = track.waveform.shape[1] / track.sample_rate
        assert labels["seconds"] == pytest.approx(length)
        for note in labels["notes"]:
            assert 0.0 <= note["start"] < note["end"] <= length
            assert 0.0 < note["velocity"] <= 1.0
            assert (note["pitch"] is None) == (note["instrument"] not in INSTRUMENTS)
        assert labels["instruments"] == sorted({note["instrument"] for note in labels["notes"]})
        assert labels["lead"] in labels["instruments"]

        beats, downbeats = np.array(labels["beats"]), np.array(labels["downbeats"])
        np.testing.assert_allclose(np.diff(beats), 60.0 / labels["tempo"], atol=1e-5)
        per_bar = {"4/4": 4, "3/4": 3, "6/8": 2}[labels["metre"]]
        np.testing.assert_array_equal(downbeats, beats[::per_bar])

        chords = labels["chords"]
        assert chords[0]["start"] == pytest.approx(beats[0])
        assert chords[-1]["end"] == pytest.approx(length)
        for before, after in itertools.pairwise(chords):
            assert before["end"] == pytest.approx(after["start"])
        assert chords[0]["root"] == chords[-1]["root"] == labels["key"]["tonic"]


def test_a_solo_is_one_line_of_clear_notes(solos: list[DemoTrack]) -> None:
    pitches: list[int] = []
    for index, track in enumerate(solos):
        assert track.labels["instruments"] == [INSTRUMENTS[index % len(INSTRUMENTS)]]
        notes = track.labels["notes"]
        assert len(notes) >= 4
        pitches += [note["pitch"] for note in notes]
        for note in notes:
            assert 0.3 <= note["end"] - note["start"] <= 1.2
            assert 48 <= note["pitch"] <= 84
        for before, after in itertools.pairwise(notes):
            assert before["end"] <= after["start"] + 1e-6
    assert min(pitches) <= 54 and max(pitches) >= 78


def test_solo_ranges_overlap_so_that_pitch_does_not_name_the_instrument() -> None:
    for timbre in TIMBRES.values():
        assert timbre.low <= 57 and timbre.high >= 81


def test_audio_is_finite_loud_enough_and_never_clips(
    mixes: list[DemoTrack], solos: list[DemoTrack]
) -> None:
    for track in mixes + solos:
        wave = track.waveform
        assert wave.dtype == np.float32 and wave.shape[0] == 2
        assert np.isfinite(wave).all()
        assert np.abs(wave).max() == pytest.approx(0.5, abs=1e-3)
        assert np.sqrt(np.mean(wave**2)) > 0.01
        assert np.abs(wave[:, -1]).max() < 1e-3
        assert not np.array_equal(wave[0], wave[1])


@pytest.mark.parametrize("instrument", INSTRUMENTS)
@pytest.mark.parametrize("pitch", [60, 74])
def test_an_instrument_plays_the_pitch_it_is_given(instrument: str, pitch: int) -> None:
    wave = tone(instrument, pitch, seconds=1.5)
    middle = wave[len(wave) // 10 : int(0.9 * len(wave))]
    size = 1 << 20
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), n=size))
    hertz = np.fft.rfftfreq(size, 1.0 / 44100)
    wanted = 440.0 * 2.0 ** ((pitch - 69) / 12.0)
    near = np.flatnonzero(np.abs(hertz / wanted - 1.0) < 0.03)
    # The centre of the power near the fundamental: vibrato splits its peak.
    power = spectrum[near] ** 2
    found = float(np.sum(power * hertz[near]) / np.sum(power))
    assert abs(1200.0 * np.log2(found / wanted)) < 6.0
    # No louder partial below it, or the ear would hear another note.
    assert spectrum[hertz < 0.9 * wanted].max() < 0.5 * spectrum[near].max()


def test_a_note_begins_and_ends_without_a_click_and_has_no_offset() -> None:
    for instrument in INSTRUMENTS:
        wave = tone(instrument, 65, seconds=0.5)
        assert np.abs(wave[0]) < 0.02 * np.abs(wave).max()
        assert np.abs(wave[-1]) < 0.02 * np.abs(wave).max()
        assert abs(np.mean(wave)) < 0.01 * np.abs(wave).max()


def envelope_features(instrument: str, number: int) -> Any:
    """Thirty band levels in dB at the start and in the middle of a note, mean removed."""
    wave = tone(instrument, 64, number=number, seconds=0.8)
    edges = np.geomspace(150.0, 10000.0, 16)
    hertz = np.fft.rfftfreq(8192, 1.0 / 44100)
    parts = []
    for first in (0, 18000):
        power = np.abs(np.fft.rfft(wave[first : first + 8192] * np.hanning(8192))) ** 2
        bands = np.add.reduceat(power, np.searchsorted(hertz, edges))[:-1]
        parts.append(bands)
    levels = 10.0 * np.log10(np.concatenate(parts) / np.sum(parts) + 1e-5)
    return levels


def test_timbres_differ_more_between_instruments_than_within_one() -> None:
    numbers = range(4)
    features = {name: [envelope_features(name, n) for n in numbers] for name in INSTRUMENTS}
    within = [
        np.sqrt(np.mean((one - other) ** 2))
        for specimens in features.values()
        for one, other in itertools.combinations(specimens, 2)
    ]
    means = {name: np.mean(specimens, axis=0) for name, specimens in features.items()}
    between = {
        (one, other): np.sqrt(np.mean((means[one] - means[other]) ** 2))
        for one, other in itertools.combinations(INSTRUMENTS, 2)
    }
    closest = min(between, key=lambda pair: between[pair])
    assert between[closest] > 2.5, closest
    assert np.median(list(between.values())) > 2.0 * np.median(within)
    # And no specimen is another's copy.
    assert min(within) > 0.1


def test_the_sound_lies_in_the_labelled_key(mixes: list[DemoTrack]) -> None:
    in_key, heard, read = [], 0, 0
    for track in mixes:
        key = track.labels["key"]
        energy = chroma(track)
        steps = (0, 2, 4, 5, 7, 9, 11) if key["mode"] == "major" else (0, 2, 3, 5, 7, 8, 10, 11)
        in_key.append(sum(energy[(key["tonic"] + step) % 12] for step in steps))
        heard += nearest_key(np.sqrt(energy)) == (key["tonic"], key["mode"])
        written = np.zeros(12)
        for note in track.labels["notes"]:
            if note["pitch"] is not None:
                written[note["pitch"] % 12] += note["end"] - note["start"]
        read += nearest_key(written) == (key["tonic"], key["mode"])
    assert np.mean(in_key) > 0.9
    assert read >= 22
    # Chance is 1 of 24. Raw energy holds overtones, so this crude ear often hears a fifth above.
    assert heard >= 10


def test_the_lead_can_be_heard() -> None:
    """At the labelled onsets of the melody its fundamental gains energy."""
    rising = []
    for index in range(6):
        track = render_track(index, seed=9, kind="mix", seconds=10.0, sample_rate=RATE)
        mono = track.waveform.mean(axis=0)
        for note in track.labels["notes"]:
            if note["instrument"] != track.labels["lead"]:
                continue
            start, span = int(note["start"] * RATE), RATE // 6
            if start < span or start + 2 * span > len(mono):
                continue
            hertz = 440.0 * 2.0 ** ((note["pitch"] - 69) / 12.0)
            probe = np.exp(-2j * np.pi * hertz * np.arange(span) / RATE) * np.hanning(span)
            late = start + span // 4
            before = abs(probe @ mono[start - span : start])
            rising.append(abs(probe @ mono[late : late + span]) > 1.2 * before)
    assert len(rising) > 60
    assert np.mean(rising) > 0.7


def test_files_are_written_in_four_formats_and_only_once(tmp_path: Path) -> None:
    folder = tmp_path / "music"
    seen: list[tuple[int, int]] = []
    settings: dict[str, Any] = {"minutes": 8 * 3.0 / 60.0, "seed": 4, "seconds": 3.0}
    paths = write_demo_files(
        folder, **settings, workers=1, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, 8) for done in range(9)]
    assert sorted(path.suffix for path in paths) == sorted([".wav", ".flac", ".ogg", ".mp3"] * 2)
    wanted = {".wav": (44100, 2), ".flac": (44100, 2), ".ogg": (22050, 1), ".mp3": (48000, 2)}
    peaks = []
    for path in paths:
        wave, rate = soundfile.read(path, always_2d=True)
        assert (rate, wave.shape[1]) == wanted[path.suffix]
        assert len(wave) / rate == pytest.approx(3.0, abs=0.1)
        peaks.append(np.abs(wave).max())
        assert 0.15 < peaks[-1] < 0.95
        labels = json.loads(path.with_suffix(".json").read_text())
        assert labels["licence"] == "CC0-1.0" and labels["artificial"] is True
        assert labels["artist"] == path.parent.parent.name
        assert labels["title"] in path.name
    assert len(set(np.round(peaks, 3))) > 4
    kinds = [json.loads(path.with_suffix(".json").read_text())["kind"] for path in paths]
    assert kinds.count("solo") == 2
    assert not list(folder.rglob("*.partial"))

    before = {path: path.stat().st_mtime_ns for path in paths}
    lost = paths[2]
    lost.with_suffix(".json").unlink()
    content = lost.read_bytes()
    assert write_demo_files(folder, **settings, workers=1) == paths
    changed = [path for path in paths if path.stat().st_mtime_ns != before[path]]
    assert changed == [lost]
    assert soundfile.info(lost).frames > 0 and len(lost.read_bytes()) == len(content)

    with pytest.raises(InputError, match="other settings"):
        write_demo_files(folder, **{**settings, "seed": 5}, workers=1)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "song.mp3").write_bytes(b"mine")
    with pytest.raises(InputError, match="not empty"):
        write_demo_files(tmp_path, minutes=0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["song.mp3"]


def test_two_workers_write_the_same_audio_as_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"minutes": 0.15, "seconds": 3.0, "kind": "mix"}
    one = write_demo_files(tmp_path / "one", **settings, workers=1)
    two = write_demo_files(tmp_path / "two", **settings, workers=2)
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(soundfile.read(first)[0], soundfile.read(second)[0])
