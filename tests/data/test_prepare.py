import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from audio_files import RATE, tune, write

from etude.data.audio import decode, pyav_installed, quantise, to_mono
from etude.data.errors import DataError, InputError
from etude.data.prepare import PrepareSettings, prepare
from etude.data.prepare_workers import map_unordered
from etude.data.shards import open_corpus

ROOT = Path(__file__).parents[2]
SETTINGS = PrepareSettings(clip_seconds=4, min_seconds=2, shard_mb=0.5)
QUIET = {"workers": 0, "say": lambda message: None}


def content(folder):
    """Every file of a corpus, except the note of when its sources were written."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != ".prepare.json"
    }


def tracks(corpus):
    """Source name -> its clips' samples and JSON, in order, over all splits."""
    found = {}
    for name in sorted({shard.split for shard in corpus.shards}):
        split = corpus.split(name)
        for clip in range(len(split)):
            metadata = split.read_metadata(clip)
            samples, _ = decode(split.read_audio_bytes(clip))
            found.setdefault(metadata["source"], []).append((samples, metadata))
    return found


def report(out):
    return json.loads((out / "report.json").read_bytes())


def reasons(out, kind="skipped"):
    return {(Path(line["file"]).name, line["reason"]) for line in report(out)[kind]}


def music(folder, count=5):
    for number in range(count):
        write(folder / f"song {number}.flac", tune(5 + 1.5 * number, seed=number))
    return folder


def make_bad_files(folder):
    """A file for every reason; returns {(name, reason)}."""
    good = tune(6, seed=1)
    zeros = np.zeros(RATE * 6, np.float32)
    write(folder / "a good one.wav", quantise(good)[0])
    write(folder / "short.wav", tune(1))
    write(folder / "silent.wav", zeros)
    write(folder / "dc.wav", zeros + 0.25)
    opposite = tune(6, seed=9)
    write(folder / "opposite.wav", np.stack([opposite, -opposite], axis=1))
    write(folder / "the same again.flac", quantise(good)[0])
    for name, bad in (("nan.wav", np.nan), ("infinite.wav", np.inf), ("huge.wav", 1e30)):
        samples = tune(6, seed=2)
        samples[RATE * 3] = bad
        write(folder / name, samples, subtype="FLOAT")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is not a recording\n" * 100, encoding="utf-8")
    (folder / "page.mp3").write_text("<html>404 not found</html>" * 100, encoding="utf-8")
    (folder / "header only.flac").write_bytes(b"fLaC" + bytes(40))
    write(folder / "no samples.wav", zeros[:0])
    (folder / "gone.wav").symlink_to(folder / "not there.wav")
    for name in ("cut.wav", "cut.flac", "cut.mp3", "cut.ogg", "cut.opus", "cut.aiff"):
        data = write(folder / name, tune(6, seed=3)).read_bytes()
        (folder / name).write_bytes(data[: len(data) * 2 // 3])
    for name in ("bits.flac", "bits.ogg"):
        data = bytearray(write(folder / name, tune(6, seed=4)).read_bytes())
        middle = len(data) // 2
        data[middle : middle + 300] = bytes(300)
        (folder / name).write_bytes(data)
    return {
        ("short.wav", "too_short"),
        ("silent.wav", "silent"),
        ("opposite.wav", "silent"),
        ("dc.wav", "dc"),
        ("the same again.flac", "duplicate"),
        ("nan.wav", "nonfinite"),
        ("infinite.wav", "nonfinite"),
        ("huge.wav", "corrupt"),
        ("empty.wav", "empty"),
        ("no samples.wav", "empty"),
        ("text.wav", "not_audio"),
        ("page.mp3", "not_audio"),
        ("header only.flac", "corrupt"),
        ("gone.wav", "unreadable"),
        *((name, "truncated") for name in ("cut.wav", "cut.flac", "cut.mp3", "cut.ogg")),
        *((name, "truncated") for name in ("cut.opus", "cut.aiff")),
        *((name, "corrupt") for name in ("bits.flac", "bits.ogg")),
    }


def test_every_unusable_file_is_skipped_for_its_own_reason(tmp_path):
    expected = make_bad_files(tmp_path / "in")
    (tmp_path / "in" / "cover.jpg").write_bytes(b"\xff\xd8\xff\xe0 a picture")
    (tmp_path / "in" / "._a good one.wav").write_bytes(b"a resource fork")
    said = []
    corpus = prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, workers=0, say=said.append)
    assert reasons(tmp_path / "out") == expected
    assert list(tracks(corpus)) == ["in/a good one.wav"]
    counts = report(tmp_path / "out")
    assert counts["found"] == counts["packed"] + len(counts["skipped"]) == len(expected) + 1
    assert counts["other_files"] == 1
    assert counts["skipped_reasons"] == Counter(reason for _, reason in expected)
    for reason in counts["skipped_reasons"]:
        assert reason in said[-1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable(tmp_path):
    music(tmp_path / "in", 2)
    (tmp_path / "in" / "song 1.flac").chmod(0)
    prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, **QUIET)
    assert reasons(tmp_path / "out") == {("song 1.flac", "unreadable")}


@pytest.mark.skipif(pyav_installed(), reason="PyAV reads m4a")
def test_a_file_that_needs_pyav_says_how_to_install_it(tmp_path):
    music(tmp_path / "in", 1)
    (tmp_path / "in" / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(1000))
    (tmp_path / "in" / "b.aac").write_bytes(b"\xff\xf1" + bytes(1000))
    prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, **QUIET)
    assert reasons(tmp_path / "out") == {("a.m4a", "unreadable"), ("b.aac", "unreadable")}
    assert "pip install av" in report(tmp_path / "out")["skipped"][0]["detail"]


