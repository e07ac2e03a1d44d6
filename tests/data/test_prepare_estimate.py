import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import RATE, tune, write
from prepare_parts import SETTINGS

from etude.data import prepare_estimate
from etude.data.durations import header_seconds
from etude.data.prepare import prepare
from etude.data.prepare_estimate import (
    Estimate,
    describe_estimate,
    estimate,
    estimate_seconds,
)
from etude.data.prepare_settings import PrepareSettings
from etude.data.sources import scan_sources


def scanned(folder):
    return scan_sources([folder], outside=folder / "nowhere").sources


@pytest.mark.parametrize(
    "name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.opus", "a.aiff", "a.rf64"]
)
@pytest.mark.parametrize("rate", [24000, 48000])
def test_the_header_of_this_kind_of_file_tells_its_length(tmp_path, name, rate):
    stereo = np.stack([tune(3.5, seed=1, rate=rate)] * 2, axis=1)
    path = write(tmp_path / name, stereo, rate=rate)
    assert header_seconds(path) == pytest.approx(soundfile.info(path).duration, abs=0.06)


def test_an_mp3_behind_a_picture_and_without_a_count_is_told_by_its_bitrate(tmp_path):
    data = bytearray(write(tmp_path / "a.mp3", tune(8, rate=44100), rate=44100).read_bytes())
    constant = 8 * len(data) / 64000
    for name in (b"Xing", b"Info"):
        at = data.find(name)
        if at >= 0:
            data[at : at + 4] = b"none"
    picture = b"ID3\x04\x00\x00\x00\x00\x7f\x7f" + bytes([255, 251]) * (0x3FFF // 2) + b"\0"
    (tmp_path / "b.mp3").write_bytes(picture + bytes(data))
    found = header_seconds(tmp_path / "b.mp3")
    assert found is not None and 0.3 * constant < found < 3 * constant


def test_a_file_that_is_no_audio_or_cut_anywhere_has_no_length_or_any_but_no_error(tmp_path):
    for name in ("a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff"):
        data = write(tmp_path / name, tune(2)).read_bytes()
        for cut in (*range(0, 200, 7), len(data) // 2):
            (tmp_path / name).write_bytes(data[:cut])
            header_seconds(tmp_path / name)
    (tmp_path / "text.mp3").write_text("not a recording\n" * 1000, encoding="utf-8")
    assert header_seconds(tmp_path / "text.mp3") is None
    assert header_seconds(tmp_path / "missing.wav") is None


def test_the_estimate_is_near_the_corpus_that_is_made(tmp_path):
    for number, kind in enumerate((".wav", ".flac", ".mp3", ".ogg") * 2):
        write(
            tmp_path / "in" / f"{number}{kind}",
            tune(5 + number, seed=number, rate=44100),
            rate=44100,
        )
    said = []
    corpus = prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, workers=0, say=said.append)
    expected = estimate(scanned(tmp_path / "in"), SETTINGS)
    seconds = corpus.seconds("train") + corpus.seconds("valid")
    size = sum(shard.bytes for shard in corpus.shards)
    assert expected.seconds == pytest.approx(seconds, rel=0.03)
    assert expected.corpus_bytes == pytest.approx(size, rel=0.35)
    assert size < expected.peak_bytes <= 2 * expected.corpus_bytes
    assert "of audio" in said[0] and f"free in {tmp_path / 'out'}" in said[0]


def test_a_large_collection_costs_two_hundred_headers_and_all_sizes_count(tmp_path, monkeypatch):
    first = write(tmp_path / "in" / "0000.wav", tune(0.5))
    for number in range(1, 600):
        (tmp_path / "in" / f"{number:04d}.wav").hardlink_to(first)
    write(tmp_path / "in" / "one.flac", tune(20))
    looked_at = []

    def counted(path: Path) -> float | None:
        looked_at.append(path.name)
        return header_seconds(path)

    monkeypatch.setattr(prepare_estimate, "header_seconds", counted)
    seconds = estimate_seconds(scanned(tmp_path / "in"))
    assert seconds == pytest.approx(600 * 0.5 + 20, rel=0.001)
    assert 190 <= len(looked_at) <= 210 and "one.flac" in looked_at
    again = list(looked_at)
    looked_at.clear()
    estimate_seconds(scanned(tmp_path / "in"))
    assert looked_at == again


def test_files_whose_headers_tell_nothing_count_by_a_usual_bitrate(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wma").write_bytes(bytes(200_000))
    (tmp_path / "in" / "empty.wav").write_bytes(b"")
    assert estimate_seconds(scanned(tmp_path / "in")) == pytest.approx(10)
    assert estimate_seconds([]) == 0


def test_a_corpus_that_will_not_fit_is_warned_of_and_one_that_continues_counts_what_it_has(
    tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000_000))
    small, large = Estimate(7200, 4e8, 8e8), Estimate(111600, 1.5e9, 1.75e9)
    assert "warning" not in describe_estimate(small, tmp_path)
    line, warning = describe_estimate(large, tmp_path).split("\n")
    assert line == f"about 31 h of audio, 1.5 GB for the corpus; 1.0 GB free in {tmp_path}"
    assert "will probably not fit" in warning and "1.8 GB" in warning
    (tmp_path / ".work").mkdir()
    with (tmp_path / ".work" / "a.clips").open("wb") as file:
        file.truncate(500_000_000)
    with (tmp_path / "train-000000.tar").open("wb") as file:
        file.truncate(400_000_000)
    assert "warning" not in describe_estimate(large, tmp_path)


def test_a_warning_does_not_stop_the_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    write(tmp_path / "in" / "a.flac", tune(3))
    said = []
    prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, workers=0, say=said.append)
    assert "warning" in said[0] and (tmp_path / "out" / "index.json").is_file()


def test_more_ranks_need_room_for_more_shards(tmp_path):
    write(tmp_path / "in" / "a.wav", tune(60))
    sources = scanned(tmp_path / "in")
    settings = PrepareSettings(sample_rate=RATE, shard_mb=0.1)
    one, four = (estimate(sources, settings, ranks=ranks) for ranks in (1, 4))
    assert four.peak_bytes - one.peak_bytes == pytest.approx(3e5)
