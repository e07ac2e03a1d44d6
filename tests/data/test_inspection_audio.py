"""What is measured of a clip, against signals of which the answer is known."""

import math

import numpy as np
import pytest
import soxr
from audio_files import RATE, Samples, tune
from inspection_corpus import low_passed, white

from etude.data.audio import decode, encode, quantise
from etude.data.inspection.audio import FLOOR_DB, ClipMeasures, SpectrumGrid, measure
from etude.data.inspection.figures import is_cut

GRID = SpectrumGrid(RATE)


def stored(samples: Samples) -> ClipMeasures:
    """Measures of a clip as it comes out of a corpus, rounded to 16 bit."""
    return measure(decode(encode(quantise(samples)[0], RATE))[0], GRID)


def sine(amplitude: float, *, hertz: float, seconds: float = 2.0) -> Samples:
    time = np.arange(round(seconds * RATE)) / RATE
    return (amplitude * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def test_level_peak_and_offset_of_a_sine_are_told_apart() -> None:
    hertz = float(GRID.frequencies[64])
    found = stored(sine(0.5, hertz=hertz) + np.float32(0.01))
    assert found.rms_db == pytest.approx(20 * math.log10(0.5 / math.sqrt(2)), abs=0.01)
    assert found.peak_db == pytest.approx(20 * math.log10(0.51), abs=0.01)
    assert found.mean == pytest.approx(0.01, abs=1e-4)
    # Its bin shows its level, and the offset shows nowhere.
    assert found.spectrum_db.argmax() == 64
    assert found.spectrum_db[64] == pytest.approx(found.rms_db, abs=0.05)
    assert found.spectrum_db[0] < -100


def test_the_spectrum_is_the_mean_power_of_overlapping_windows() -> None:
    samples = white(0.3, level=0.2)
    size = GRID.window_samples
    turns = 2 * np.pi * np.arange(size) / size
    window = 0.355768 - 0.487396 * np.cos(turns)
    window += 0.144232 * np.cos(2 * turns) - 0.012604 * np.cos(3 * turns)
    centred = samples.astype(np.float64) - samples.mean()
    powers = [
        np.abs(np.fft.rfft(centred[start : start + size] * window)) ** 2
        for start in range(0, len(samples) - size + 1, size // 2)
    ]
    expected = 10 * np.log10(np.mean(powers, axis=0) * 2 / window.sum() ** 2)
    assert np.allclose(measure(samples, GRID).spectrum_db, expected, atol=0.01)


def test_bins_of_rounding_noise_have_the_level_that_theory_gives_them() -> None:
    samples = white(4, level=0.1)
    error = quantise(samples)[0] / np.float32(32768) - samples
    found = measure(error.astype(np.float32), GRID).spectrum_db
    assert float(np.mean(found[10:-10])) == pytest.approx(GRID.rounding_db, abs=0.2)


def test_a_clip_turned_down_by_60_db_reads_60_db_lower_and_as_silent() -> None:
    loud, quiet = stored(tune(3)), stored(tune(3) / 1000)
    assert loud.rms_db - quiet.rms_db == pytest.approx(60, abs=0.1)
    assert loud.silent_share < 0.05 and quiet.silent_share == 1.0


@pytest.mark.parametrize(("level_db", "silent"), [(-58, 0.0), (-62, 1.0)])
def test_a_frame_is_silent_below_minus_60_dbfs(level_db: float, silent: float) -> None:
    amplitude = math.sqrt(2) * 10 ** (level_db / 20)
    assert stored(sine(amplitude, hertz=1000)).silent_share == silent


def test_the_silent_share_is_that_of_the_frames_and_an_offset_is_no_sound() -> None:
    samples = np.concatenate([white(1), np.zeros(3 * RATE, dtype=np.float32)])
    assert stored(samples).silent_share == 0.75
    assert stored(np.full(RATE, 0.3, dtype=np.float32)).silent_share == 1.0


def test_samples_at_full_scale_are_counted_on_both_sides() -> None:
    samples = sine(0.5, hertz=440)
    samples[100:103], samples[200:205] = 1.0, -1.0
    found = stored(samples)
    assert found.full_scale_samples == 8 and found.samples == len(samples)
    assert stored(sine(0.5, hertz=440)).full_scale_samples == 0


def test_a_filter_s_edge_is_found_where_it_is() -> None:
    found = stored(low_passed(white(3), 4000))
    assert found.bandwidth == pytest.approx(4000, abs=300)
    assert found.steep and is_cut(found, RATE)

    whole = stored(white(3))
    assert whole.bandwidth == RATE / 2 and not whole.steep and not is_cut(whole, RATE)


def test_music_that_fades_out_over_frequency_is_not_called_cut() -> None:
    spectrum = np.fft.rfft(white(3))
    hertz = np.fft.rfftfreq(3 * RATE, 1 / RATE)
    # 10 dB per kHz: in the noise of rounding long before half the rate.
    fading = np.fft.irfft(spectrum * 10 ** (-hertz / 2000)).astype(np.float32)
    found = stored(fading)
    assert found.bandwidth is not None and 4000 < found.bandwidth < 9000
    assert not found.steep and not is_cut(found, RATE)


@pytest.mark.parametrize("source_rate", [11025, 16000, 22050])
def test_audio_that_once_had_a_lower_rate_gives_itself_away(source_rate: int) -> None:
    source = np.random.default_rng(0).normal(0, 0.003, 3 * source_rate).astype(np.float32)
    found = stored(soxr.resample(source, source_rate, RATE, quality="HQ"))
    assert found.bandwidth is not None and is_cut(found, RATE)
    assert 0.85 * source_rate / 2 < found.bandwidth <= source_rate / 2 + 300


def test_the_corpus_own_resampler_is_not_taken_for_a_cut() -> None:
    source = np.random.default_rng(0).normal(0, 0.1, 3 * 44100).astype(np.float32)
    assert not is_cut(stored(soxr.resample(source, 44100, RATE, quality="HQ")), RATE)
    # Treble that is soft ends where its filter does, somewhat below half the rate, and steeply.
    soft = stored(low_passed(white(3, level=0.01), 11_200))
    assert soft.bandwidth == pytest.approx(11_200, abs=300) and soft.steep
    assert not is_cut(soft, RATE)


@pytest.mark.parametrize("samples", [1, 100, RATE])
def test_a_clip_of_nothing_has_no_bandwidth_and_finite_levels(samples: int) -> None:
    found = stored(np.zeros(samples, dtype=np.float32))
    assert found.bandwidth is None and not is_cut(found, RATE)
    assert found.rms_db == found.peak_db == FLOOR_DB
    assert np.isfinite(found.spectrum_db).all() and found.silent_share == 1.0