def test_what_is_odd_but_usable_is_packed_and_noted(tmp_path):
    folder = tmp_path / "in"
    write(folder / "loud.wav", 8 * tune(6, seed=1))
    side = tune(6, seed=2)
    write(folder / "cancels.wav", np.stack([side, -0.95 * side], axis=1))
    write(folder / "high.wav", tune(6, seed=3, rate=44100), rate=44100)
    write(folder / "really flac.mp3", tune(6, seed=4), container="FLAC")
    piped = bytearray(write(folder / "piped.wav", tune(6, seed=5)).read_bytes())
    at = piped.index(b"data") + 4
    piped[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    (folder / "piped.wav").write_bytes(piped)
    write(folder / "nameless", tune(6, seed=6), container="FLAC")
    write(folder / "flac.raw", tune(6, seed=8), container="FLAC")
    write(folder / "labels.wav", tune(6, seed=7))
    (folder / "labels.json").write_text('{"key": NaN', encoding="utf-8")
    corpus = prepare([folder], tmp_path / "out", SETTINGS, **QUIET)
    assert reasons(tmp_path / "out", "noted") == {
        ("loud.wav", "clipped"),
        ("cancels.wav", "channels_cancel"),
        ("high.wav", "resampled"),
        ("really flac.mp3", "wrong_extension"),
        ("nameless", "wrong_extension"),
        ("flac.raw", "wrong_extension"),
        ("piped.wav", "wrong_header"),
        ("labels.wav", "broken_labels"),
    }
    assert report(tmp_path / "out")["skipped"] == []
    assert sum(len(samples) for samples, _ in tracks(corpus)["in/piped.wav"]) == 6 * RATE


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.opus"])
def test_the_clips_of_a_track_put_together_are_the_resampled_track(tmp_path, name):
    rate = 48000 if name == "a.opus" else 44100
    stereo = np.stack([tune(13.7, seed=1, rate=rate), tune(13.7, seed=2, rate=rate)], axis=1)
    path = write(tmp_path / "in" / name, stereo, rate=rate)
    whole, _ = soundfile.read(path, dtype="float32")
    expected, _ = quantise(soxr.resample(to_mono(whole), rate, RATE, quality="HQ"))
    corpus = prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, **QUIET)
    (clips,) = tracks(corpus).values()
    together = np.concatenate([samples for samples, _ in clips]) * 32768
    assert abs(len(together) - 13.7 * RATE) < 0.1 * RATE
    assert np.array_equal(together, expected)
    offsets = [metadata["offset_samples"] for _, metadata in clips]
    lengths = [len(samples) for samples, _ in clips]
    assert offsets == list(np.cumsum([0, *lengths[:-1]]))
    assert lengths[:-1] == [4 * RATE] * (len(clips) - 1)
    assert [metadata["offset_seconds"] for _, metadata in clips] == [o / RATE for o in offsets]


