"""Containers that the campaign (test_faulty_music.py) is too coarse for."""

import io
import struct

import numpy as np
import pytest
import soundfile
from audio_files import tune, write
from campaigns.faulty_music import PYAV_FORMATS, Workshop, id3, mp3_frames, ogg_pages, riff

from etude.data.audio import BLOCK_FRAMES, Undecodable, open_audio, pyav_installed
from etude.data.containers.headers import read_promise
from etude.data.containers.promise import Part, PartFile
from etude.data.prepare import PrepareSettings


def promise_of(path):
    with path.open("rb") as file:
        return read_promise(file, path.stat().st_size)


def samples_of(path):
    with path.open("rb") as file:
        audio = open_audio(file, path, read_promise(file, path.stat().st_size))
        return np.concatenate(list(audio.blocks))


def one_read(path):
    with soundfile.SoundFile(path) as file:
        return file.read(file.frames, dtype="float32", always_2d=True)


def mp3(path, *, counted, **options):
    """A second of silence and a second of music; without its Xing header unless ``counted``."""
    samples = np.concatenate([np.zeros(24000, np.float32), tune(1)])
    soundfile.write(path, samples, 24000, **options)
    data = path.read_bytes()
    path.write_bytes(data if counted else data[mp3_frames(data)[1] :])
    return path


@pytest.mark.parametrize("rate", [24000, 44100, 48000])
def test_an_mp3_of_a_low_bit_rate_has_no_glitch_where_blocks_meet(tmp_path, rate):
    path = tmp_path / "a.mp3"
    low = {"bitrate_mode": "CONSTANT", "compression_level": 0.95}
    soundfile.write(path, tune(25, rate=rate), rate, **low)
    blocks = samples_of(path)
    assert len(blocks) > 2 * BLOCK_FRAMES
    assert np.array_equal(blocks, one_read(path)[-len(blocks) :])


def test_a_part_reads_like_its_head_and_its_piece_of_the_file():
    body = bytes(range(200))
    part = PartFile(io.BytesIO(body), Part(b"head", 50, 120))
    whole = b"head" + body[50:120]
    assert part.read() == whole
    for start in (0, 2, 4, 70, 74, 80):
        assert part.seek(start) == start
        assert part.read(5) == whole[start : start + 5]
    assert part.seek(-3, io.SEEK_END) == 71 and part.read() == whole[-3:]


@pytest.mark.parametrize("beyond", [0, 1 << 32])
def test_a_wav_beyond_4_gib_is_read_to_its_end(tmp_path, beyond):
    fmt = struct.pack("<HHIIHH", 1, 2, 48000, 192000, 4, 16)
    path = tmp_path / "a.wav"
    path.write_bytes(riff((b"fmt ", fmt), (b"data", bytes(4000))))
    with path.open("r+b") as file:
        file.truncate(44 + 4000 + beyond)  # a hole: it takes no room
    promise = promise_of(path)
    assert promise.broken is None
    if beyond:
        assert "4294971296" in promise.wrong_header
        assert promise.parts[0].end == 44 + 4000 + beyond
    else:
        assert promise == type(promise)()


def test_a_wav_of_3_gb_that_is_cut_is_not_taken_for_one_from_a_pipe(tmp_path):
    fmt = struct.pack("<HHIIHH", 1, 2, 48000, 192000, 4, 16)
    header = bytearray(riff((b"fmt ", fmt), (b"data", b"")))
    header[40:44] = struct.pack("<I", 3_000_000_000)
    (tmp_path / "a.wav").write_bytes(bytes(header) + bytes(100_000))
    assert promise_of(tmp_path / "a.wav").broken.reason == "truncated"


def test_tags_behind_a_wav_are_noted_and_not_heard(tmp_path):
    path = write(tmp_path / "a.wav", tune(1))
    with path.open("ab") as file:
        file.write(b"TAG" + bytes(125))
    assert "has 48172" in promise_of(path).wrong_header
    assert len(samples_of(path)) == 24000


@pytest.mark.parametrize("level", [0.0, 0.25])
@pytest.mark.parametrize("frames", [3, 4096, 4097, 50000])
def test_the_last_frame_of_a_flac_is_found_however_small_it_is(tmp_path, level, frames):
    path = write(tmp_path / "a.flac", np.full(frames, level, np.float32))
    assert promise_of(path) == type(promise_of(path))()
    data = bytearray(path.read_bytes())
    data[22:26] = bytes(4)
    path.write_bytes(data)
    assert "open" in promise_of(path).wrong_header
    assert len(samples_of(path)) == frames


def test_a_recorded_flac_broadcast_that_begins_in_the_middle_is_as_long_as_it_is(tmp_path):
    path = write(tmp_path / "a.flac", tune(2))
    data = path.read_bytes()
    first = data.index(b"\xff\xf8")
    second = data.index(b"\xff\xf8", first + 100)
    header = data[:22] + bytes(20) + data[42:first]  # neither length nor checksum
    path.write_bytes(header + data[second:])
    with path.open("rb") as file:
        audio = open_audio(file, path, read_promise(file, path.stat().st_size))
        assert audio.declared_frames == 2 * 24000 - 4096
        assert sum(map(len, audio.blocks)) == audio.declared_frames


