"""``launch/train.py`` as a user runs it: real processes, real launchers, a run folder at the end.

Starting a process costs seconds, so the runs are made once, two at a time, and every test looks at
what they left behind. All train the same tiny model on the same clips:

    straight    8 updates by plain python            halves     3 of them, then the rest
    noisy       8 with ZeRO stage 1 and dropout      noisy halves
    two ranks   4 by the deepspeed command with two ranks, then the rest by plain python
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import yaml
from run_parts import (
    ENVIRONMENT,
    LAUNCH,
    PYTHON,
    TORCHRUN,
    TRAIN,
    Done,
    Run,
    deepspeed,
    deepspeed_launch,
    run_stages,
    together,
    train,
    without_times,
)
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_parts import SMALL

from etude.data.shards import Corpus
from etude.pretrain.checkpoint import find_damage
from etude.pretrain.config_file import load_config
from etude.pretrain.inputs import check_inputs

COMMANDS = sorted(
    path.name
    for path in LAUNCH.glob("[a-z]*.py")
    if path.name not in ("cli.py", "run_config.py", "sweep_results.py")
)


def one_error(text: str) -> bool:
    """Whether this is one paragraph for the user, and nothing else."""
    return text.startswith("error: ") and text.count("\n") == 1 and text.endswith("\n")


@pytest.fixture(scope="module")
def recipe(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of everything that depends on ranks: accumulation, mixture, validation, an epoch's
    end (16 clips, 4 an update). Overrides give the rest."""
    folder = tmp_path_factory.mktemp("train")
    words = ["--features", "logmel", "--bins", "20", "--n-fft", "1024", "--clusters", "8"]
    subprocess.run(
        [sys.executable, LAUNCH / "cluster.py", small_corpus.root, *words]
        + ["--out", folder / "logmel.safetensors"],
        check=True,
        capture_output=True,
        env=ENVIRONMENT,
    )
    logmel = {"kind": "kmeans", "centroids": str(folder / "logmel.safetensors"), "final_dim": 16}
    cqt = {"kind": "cqt", "bins": 24, "bins_per_octave": 12, "fmin": 220.0, "scale": "log"}
    values = {
        "run": {"dir": str(folder / "unused")},
        "seed": 3,
        "data": {"corpus": str(small_corpus.root), "crop_seconds": 1.0, "workers": 0},
        "model": SMALL,
        "objective": {
            "targets": {"logmel": logmel, "cqt": cqt},
            "mixture": {"prob": 0.5, "group": 2, "min_seconds": 0.2, "max_seconds": 0.5},
        },
        "train": {"max_steps": 8, "global_batch": 4, "micro_batch": 2, "precision": "fp32"},
        "optim": {"lr": 1e-3, "warmup_steps": 2, "schedule_steps": 20},
        "checkpoint": {"every_steps": 3},
        "logging": {"every_steps": 1, "valid_every_steps": 3},
        "health": {"every_steps": 3},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def runs(recipe: Path) -> dict[str, Run]:
    run = partial(run_stages, recipe)
    noise = [
        "deepspeed.zero_optimization.stage=1",
        "model.dropout=0.1",
        "model.attention_dropout=0.1",
        "model.layer_drop=0.3",
        "data.workers=1",
    ]
    made = together(
        partial(run, "two ranks", (deepspeed(2), 4), (PYTHON, 8)),
        partial(run, "straight", (PYTHON, 8)),
        partial(run, "halves", (PYTHON, 3), (PYTHON, 8)),
        partial(run, "noisy", (PYTHON, 8), words=noise),
        partial(run, "noisy halves", (PYTHON, 3), (PYTHON, 8), words=noise),
    )
    return {run.folder.name: run for run in made}


def test_a_run_leaves_its_documented_folder(runs: dict[str, Run], recipe: Path) -> None:
    run = runs["straight"]
    (done,) = run.done
    assert done.returncode == 0, done.stderr
    assert f"done: 8 updates, run folder {run.folder}" in done.stdout
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("step ")] == [
        f"{step}/8" for step in range(1, 9)
    ]
    # stderr has what is worth saying and nothing of the libraries underneath.
    said = done.stderr.splitlines()
    assert all(
        re.search(r" rank 0 INFO (micro-batch: |labels: |starting at update 0$)", line)
        for line in said
    )
    assert said[-1].endswith("starting at update 0")
    assert set(said) <= set((run.folder / "train.log").read_text().splitlines())

    newest = run.folder / "checkpoints" / "step-00000008"
    assert run.exit == {
        "code": 0,
        "reason": "done",
        "step": 8,
        "rank": 0,
        "last_good_checkpoint": str(newest),
    }
    assert [path.name for path in run.checkpoints] == ["step-00000006", "step-00000008"]
    assert [find_damage(path) for path in run.checkpoints] == [None, None]
    assert (run.folder / "checkpoints" / "latest").read_text() == "step-00000008\n"

    resolved = yaml.safe_load((run.folder / "config.yaml").read_text())
    printed = train(recipe, f"run.dir={run.folder}", "--print-config")
    assert resolved["config"] == yaml.safe_load(printed.stdout)
    assert {"python", "torch", "deepspeed", "etude-music"} <= set(resolved["versions"])