@pytest.mark.parametrize(
    ("samples", "lengths"),
    [
        (4 * RATE, [4 * RATE]),
        (4 * RATE + 1, [4 * RATE + 1]),
        (6 * RATE - 1, [6 * RATE - 1]),
        (6 * RATE, [4 * RATE, 2 * RATE]),
        (8 * RATE, [4 * RATE, 4 * RATE]),
        (9 * RATE, [4 * RATE, 5 * RATE]),
        (10 * RATE, [4 * RATE, 4 * RATE, 2 * RATE]),
        (2 * RATE, [2 * RATE]),
    ],
)
def test_a_remainder_too_short_for_a_clip_stays_with_the_last(tmp_path, samples, lengths):
    write(tmp_path / "in" / "a.flac", tune(11)[:samples])
    corpus = prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, **QUIET)
    assert corpus.split("train").num_samples.tolist() == lengths


def test_labels_travel_whole_with_every_clip(tmp_path):
    write(tmp_path / "in" / "a.flac", tune(9))
    labels = {"tempo": 120, "beats": [0.5, 7.5]}
    (tmp_path / "in" / "a.json").write_text(json.dumps(labels), encoding="utf-8")
    corpus = prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, **QUIET)
    (clips,) = tracks(corpus).values()
    assert [metadata["labels"] for _, metadata in clips] == [labels] * 2
    assert report(tmp_path / "out")["other_files"] == 0


def test_two_tracks_are_enough_for_a_valid_split_and_one_is_not(tmp_path):
    music(tmp_path / "in", 2)
    two = prepare([tmp_path / "in"], tmp_path / "two", SETTINGS, **QUIET)
    assert two.seconds("train") > 0 and two.seconds("valid") > 0
    one = prepare([tmp_path / "in" / "song 0.flac"], tmp_path / "one", SETTINGS, **QUIET)
    assert one.seconds("train") > 0 and one.seconds("valid") == 0


def test_the_split_is_by_track_near_its_fraction_and_drawn_by_the_seed(tmp_path):
    music(tmp_path / "in", 8)
    held_out = set()
    for seed in range(3):
        settings = PrepareSettings(clip_seconds=4, min_seconds=2, valid_fraction=0.4, seed=seed)
        corpus = prepare([tmp_path / "in"], tmp_path / str(seed), settings, **QUIET)
        valid = {
            corpus.split("valid").read_metadata(clip)["track"]
            for clip in range(len(corpus.split("valid")))
        }
        train = {
            corpus.split("train").read_metadata(clip)["track"]
            for clip in range(len(corpus.split("train")))
        }
        assert not valid & train and len(valid | train) == 8
        share = corpus.seconds("valid") / (corpus.seconds("valid") + corpus.seconds("train"))
        assert 0.25 < share < 0.55
        held_out.add(frozenset(valid))
    assert len(held_out) > 1


def test_awkward_names_give_unique_plain_keys(tmp_path):
    for number, name in enumerate(
        [
            "\u00c4hnlich.flac",
            "ahnlich.flac",
            "song.v1.2.flac",
            "x" * 200 + ".flac",
            "\u65e5\u672c.flac",
        ]
    ):
        write(tmp_path / "a" / "in" / name, tune(3, seed=number))
    write(tmp_path / "b" / "in" / "ahnlich.flac", tune(3, seed=9))
    corpus = prepare([tmp_path / "a/in", tmp_path / "b/in"], tmp_path / "out", SETTINGS, **QUIET)
    keys = [
        corpus.split(name).key(clip)
        for name in ("train", "valid")
        for clip in range(len(corpus.split(name)))
    ]
    assert len(set(keys)) == 6
    assert all(key.isascii() and "." not in key and "/" not in key for key in keys)