@pytest.mark.parametrize("counted", [True, False])
def test_what_is_behind_the_last_mp3_frame_is_noted_or_makes_it_corrupt(tmp_path, counted):
    path = mp3(tmp_path / "a.mp3", counted=counted)
    whole = path.read_bytes()
    noise = np.random.default_rng(0).bytes(20000).replace(b"\xff", b"\0")
    expected = len(samples_of(path))

    def with_rest(rest):
        path.write_bytes(whole + rest)
        return promise_of(path)

    for tag in (b"", b"TAG" + bytes(125), bytes(3000), b"LYRICSBEGINla la" * 500 + b"LYRICSEND"):
        assert with_rest(tag).broken is None
        assert len(samples_of(path)) == expected
    assert "1000 bytes after" in with_rest(noise[:1000]).wrong_header
    assert with_rest(noise).broken is None if counted else with_rest(noise).broken
    assert with_rest(whole[:1] + noise + whole).broken.reason == "corrupt"


@pytest.mark.parametrize(
    "between", [b"", b"TAG" + bytes(125), id3(900), b"TAG" + bytes(125) + id3(90)]
)
def test_mp3_files_that_were_joined_are_heard_one_after_the_other(tmp_path, between):
    path = mp3(tmp_path / "a.mp3", counted=True)
    once, data = samples_of(path), path.read_bytes()
    path.write_bytes(data + between + data)
    assert "2 files in one" in promise_of(path).wrong_header
    assert np.array_equal(samples_of(path), np.concatenate([once, once]))


def test_a_lost_ogg_page_is_known_before_decoding(tmp_path):
    path = write(tmp_path / "a.ogg", tune(20))
    pages = ogg_pages(path.read_bytes())
    path.write_bytes(b"".join(pages[:3] + pages[4:]))
    assert "some are lost" in promise_of(path).broken.detail


def test_an_id3_tag_whose_file_ends_inside_it_is_truncated(tmp_path):
    (tmp_path / "a.mp3").write_bytes(id3(50_000)[:40_000])
    assert promise_of(tmp_path / "a.mp3").broken.reason == "truncated"


def test_streams_of_different_rates_in_one_ogg_are_refused(tmp_path):
    first = write(tmp_path / "a.ogg", tune(2)).read_bytes()
    second = write(tmp_path / "b.ogg", tune(2, rate=48000), rate=48000).read_bytes()
    path = tmp_path / "c.ogg"
    path.write_bytes(first + second)
    with pytest.raises(Undecodable, match="different rates"):
        samples_of(path)


def test_a_file_of_many_channels_is_read_in_smaller_blocks(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros((3000, 1000), np.float32))
    with path.open("rb") as file:
        audio = open_audio(file, path, read_promise(file, path.stat().st_size))
        assert max(block.size for block in audio.blocks) <= 2 * BLOCK_FRAMES


@pytest.mark.skipif(not pyav_installed(), reason="needs PyAV to read m4a")
def test_what_is_behind_the_last_box_of_an_m4a_is_no_reason_to_lose_it(tmp_path):
    shop = Workshop(tmp_path / "c", PrepareSettings(), (1, 2), 3, seed=0)
    written = PYAV_FORMATS["m4a"](shop, shop.stem("a"), 3)
    whole = written.path.read_bytes()
    written.path.write_bytes(whole + b"TAG" + bytes(125))
    assert promise_of(written.path).wrong_header is None
    assert np.array_equal(samples_of(written.path), written.frames_TC)
    written.path.write_bytes(whole + b"\1\2\3\4" * 100)
    assert "400 bytes behind" in promise_of(written.path).wrong_header
    assert np.array_equal(samples_of(written.path), written.frames_TC)


@pytest.mark.skipif(not pyav_installed(), reason="needs PyAV to write m4a")
@pytest.mark.parametrize(
    "name", ["m4a", "m4a faststart", "m4a fragments", "m4a alac", "wma", "wavpack"]
)
def test_a_cut_file_that_pyav_reads_is_truncated_wherever_its_index_lies(tmp_path, name):
    shop = Workshop(tmp_path / "c", PrepareSettings(), (1, 2), 3, seed=0)
    path = PYAV_FORMATS[name](shop, shop.stem("a"), 3).path
    data = path.read_bytes()
    sizes = [len(data) // 3, len(data) - 1000]
    if name == "wavpack":
        sizes.append(data.rindex(b"wvpk"))  # whole blocks, but not all
    for size in sizes:
        path.write_bytes(data[:size])
        assert promise_of(path).broken.reason == "truncated"


@pytest.mark.skipif(not pyav_installed(), reason="needs PyAV to write m4a")
def test_a_small_damaged_m4a_is_not_taken_for_a_cut_one(tmp_path):
    shop = Workshop(tmp_path / "c", PrepareSettings(), (1, 2), 3, seed=0)
    path = PYAV_FORMATS["m4a faststart"](shop, shop.stem("a"), 1).path
    data = path.read_bytes()
    assert len(data) < 32768  # FFmpeg has read it to its end when it meets the damage
    path.write_bytes(data[: len(data) // 2] + bytes(3000) + data[len(data) // 2 + 3000 :])
    with pytest.raises(Undecodable) as caught:
        samples_of(path)
    assert caught.value.damaged
