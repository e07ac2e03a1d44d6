import io

import numpy as np
import pytest
import soundfile
from audio_files import tune

from etude.data.audio import Resampler, decode, encode, quantise, to_mono
from etude.data.errors import DataError


def resample(samples, source_rate, target_rate, *, block=5000):
    resampler = Resampler(source_rate, target_rate)
    parts = [resampler.push(samples[i : i + block]) for i in range(0, len(samples), block)]
    return np.concatenate([*parts, resampler.push(np.zeros(0, np.float32), last=True)])


def test_a_clip_survives_encoding_to_the_last_bit():
    samples, clipped = quantise(tune(2))
    decoded, rate = decode(encode(samples, 24000))
    assert rate == 24000 and clipped == 0 and decoded.dtype == np.float32
    assert np.array_equal(decoded * 32768, samples)


@pytest.mark.parametrize(("start", "frames"), [(0, 10), (777, 24000), (47990, 10), (100, None)])
def test_a_crop_is_the_same_as_a_slice_of_the_whole(start, frames):
    data = encode(quantise(tune(2))[0], 24000)
    whole, _ = decode(data)
    crop, _ = decode(data, start=start, frames=frames)
    assert np.array_equal(crop, whole[start : None if frames is None else start + frames])


def test_a_crop_beyond_the_end_is_refused_rather_than_short():
    data = encode(quantise(tune(1))[0], 24000)
    with pytest.raises(DataError, match="24000 frames, but 20 were asked for from frame 23990"):
        decode(data, start=23990, frames=20)


def test_damaged_cut_stereo_and_foreign_bytes_are_data_errors():
    data = encode(quantise(tune(2))[0], 24000)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    stereo = io.BytesIO()
    soundfile.write(stereo, np.zeros((100, 2)), 24000, format="FLAC")
    for bad in (bytes(flipped), data[: len(data) // 2], b"", b"no audio", stereo.getvalue()):
        with pytest.raises(DataError):
            decode(bad)


def test_mono_is_the_mean_of_the_channels():
    stereo = np.array([[1.0, 0.0], [0.5, -0.5], [0.25, 0.75]], dtype=np.float32)
    assert np.array_equal(to_mono(stereo), np.array([0.5, 0.0, 0.5], dtype=np.float32))


def test_rounding_clips_at_full_scale_and_counts_it():
    samples, clipped = quantise(np.array([0.0, 1.5, -1.5, -1.0, 0.9999], dtype=np.float32))
    assert samples.tolist() == [0, 32767, -32768, -32768, 32765]
    assert clipped == 2


def test_a_tone_above_the_new_nyquist_frequency_is_gone_after_resampling():
    time = np.arange(44100 * 4) / 44100
    tone = (0.9 * np.sin(2 * np.pi * 13000 * time)).astype(np.float32)
    inside = resample(tone, 44100, 24000)[2400:-2400]
    assert 20 * np.log10(np.abs(inside).max()) < -90


def test_blocks_do_not_show_in_the_resampled_signal():
    signal = tune(3, rate=44100)
    assert np.array_equal(
        resample(signal, 44100, 24000, block=1234), resample(signal, 44100, 24000, block=10**9)
    )