def test_the_result_depends_neither_on_the_run_nor_on_the_number_of_workers(tmp_path):
    music(tmp_path / "in")
    make_bad_files(tmp_path / "in" / "bad")
    outs = [tmp_path / "first", tmp_path / "second", tmp_path / "parallel"]
    for out, workers in zip(outs, (0, 0, 2), strict=True):
        prepare([tmp_path / "in"], out, SETTINGS, workers=workers, say=lambda message: None)
    first, second, parallel = map(content, outs)
    assert "train-000001.tar" in first
    assert first == second == parallel


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 3, 5, 6, 7, 8])
def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path, monkeypatch, after):
    music(tmp_path / "in")
    prepare([tmp_path / "in"], tmp_path / "whole", SETTINGS, **QUIET)
    replace = Path.replace
    steps = iter(range(10**6))

    def stop_in_the_middle(path, target):
        # Records, shards and the index all take their names here.
        if Path(target).suffix in (".json", ".tar") and next(steps) == after + 1:
            raise Stop
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop_in_the_middle)
        with pytest.raises(Stop):
            prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, **QUIET)
    assert not (tmp_path / "out" / "index.json").exists()
    said = []
    prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, workers=0, say=said.append)
    assert "continuing" in said[0]
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not (tmp_path / "out" / ".work").exists()


def test_a_finished_corpus_is_left_alone_and_other_settings_or_sources_are_refused(tmp_path):
    music(tmp_path / "in", 2)
    out = tmp_path / "out"
    prepare([tmp_path / "in"], out, SETTINGS, **QUIET)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    said = []
    prepare([tmp_path / "in"], out, SETTINGS, workers=0, say=said.append)
    assert "nothing to do" in said[0]
    other = PrepareSettings(clip_seconds=5, min_seconds=2, shard_mb=0.5)
    with pytest.raises(InputError, match=r"clip_seconds was 4, now 5"):
        prepare([tmp_path / "in"], out, other, **QUIET)
    write(tmp_path / "in" / "new.flac", tune(3, seed=8))
    with pytest.raises(InputError, match="were 2 audio files, now 3"):
        prepare([tmp_path / "in"], out, SETTINGS, **QUIET)
    assert times == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_a_folder_with_tars_of_somebody_else_is_not_touched(tmp_path):
    music(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train-000000.tar").write_bytes(b"precious")
    with pytest.raises(InputError, match="Choose an empty --out"):
        prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, **QUIET)
    assert (tmp_path / "out" / "train-000000.tar").read_bytes() == b"precious"


def test_without_usable_audio_the_error_counts_the_reasons_and_leaves_no_corpus(tmp_path):
    write(tmp_path / "in" / "short.wav", tune(1))
    with pytest.raises(DataError, match=r"too_short +1"):
        prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, **QUIET)
    with pytest.raises(InputError):
        open_corpus(tmp_path / "out")
    lower = PrepareSettings(clip_seconds=4, min_seconds=0.5)
    assert prepare([tmp_path / "in"], tmp_path / "out", lower, **QUIET).seconds("train") == 1


def fatal_for_three(item):
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def minus(item):
    return -item


def test_a_file_that_kills_its_process_is_named_and_the_others_are_not_lost(tmp_path):
    results = map_unordered(
        fatal_for_three, range(8), workers=2, crashed=minus, decoder_log=tmp_path / "log"
    )
    assert sorted(results) == [-3, 0, 1, 2, 4, 5, 6, 7]


def command(*arguments, program=("launch/prepare.py",)):
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_packs_and_ends_with_the_documented_exit_status(tmp_path):
    music(tmp_path / "in", 2)
    write(tmp_path / "short" / "short.wav", tune(1))
    out = tmp_path / "out"
    options = ("--clip-seconds", 4, "--min-seconds", 2, "--workers", 0)
    runs = [
        (0, command(tmp_path / "in", "--out", out, *options)),
        (2, command(tmp_path / "nowhere", "--out", tmp_path / "a")),
        (2, command("--out", tmp_path / "b")),
        (2, command(tmp_path / "in", "--out", tmp_path / "c", "--sample-rate", 7)),
        (3, command(tmp_path / "short", "--out", tmp_path / "d", *options)),
    ]
    for status, process in runs:
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == status, stderr
        if status:
            assert stderr.count("error: ") == 1 and "Traceback" not in stderr
        else:
            assert "Corpus in" in stdout and "Next: " in stdout
    assert open_corpus(out).seconds("train") > 0


