import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from audio_files import tune, write
from prepare_parts import QUIET, SETTINGS, collection, content

from etude.data.errors import DataError, InputError
from etude.data.prepare import prepare
from etude.data.prepare_ranks import LaunchBroken, Place, joined, place_from_environment
from etude.data.prepare_settings import PrepareSettings

ROOT = Path(__file__).parents[2]
OPTIONS = ("--clip-seconds", "4", "--min-seconds", "2", "--shard-mb", "0.5", "--workers", "0")


def rank_process(rank, ranks, *arguments):
    return subprocess.Popen(
        [sys.executable, "launch/prepare.py", *map(str, arguments), *OPTIONS],
        cwd=ROOT,
        env=os.environ | {"RANK": str(rank), "WORLD_SIZE": str(ranks)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch(ranks, *arguments):
    return [rank_process(rank, ranks, *arguments) for rank in range(ranks)]


def in_threads(ranks, call):
    """``call(place)`` for every rank at once: (results, errors) by rank."""
    results, errors = {}, {}

    def run(rank):
        try:
            results[rank] = call(Place(rank, ranks))
        except Exception as error:  # noqa: BLE001 - handed to the test
            errors[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return results, errors


@pytest.mark.parametrize("ranks", [2, 3, 20])
def test_any_number_of_ranks_ends_with_the_bytes_of_one_process(tmp_path, ranks):
    collection(tmp_path / "in")
    prepare([tmp_path / "in"], tmp_path / "one", SETTINGS, **QUIET)
    out = tmp_path / "out"
    results, errors = in_threads(
        ranks, lambda place: prepare([tmp_path / "in"], out, SETTINGS, place=place, **QUIET)
    )
    assert not errors
    assert results[0] is not None and all(results[rank] is None for rank in range(1, ranks))
    assert content(out) == content(tmp_path / "one")
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == []


def test_the_command_under_a_launcher_gives_the_same_corpus_and_only_rank_0_tells_of_it(tmp_path):
    collection(tmp_path / "in")
    prepare([tmp_path / "in"], tmp_path / "one", SETTINGS, **QUIET)
    ranks = launch(2, tmp_path / "in", "--out", tmp_path / "out")
    said = [process.communicate(timeout=90) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    assert "Corpus in" in said[0][0] and said[1][0] == ""
    assert "rank 1: packing: 4 of 4 files" in said[1][1]
    assert content(tmp_path / "out") == content(tmp_path / "one")
    again = launch(2, tmp_path / "in", "--out", tmp_path / "out")
    said = [process.communicate(timeout=90) for process in again]
    assert [process.returncode for process in again] == [0, 0], said
    assert "nothing to do" in said[0][0]
    assert not (tmp_path / "out" / ".ranks").exists()


def test_a_rank_packs_only_its_own_part(tmp_path, monkeypatch):
    collection(tmp_path / "in")
    packed = {}
    real = prepare.__globals__["pack_track"]

    def noting(source, settings, work):
        packed.setdefault(threading.get_ident(), []).append(source.name)
        return real(source, settings, work)

    monkeypatch.setitem(prepare.__globals__, "pack_track", noting)
    in_threads(
        2,
        lambda place: prepare([tmp_path / "in"], tmp_path / "o", SETTINGS, place=place, **QUIET),
    )
    parts = list(packed.values())
    assert [len(part) for part in parts] == [4, 4] and not set(parts[0]) & set(parts[1])


def test_a_killed_rank_is_missed_with_a_clear_error_and_the_same_launch_again_continues(tmp_path):
    collection(tmp_path / "in")
    prepare([tmp_path / "in"], tmp_path / "one", SETTINGS, **QUIET)
    out = tmp_path / "out"
    # A short wait is enough: the killed one is stopped before it packs its last file.
    arguments = (tmp_path / "in", "--out", out)
    survivor, victim = launch(2, *arguments, "--wait-minutes", "0.05")
    deadline = time.monotonic() + 60
    while not (out / ".ranks" / "here-1").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=60)
    _, stderr = survivor.communicate(timeout=60)
    assert survivor.returncode == 75, stderr
    assert "nothing has moved" in stderr and "rank 1" in stderr and "Traceback" not in stderr
    again = launch(2, *arguments)
    said = [process.communicate(timeout=90) for process in again]
    assert [process.returncode for process in again] == [0, 0], said
    assert content(out) == content(tmp_path / "one")


def test_a_rank_that_is_interrupted_ends_the_others_at_once(tmp_path):
    collection(tmp_path / "in", 28)  # more than are packed before a signal arrives
    out = tmp_path / "out"
    survivor, interrupted = launch(2, tmp_path / "in", "--out", out)
    deadline = time.monotonic() + 60
    while not list(out.glob(".work/*.json")) and time.monotonic() < deadline:
        time.sleep(0.001)
    interrupted.send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=60)[1] for process in (survivor, interrupted)]
    assert [survivor.returncode, interrupted.returncode] == [75, 75], said
    assert "rank 1 failed: interrupted" in said[0]


def test_a_waiting_rank_says_for_what(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("etude.data.prepare_ranks._SAY_SECONDS", 0.05)
    (tmp_path / "out").mkdir()
    with pytest.raises(LaunchBroken, match=r"has waited .* for ranks 1, 2 to start"):
        with joined(tmp_path / "out", Place(0, 3), patience=0.5) as peers:
            peers.begin("key", lambda: True)
    with pytest.raises(LaunchBroken, match=r"for rank 0 to begin"):
        with joined(tmp_path / "out", Place(1, 3), patience=0.5) as peers:
            peers.begin("key", lambda: True)
    stderr = capfd.readouterr().err
    assert "rank 0: waits for ranks 1, 2 to start" in stderr
    assert "rank 1: waits for rank 0 to begin" in stderr
    assert "rank 1: gives up" in stderr


def test_what_moves_is_waited_for_longer_than_the_patience(tmp_path):
    out = tmp_path / "out"
    (out / ".work").mkdir(parents=True)
    left = iter(range(12))
    with joined(out, Place(0, 2), patience=0.5) as peers:

        def missing():
            # A long file that grows, while the number of finished ones stays.
            number = next(left, None)
            (out / ".work" / "a.clips.part").write_bytes(bytes(number or 0))
            return "" if number is None else "1 of 2 files"

        peers.wait(missing)
        with pytest.raises(LaunchBroken, match="nothing has moved"):
            peers.wait(lambda: "1 of 2 files")


def test_one_process_does_not_wait_for_what_nobody_else_makes(tmp_path, monkeypatch):
    collection(tmp_path / "in", 2)
    real = prepare.__globals__["write_shard"]

    def losing(plan, out, work):
        real(plan, out, work)
        (out / plan.file).unlink()

    monkeypatch.setitem(prepare.__globals__, "write_shard", losing)
    with pytest.raises(DataError, match=r"2 of 2 shards to write.* run the same command again"):
        prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, **QUIET)


def test_two_commands_refuse_each_other_with_one_process_and_with_several(tmp_path):
    collection(tmp_path / "in", 2)
    out = tmp_path / "out"
    out.mkdir()

    def other(place=None):
        prepare([tmp_path / "in"], out, SETTINGS, place=place, patience_seconds=1, **QUIET)

    with joined(out, Place(0, 1), patience=1):
        for place in (None, Place(0, 2)):
            with pytest.raises(InputError, match="another prepare is at work in this folder"):
                other(place)
        with pytest.raises(LaunchBroken, match="rank 0 to begin"):
            other(Place(1, 2))
    assert not (out / ".work").exists()


def test_a_rank_that_outlived_its_launch_keeps_others_out_as_long_as_it_works(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("etude.data.prepare_ranks._RELUCTANCE", 0.2)
    collection(tmp_path / "in", 2)
    out = tmp_path / "out"
    out.mkdir()
    with joined(out, Place(1, 2), patience=1):
        for place in (Place(), Place(1, 2)):
            with pytest.raises(InputError, match=r"at work in this folder \(as rank 1"):
                prepare([tmp_path / "in"], out, SETTINGS, place=place, **QUIET)
    assert prepare([tmp_path / "in"], out, SETTINGS, **QUIET) is not None
    assert not (out / ".ranks").exists()


def test_a_rank_that_waits_on_ends_when_another_launch_begins(tmp_path):
    out = tmp_path / "out"
    out.mkdir()

    def first(place):
        with joined(out, place, patience=30) as peers:
            peers.begin("key", lambda: True)
            if place.rank == 1:
                peers.wait(lambda: "what never comes")

    collection(tmp_path / "in", 2)
    stale = threading.Thread(target=lambda: in_threads(2, first), daemon=True)
    stale.start()
    deadline = time.monotonic() + 30
    while not (out / ".ranks" / "launch").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    results, errors = in_threads(
        2, lambda place: prepare([tmp_path / "in"], out, SETTINGS, place=place, **QUIET)
    )
    assert not errors and results[0] is not None
    stale.join(timeout=10)
    assert not stale.is_alive()


def test_ranks_that_found_other_settings_or_sources_end_together(tmp_path):
    collection(tmp_path / "in", 2)
    other = PrepareSettings(clip_seconds=5, min_seconds=2, shard_mb=0.5)
    _, errors = in_threads(
        2,
        lambda place: prepare(
            [tmp_path / "in"],
            tmp_path / "out",
            (SETTINGS, other)[place.rank],
            place=place,
            **QUIET,
        ),
    )
    assert "rank 1 found other settings or sources than rank 0" in str(errors[0])
    assert isinstance(errors[0], InputError) and isinstance(errors[1], LaunchBroken)
    assert str(errors[1]).startswith("rank 0 failed")
    assert not (tmp_path / "out" / ".prepare.json").exists()


def test_what_fails_in_one_rank_ends_the_others(tmp_path, monkeypatch):
    collection(tmp_path / "in")

    def fails(plan, out, work):
        raise DataError("the disk lost something")

    monkeypatch.setitem(prepare.__globals__, "write_shard", fails)
    real = prepare.__globals__["_Job"]._write_all

    def only_rank_1(job, plans):
        if job.peers.place.rank == 1:
            real(job, plans)

    monkeypatch.setattr(prepare.__globals__["_Job"], "_write_all", only_rank_1)
    _, errors = in_threads(
        2,
        lambda place: prepare([tmp_path / "in"], tmp_path / "o", SETTINGS, place=place, **QUIET),
    )
    assert isinstance(errors[1], DataError)
    assert "rank 1 failed: the disk lost something" in str(errors[0])


def test_without_usable_audio_rank_0_says_so_and_nothing_is_left(tmp_path):
    write(tmp_path / "in" / "short.wav", tune(1))
    out = tmp_path / "out"
    results, errors = in_threads(
        2, lambda place: prepare([tmp_path / "in"], out, SETTINGS, place=place, **QUIET)
    )
    assert isinstance(errors[0], DataError) and results == {1: None}
    assert [path.name for path in out.iterdir()] == ["report.json"]


def test_a_larger_launch_killed_is_finished_by_a_smaller_one(tmp_path):
    collection(tmp_path / "in")
    prepare([tmp_path / "in"], tmp_path / "one", SETTINGS, **QUIET)
    out = tmp_path / "out"
    ranks = launch(3, tmp_path / "in", "--out", out)
    deadline = time.monotonic() + 60
    while not list(out.glob(".work/*.json")) and time.monotonic() < deadline:
        time.sleep(0.001)
    for process in ranks:
        process.send_signal(signal.SIGKILL)
    for process in ranks:
        process.communicate(timeout=60)
    assert (out / ".ranks").exists() and not (out / "index.json").exists()
    said = []
    prepare([tmp_path / "in"], out, SETTINGS, workers=0, say=said.append)
    assert "continuing" in said[0]
    assert content(out) == content(tmp_path / "one")
    assert not (out / ".ranks").exists()


def test_work_files_go_once_every_shard_that_needs_them_is_there(tmp_path):
    collection(tmp_path / "in")
    out = tmp_path / "out"
    seen = []
    real = prepare.__globals__["Release"].after

    def watched(release, plan):
        real(release, plan)
        tars = {path.name for path in out.glob("*.tar")}
        held = {path.stem for path in out.glob(".work/*.clips")}
        for track_id, files in release._shards.items():
            if not set(files) <= tars:
                assert track_id in held
            elif plan.file in files:
                assert track_id not in held
        seen.append(plan.file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare.__globals__["Release"], "after", watched)
        prepare([tmp_path / "in"], out, SETTINGS, **QUIET)
    assert len(seen) > 2


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place(0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, Place(3, 8)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, Place(2, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, Place(0, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, Place(0, 1)),
    ],
)
def test_the_place_is_that_of_the_launcher(environment, place):
    assert place_from_environment(environment) == place


@pytest.mark.parametrize(
    "environment", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "0"}, {"RANK": "", "WORLD_SIZE": ""}]
)
def test_half_a_place_is_an_error(environment):
    with pytest.raises(InputError, match="RANK must be a rank below WORLD_SIZE"):
        place_from_environment(environment)


def test_the_demo_is_not_rendered_under_a_launcher(tmp_path):
    process = rank_process(0, 2, "--demo", "--out", tmp_path / "out")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2 and "without a launcher" in stderr
    assert list(tmp_path.iterdir()) == []