def test_metrics_have_their_documented_names_and_the_loss_falls(runs: dict[str, Run]) -> None:
    run = runs["straight"]
    measured = {
        "loss",
        "feature_penalty",
        "cqt/loss",
        "logmel/loss",
        "logmel/accuracy",
        "logmel/majority_rate",
        "logmel/unigram_entropy",
        "logmel/copy_accuracy",
    }
    counted = {
        "step",
        "optim/lr",
        "optim/grad_norm",
        "audio_hours",
        "perf/crops_per_second",
        "optim/skipped_updates",
        "optim/loss_spikes",
        "optim/grad_norm_spikes",
        "optim/rollbacks",
        "perf/data_wait",
        "perf/audio_hours_per_day",
        "data/skipped",
    }
    assert [line["step"] for line in run.metrics] == list(range(1, 9))
    for line in run.metrics:
        assert counted | measured <= set(line)
        held_out = {f"valid/{name}" for name in measured}
        # Every third update and at the end.
        assert held_out <= set(line) if line["step"] in (3, 6, 8) else not held_out & set(line)
        assert line["audio_hours"] == pytest.approx(line["step"] * 4 / 3600)
    assert [line["optim/lr"] for line in run.metrics[:2]] == [0.0005, 0.001]
    assert run.metrics[-1]["loss"] < run.metrics[0]["loss"]

    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(
        [line["loss"] for line in run.metrics]
    )


def test_what_a_checkpoint_covers_was_logged_before_it_was_published(runs: dict[str, Run]) -> None:
    # Continuing cuts metrics.jsonl back to the checkpoint: a line written after it would be lost
    # for good if the run was killed between the two.
    folder = runs["straight"].folder
    manifest = folder / "checkpoints" / "step-00000008" / "manifest.json"
    assert (folder / "metrics.jsonl").stat().st_mtime_ns <= manifest.stat().st_mtime_ns


@pytest.mark.parametrize("name, whole", [("halves", "straight"), ("noisy halves", "noisy")])
def test_stopping_and_continuing_changes_no_bit(
    runs: dict[str, Run], name: str, whole: str
) -> None:
    halves, straight = runs[name], runs[whole]
    assert [done.returncode for done in (*halves.done, *straight.done)] == [0, 0, 0]
    assert "continuing at update 3" in halves.done[1].stderr
    assert without_times(halves.metrics) == without_times(straight.metrics)
    ours, theirs = (
        load_file(run.checkpoints[-1] / "encoder.safetensors") for run in (halves, straight)
    )
    assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_dropout_is_part_of_what_continues(runs: dict[str, Run]) -> None:
    clean, noisy = runs["straight"].metrics, runs["noisy"].metrics
    assert all(one["loss"] != other["loss"] for one, other in zip(clean, noisy, strict=True))