def test_the_command_can_be_interrupted_and_run_again(tmp_path):
    music(tmp_path / "in", 12)
    options = ("--clip-seconds", 4, "--min-seconds", 2, "--workers", 1)
    process = command(tmp_path / "in", "--out", tmp_path / "out", *options)
    deadline = time.monotonic() + 30
    while not list((tmp_path / "out").glob(".work/*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75 and "Traceback" not in stderr
    again = command(tmp_path / "in", "--out", tmp_path / "out", *options)
    stdout, _ = again.communicate(timeout=60)
    assert again.returncode == 0 and "continuing" in stdout
    settings = PrepareSettings(clip_seconds=4, min_seconds=2)
    prepare([tmp_path / "in"], tmp_path / "whole", settings, **QUIET)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


INTERRUPTED_READ = """
import os, signal, sys
from etude.data.containers.promise import PartFile
from etude.launch.cli import run
from etude.launch.prepare import main

readinto, left = PartFile.readinto, int(sys.argv.pop(1))

def interrupted(file, buffer):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return readinto(file, buffer)

PartFile.readinto = interrupted
run(main)
"""


@pytest.mark.parametrize("read", [1, 2, 20, 60])
def test_an_interrupt_that_a_decoder_drops_makes_no_file_a_broken_one(tmp_path, read):
    # libsndfile reads through a callback; what is raised in there, Python drops.
    music(tmp_path / "in", 4)
    options = ("--clip-seconds", 4, "--min-seconds", 2, "--workers", 0)
    arguments = (tmp_path / "in", "--out", tmp_path / "out", *options)
    process = command(read, *arguments, program=("-c", INTERRUPTED_READ))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75 and "from cffi callback" in stderr
    again = command(*arguments)
    assert again.wait(timeout=60) == 0
    settings = PrepareSettings(clip_seconds=4, min_seconds=2)
    prepare([tmp_path / "in"], tmp_path / "whole", settings, **QUIET)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_moving_the_sources_elsewhere_changes_no_byte(tmp_path):
    music(tmp_path / "here" / "in", 3)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    for place in ("here", "there"):
        prepare([tmp_path / place / "in"], tmp_path / f"out {place}", SETTINGS, **QUIET)
    assert content(tmp_path / "out here") == content(tmp_path / "out there")


def test_a_stated_md5_may_be_left_unread_and_broken_frames_are_found_all_the_same(tmp_path):
    music(tmp_path / "in")
    write(tmp_path / "in" / "stated.flac", tune(8, seed=8))
    write(tmp_path / "in" / "broken.flac", tune(9, seed=9))
    for name, place in (("stated", 30), ("broken", 60_000)):
        path = tmp_path / "in" / f"{name}.flac"
        changed = bytearray(path.read_bytes())
        changed[place] ^= 1
        path.write_bytes(changed)
    prepare([tmp_path / "in"], tmp_path / "checked", SETTINGS, **QUIET)
    trusting = replace(SETTINGS, flac_md5=False)
    prepare([tmp_path / "in"], tmp_path / "trusted", trusting, **QUIET)
    assert reasons(tmp_path / "checked") == {("stated.flac", "corrupt"), ("broken.flac", "corrupt")}
    assert reasons(tmp_path / "trusted") == {("broken.flac", "corrupt")}
    with pytest.raises(InputError, match="flac_md5 was False, now True"):
        prepare([tmp_path / "in"], tmp_path / "trusted", SETTINGS, **QUIET)


def test_a_corpus_from_before_the_choice_is_one_with_the_check(tmp_path):
    music(tmp_path / "in")
    prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, **QUIET)
    path = tmp_path / "out" / ".prepare.json"
    older = json.loads(path.read_bytes())
    assert older["settings"].pop("flac_md5") is True
    path.write_text(json.dumps(older))
    before = content(tmp_path / "out")
    prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, **QUIET)
    assert content(tmp_path / "out") == before
