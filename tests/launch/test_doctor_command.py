"""``launch/doctor.py`` as a user runs it, alone and with a second rank, that comes or does not.

The commands are run once, two at a time; every test looks at what they said and left behind.
"""

import os
import re
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import yaml
from run_parts import ENVIRONMENT, LAUNCH, PYTHON, TORCHRUN, Done, free_port, together, train
from training_parts import SMALL

from etude.data.shards import Corpus

MARKS = ("ok", "warning", "failed", "not checked")
SECONDS = ("--seconds", "3", "--timeout", "60")
OTHERWISE = ("data.workers=1", "train.engine=ddp", "train.compile=true")


def doctor(
    *words: object, launcher: Sequence[str] = PYTHON, environment: dict[str, str] | None = None
) -> Done:
    return subprocess.run(
        [*launcher, str(LAUNCH / "doctor.py"), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**ENVIRONMENT, **(environment or {})},
    )


def marks(done: Done) -> dict[str, str]:
    """Mark by check."""
    found = {}
    for line in done.stdout.splitlines():
        mark, check = line[:13].strip(), line[13:29].strip()
        if mark in MARKS:
            found[check] = mark
    return found


def found(done: Done, check: str) -> str:
    """What was found, and what to do."""
    lines = done.stdout.splitlines()
    (number,) = (n for n, line in enumerate(lines) if line[13:29].strip() == check)
    advice = lines[number + 1] if number + 1 < len(lines) else ""
    return lines[number][29:] + (advice if "->" in advice else "")


def rank(number: int, port: int) -> dict[str, str]:
    """The environment of one of two ranks."""
    return {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@pytest.fixture(scope="module")
def recipe(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    cqt = {"kind": "cqt", "bins": 24, "bins_per_octave": 12, "fmin": 220.0, "scale": "log"}
    values = {
        "run": {"dir": str(folder / "run")},
        "data": {"corpus": str(small_corpus.root), "crop_seconds": 1.0, "workers": 0},
        "model": SMALL,
        "objective": {"targets": {"cqt": cqt}},
        "train": {"max_steps": 100, "global_batch": 8, "micro_batch": 2, "precision": "fp32"},
        "optim": {"lr": 1e-3, "warmup_steps": 2},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def lock(recipe: Path) -> Path:
    """What a start that was killed while it compiled has left an hour ago."""
    path = recipe.parent / "extensions" / "fused_adam" / "lock"
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (time.time() - 3600,) * 2)
    return path


@pytest.fixture(scope="module")
def done(recipe: Path, lock: Path) -> dict[str, Done]:
    (recipe.parent / "run").mkdir()
    extensions = {"TORCH_EXTENSIONS_DIR": str(lock.parents[1])}
    made = together(
        partial(doctor, recipe, *SECONDS, environment=extensions),
        partial(doctor, recipe, *OTHERWISE, *SECONDS, launcher=TORCHRUN),
        partial(doctor, recipe, *SECONDS, "data.corpus=/nowhere"),
        partial(doctor, "--timeout", 2, environment=rank(0, free_port())),
        partial(doctor, "--timeout", 2, environment=rank(1, free_port())),
    )
    names = ("alone", "two ranks", "no corpus", "without rank 1", "without rank 0")
    return dict(zip(names, made, strict=True))


def test_a_machine_that_can_train_is_told_so(done: dict[str, Done]) -> None:
    for name in ("alone", "two ranks"):
        assert done[name].returncode == 0, done[name].stdout + done[name].stderr
        assert done[name].stdout.splitlines()[-1].startswith("verdict: ready")
        assert "failed" not in marks(done[name]).values()


def test_what_could_not_be_looked_at_is_told_with_the_reason(done: dict[str, Done]) -> None:
    assert marks(done["alone"])["collectives"] == "not checked"
    assert found(done["alone"], "collectives") == "one rank alone"


def test_ranks_meet_and_the_slowest_is_named(done: dict[str, Done]) -> None:
    two = done["two ranks"]
    assert found(two, "ranks").startswith("2 ranks on 1 host, all came")
    assert marks(two)["ranks alike"] == "ok"
    assert re.search(r"slowest rank [01] \(.+\), [\d.]+ times", found(two, "all_reduce"))
    assert re.search(r"rank [01] \(.+\) comes to the barrier last", found(two, "arrival"))
    assert two.stdout.count("verdict") == 1


def test_an_update_is_timed_as_the_run_would_make_it(done: dict[str, Done]) -> None:
    assert "update of 8 crops (4 x 2 on each of 1 ranks, deepspeed)" in found(done["alone"], "step")
    two = "update of 8 crops (2 x 2 on each of 2 ranks, ddp, without train.compile)"
    assert two in found(done["two ranks"], "step")
    for name in ("alone", "two ranks"):
        assert re.search(r"crops/s are read, .* are trained on", found(done[name], "data speed"))


def test_nothing_is_left_behind(done: dict[str, Done], recipe: Path) -> None:
    assert list((recipe.parent / "run").iterdir()) == []
    assert sorted(path.name for path in recipe.parent.iterdir()) == [
        "extensions",
        "run",
        recipe.name,
    ]


def test_a_stale_lock_is_named(done: dict[str, Done], lock: Path) -> None:
    assert marks(done["alone"])["compile locks"] == "warning"
    assert str(lock) in found(done["alone"], "compile locks")
    assert "compile locks" in done["alone"].stdout.splitlines()[-1]


def test_a_corpus_that_is_missing_fails_and_the_machine_is_looked_at_all_the_same(
    done: dict[str, Done],
) -> None:
    missing = done["no corpus"]
    assert missing.returncode == 2
    assert "/nowhere: no prepared corpus here" in found(missing, "corpus")
    assert marks(missing)["run.dir writing"] == "ok"
    assert marks(missing)["loader and step"] == "not checked"
    assert missing.stdout.splitlines()[-1].startswith("verdict: not ready. Failed: corpus;")


def test_a_rank_that_never_comes_is_named(done: dict[str, Done]) -> None:
    alone = done["without rank 1"]
    assert alone.returncode == 76
    assert "rank 1 did not come to 'start' within 2 s" in found(alone, "ranks")
    assert marks(alone)["versions"] == "ok"
    assert "Failed: ranks" in alone.stdout.splitlines()[-1]


def test_without_rank_0_another_says_so(done: dict[str, Done]) -> None:
    other = done["without rank 0"]
    assert other.returncode == 76
    (line,) = (line for line in other.stderr.splitlines() if line.startswith("error: "))
    assert "rank 0 has not come" in line and "MASTER_ADDR" in line


def test_settings_that_are_wrong_end_as_in_training(recipe: Path) -> None:
    done = doctor(recipe, "trian.max_steps=3")
    assert done.returncode == 2 and done.stderr == train(recipe, "trian.max_steps=3").stderr


def test_a_library_that_does_not_load_is_told_with_all_versions(tmp_path: Path) -> None:
    (tmp_path / "webdataset.py").write_text("raise ImportError('built for another Python')")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = doctor(environment={"PYTHONPATH": paths})
    assert done.returncode == 2, done.stderr
    assert "built for another Python" in found(done, "imports")
    assert "webdataset" in found(done, "versions")
    assert done.stdout.splitlines()[-1].startswith("verdict: not ready. Failed: imports")