def test_two_ranks_train_as_one(runs: dict[str, Run]) -> None:
    shared, alone = runs["two ranks"], runs["straight"]
    assert shared.done[0].returncode == 0, shared.done[0].stderr
    first, expected = shared.metrics[0], alone.metrics[0]
    assert first["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    for line, other in zip(shared.metrics[:4], alone.metrics, strict=False):
        # The labels of the masked frames tell the clips, the crops and the masks apart.
        for name in ("majority_rate", "unigram_entropy"):
            assert line[f"logmel/{name}"] == other[f"logmel/{name}"]
        assert line["audio_hours"] == other["audio_hours"]
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert line["optim/grad_norm"] == pytest.approx(other["optim/grad_norm"], rel=1e-3)
    line, other = shared.metrics[2], alone.metrics[2]
    assert line["valid/logmel/majority_rate"] == other["valid/logmel/majority_rate"]
    assert line["valid/loss"] == pytest.approx(other["valid/loss"], rel=1e-3)


def test_a_run_may_continue_with_another_number_of_ranks(runs: dict[str, Run]) -> None:
    run, alone = runs["two ranks"], runs["straight"]
    assert run.done[1].returncode == 0 and "continuing at update 4" in run.done[1].stderr
    assert [line["step"] for line in run.metrics] == list(range(1, 9))
    for line, other in zip(run.metrics, alone.metrics, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_a_finished_run_is_said_to_be_done_and_not_trained_again(
    runs: dict[str, Run], recipe: Path
) -> None:
    run = runs["straight"]
    before = (run.metrics, {path: path.stat().st_mtime_ns for path in run.checkpoints})
    done = train(recipe, f"run.dir={run.folder}")
    assert done.returncode == 0 and f"done: 8 updates, run folder {run.folder}" in done.stdout
    assert "step " not in done.stdout
    assert before == (run.metrics, {path: path.stat().st_mtime_ns for path in run.checkpoints})
    assert run.exit["code"] == 0 and run.exit["step"] == 8


def copy(run: Run, folder: Path) -> Run:
    shutil.copytree(run.folder, folder)
    return Run(folder, ())


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_costs_the_updates_since_the_one_before_and_no_more(
    runs: dict[str, Run], recipe: Path, tmp_path: Path
) -> None:
    run = copy(runs["straight"], tmp_path / "run")
    flip_a_byte(run.checkpoints[-1] / "encoder.safetensors")
    done = train(recipe, f"run.dir={run.folder}")
    assert done.returncode == 0 and "continuing at update 6" in done.stderr
    assert "step-00000008 is damaged (encoder.safetensors has other content" in done.stderr
    assert without_times(run.metrics) == without_times(runs["straight"].metrics)
    assert [find_damage(path) for path in run.checkpoints] == [None, None]


def test_if_no_checkpoint_is_whole_the_run_does_not_start_anew(
    runs: dict[str, Run], recipe: Path, tmp_path: Path
) -> None:
    run = copy(runs["straight"], tmp_path / "run")
    for path in run.checkpoints:
        flip_a_byte(path / "encoder.safetensors")
    metrics = run.metrics
    done = train(recipe, f"run.dir={run.folder}")
    assert done.returncode == 5 and "Traceback" not in done.stderr
    assert one_error(done.stderr[done.stderr.index("error: ") :])
    assert run.exit["code"] == 5 and run.exit["last_good_checkpoint"] is None
    assert run.metrics == metrics


@dataclass(frozen=True)
class Stopped:
    """What a command that got SIGTERM left behind."""

    run: Run
    status: int
    errors: str


def processes_of(folder: Path) -> list[int]:
    """Living processes that were started for this run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"run.dir={folder}".encode() in (path / "cmdline").read_bytes().split(b"\0"):
                found.append(int(path.name))
        except OSError:
            continue  # it ended meanwhile
    return found


def wait_until(condition: Callable[[], bool], *, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def interrupt(
    recipe: Path,
    folder: Path,
    launcher: Sequence[str],
    ready: Callable[[int], bool],
    *,
    insist: bool = False,
) -> Stopped:
    """Starts a run without an end, sends SIGTERM to the command, waits for all to be gone.

    :param insist: whether to send it again and again until the command has ended.
    """
    words = [f"run.dir={folder}", "train.max_steps=1000000000", "checkpoint.every_steps=1000000000"]
    errors = folder.with_suffix(".stderr")
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [*launcher, str(TRAIN), str(recipe), *words, "data.workers=1"],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=ENVIRONMENT,
        )
    try:
        wait_until(lambda: process.poll() is not None or ready(process.pid))
        process.send_signal(signal.SIGTERM)
        while insist and process.poll() is None:
            time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=180)
        wait_until(lambda: not processes_of(folder))
    finally:
        for pid in processes_of(folder):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
    return Stopped(Run(folder, ()), status, errors.read_text())


LAUNCHERS = ["python", "torchrun", "deepspeed.launcher.launch", "deepspeed"]


@pytest.fixture(scope="module")
def stopped(recipe: Path) -> dict[str, Stopped]:
    launchers = [PYTHON, TORCHRUN, deepspeed_launch(1), deepspeed(2)]

    def stop(name: str, launcher: Sequence[str]) -> Stopped:
        folder = recipe.parent / f"stopped {name}"
        metrics = folder / "metrics.jsonl"
        return interrupt(
            recipe,
            folder,
            launcher,
            lambda _: metrics.is_file() and "step" in metrics.read_text(),
            insist=launcher is PYTHON,
        )

    jobs = (partial(stop, name, how) for name, how in zip(LAUNCHERS, launchers, strict=True))
    return dict(zip(LAUNCHERS, together(*jobs), strict=True))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_sigterm_publishes_a_checkpoint_and_leaves_no_process(
    stopped: dict[str, Stopped], name: str
) -> None:
    # The fixture waited until the last process of the run was gone.
    run, errors = stopped[name].run, stopped[name].errors
    assert run.exit["code"] == 75, errors
    (published,) = run.checkpoints
    assert find_damage(published) is None
    assert run.exit["last_good_checkpoint"] == str(published)
    # What it covers is what was logged: nothing is lost and nothing is repeated.
    step = run.metrics[-1]["step"]
    assert run.exit["step"] == step and published.name == f"step-{step:08d}"
    assert errors.count("error: ") == 1 and f"{published} is published" in errors


def test_sigterm_to_plain_python_ends_with_status_75_however_often_it_is_sent(
    stopped: dict[str, Stopped],
) -> None:
    assert stopped["python"].status == 75


def imports_torch(pid: int) -> bool:
    try:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False  # it ended meanwhile


def test_sigterm_before_training_has_begun_is_a_clean_stop_too(recipe: Path) -> None:
    folder = recipe.parent / "stopped early"
    stopped = interrupt(recipe, folder, PYTHON, imports_torch)
    assert stopped.status == 75 and one_error(stopped.errors), stopped.errors


def test_sigterm_to_deepspeed_before_training_has_begun_leaves_no_process(recipe: Path) -> None:
    # The command imports torch as well: the ranks are those whose parent has a parent in the run.
    folder = recipe.parent / "deepspeed stopped early"

    def ranks_import_torch(command: int) -> bool:
        ranks = [pid for pid in processes_of(folder) if parent(parent(pid)) == command]
        return len(ranks) == 2 and all(map(imports_torch, ranks))

    stopped = interrupt(recipe, folder, deepspeed(2), ranks_import_torch)
    assert stopped.errors.count("error: ") == 1, stopped.errors
    assert not (folder / "metrics.jsonl").exists()


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


BAD = {
    "misspelt key": ("optim.learning_rate=1e-3", "unknown key `optim.learning_rate`"),
    "wrong type": ("train.max_steps=many", "`train.max_steps` in `train.max_steps=many`"),
    "missing corpus": ("data.corpus=/nowhere", "/nowhere: no prepared corpus here"),
    "uneven micro-batches": ("train.micro_batch=3", "train.micro_batch (3) must divide"),
    "long crops": ("data.crop_seconds=60.0", "the longest clip of 16 has 6.00 s"),
}


@pytest.fixture(scope="module")
def refused(recipe: Path) -> dict[str, Done]:
    folder = recipe.parent / "refused"
    jobs = [partial(train, recipe, f"run.dir={folder}", word) for word, _ in BAD.values()]
    uneven = ("train.global_batch=5", "train.micro_batch=auto")
    jobs.append(partial(train, recipe, f"run.dir={folder}", *uneven, launcher=deepspeed(2)))
    done = dict(zip([*BAD, "uneven ranks"], together(*jobs), strict=True))
    assert not folder.exists()
    return done


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_paragraph_and_status_2(refused: dict[str, Done], name: str) -> None:
    done = refused[name]
    assert done.returncode == 2 and done.stdout == ""
    assert one_error(done.stderr) and BAD[name][1] in done.stderr, done.stderr


def test_under_deepspeed_bad_input_is_told_once(refused: dict[str, Done]) -> None:
    done = refused["uneven ranks"]
    assert done.returncode == 2, done.stderr
    assert one_error(done.stderr), done.stderr
    assert "train.global_batch (5) must be divisible by the number of ranks (2)" in done.stderr


def two_ranks(tmp_path: Path, script: str) -> Done:
    """Runs a script that imports little under torchrun; output lines of the ranks are mixed."""
    (tmp_path / "script.py").write_text(script)
    return subprocess.run(
        [*TORCHRUN, tmp_path / "script.py"],
        capture_output=True,
        text=True,
        timeout=120,
        env=ENVIRONMENT,
        cwd=tmp_path,
    )


def test_a_rank_that_fails_first_leaves_the_word_to_local_rank_0(tmp_path: Path) -> None:
    # A launcher ends all ranks as soon as one has failed: rank 0 may not have come to speak yet.
    script = """
import os, time
from etude.launch.cli import run
from etude.pretrain.errors import ConfigError

def main():
    time.sleep(2 if os.environ["LOCAL_RANK"] == "0" else 0)
    raise ConfigError("the cause")

run(main)
"""
    done = two_ranks(tmp_path, script)
    assert done.returncode != 0 and done.stderr.count("error: the cause\n") == 1, done.stderr


def test_a_signal_between_two_updates_is_answered_by_all_ranks_or_by_none(tmp_path: Path) -> None:
    # Rank 0 already waits for the others' answer when it is signalled: this time it has said no.
    script = """
import os, signal, threading, time
from pathlib import Path
import torch
from torch import distributed as dist
from etude.pretrain.stop import StopRequest

rank, signalled = int(os.environ["RANK"]), Path("signalled")
dist.init_process_group("gloo")

def interrupt():
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    signalled.touch()

with StopRequest(torch.device("cpu")) as stop:
    dist.barrier()
    if rank == 0:
        threading.Thread(target=interrupt).start()
    while rank == 1 and not signalled.exists():
        time.sleep(0.1)
    Path(f"answers of {rank}").write_text(f"{stop.agreed()} {stop.agreed()}")
dist.destroy_process_group()
"""
    done = two_ranks(tmp_path, script)
    assert done.returncode == 0, done.stderr
    answers = {(tmp_path / f"answers of {rank}").read_text() for rank in (0, 1)}
    assert answers == {"False True"}


def test_other_settings_on_the_same_folder_are_refused_with_the_list(
    runs: dict[str, Run], recipe: Path
) -> None:
    run = runs["halves"]
    before = run.files()
    done = train(recipe, f"run.dir={run.folder}", "optim.lr=2e-3", "seed=4", "data.workers=1")
    assert done.returncode == 2 and one_error(done.stderr)
    assert "optim.lr (was 0.001, now 0.002); seed (was 3, now 4)." in done.stderr
    assert "data.workers" not in done.stderr  # may differ
    assert run.files() == before


def test_a_dry_run_tells_size_and_cost_and_trains_nothing(
    runs: dict[str, Run], recipe: Path
) -> None:
    measured = runs["straight"]
    before = measured.files()
    new = recipe.parent / "new"
    fresh, known = together(
        partial(train, recipe, "--dry-run", f"run.dir={new}"),
        partial(train, recipe, "--dry-run", f"run.dir={measured.folder}", "train.max_steps=80"),
    )
    assert fresh.returncode == 0, fresh.stderr
    rows = dict(re.findall(r"^  (\S+(?: \S+)*)  +(\S.*)$", fresh.stdout, re.MULTILINE))
    weights = load_file(measured.checkpoints[-1] / "encoder.safetensors")
    encoder = sum(weight.numel() for weight in weights.values())
    assert rows["encoder"] == f"{encoder:,}"
    parts = [name for name in rows if name.startswith(("encoder.", "head of "))]
    assert {"encoder.layers", "head of logmel", "head of cqt"} <= set(parts)
    assert number(rows["all that is trained"]) > sum(number(rows[part]) for part in parts) > encoder
    assert rows["audio per update"] == "4 s (4 crops)"
    assert re.fullmatch(r"about \d+\.\d GB \(estimate\)", rows["memory per rank"])
    assert rows["updates"] == "8"
    assert rows["time to the end"].startswith("unknown")
    assert re.search(r"^labels\n  logmel: 8 of 8 labels", fresh.stdout, re.MULTILINE)
    assert "nothing was trained" in fresh.stdout and not new.exists()

    assert known.returncode == 0, known.stderr
    assert re.search(r"time to the end +\d+\.\d\d h at the \d+\.\d crops/s", known.stdout)
    assert measured.files() == before


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_printed_config_is_a_config(recipe: Path, tmp_path: Path) -> None:
    first = train(recipe, "--print-config", "optim.lr=3e-4", "objective.targets.cqt=null")
    assert first.returncode == 0, first.stderr
    values = yaml.safe_load(first.stdout)
    assert values["optim"]["lr"] == 3e-4 and list(values["objective"]["targets"]) == ["logmel"]
    (tmp_path / "printed.yaml").write_text(first.stdout)
    assert train(tmp_path / "printed.yaml", "--print-config").stdout == first.stdout


def test_ranks_without_a_held_out_crop_each_do_not_validate(recipe: Path) -> None:
    # A rank with nothing to add would not take part in the sum, and the others wait for it.
    config = load_config(recipe, ["data.max_valid_crops=1"])
    alone = check_inputs(config, rank=0, ranks=1, device="cpu")
    shared = check_inputs(config, rank=0, ranks=2, device="cpu")
    assert alone.valid is not None and shared.valid is None
    assert any("no validation." in note for note in shared.notes)
    config = load_config(recipe, ["data.max_valid_crops=1", "logging.look_every_steps=9"])
    asked = check_inputs(config, rank=0, ranks=2, device="cpu")
    assert any("no validation and no looks (logging.look_every_steps)" in n for n in asked.notes)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    done = subprocess.run(
        [sys.executable, LAUNCH / name, "--help"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage:") and "--help" in done.stdout
