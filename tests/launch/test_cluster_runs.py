"""``launch/cluster.py`` over several runs: stopped and continued, done already, a model's labels.

Starting a process costs seconds, so the commands are run once, two at a time, and every test looks
at what they left behind.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from safetensors import safe_open
from training_parts import ROOT, SMALL, audio_batch, noise, small_encoder

from etude.data.shards import Corpus
from etude.models.weights import load_encoder, save_encoder
from etude.pretrain.assemble import build_objective
from etude.pretrain.config import Config
from etude.pretrain.inputs import check_inputs
from etude.pretrain.quantizer import load_quantizer
from etude.pretrain.targets.kmeans import KmeansTarget

Done = subprocess.CompletedProcess[str]
T = TypeVar("T")

COMMAND = (sys.executable, str(ROOT / "launch" / "cluster.py"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL_LOGMEL = ("--features", "logmel", "--bins", "20", "--n-fft", "1024", "--clusters", "8")
LONG = (*SMALL_LOGMEL, "--iterations", "1500")
"""Long enough to be stopped on the way."""


def cluster(*words: object) -> Done:
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT,
    )


def stopped(number: signal.Signals, iteration: int, *words: object) -> Done:
    """Sends a signal when this iteration is done."""
    command = [*COMMAND, *map(str, words)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stderr is not None and process.stdout is not None
        said = ""
        for line in process.stderr:
            said += line
            if line.startswith(f"iteration {iteration}/"):
                process.send_signal(number)
        return Done(command, process.wait(), process.stdout.read(), said)


def together(*jobs: Callable[[], T]) -> list[T]:
    with ThreadPoolExecutor(max_workers=2) as pool:
        futures = [pool.submit(job) for job in jobs]
        return [future.result() for future in futures]


@pytest.fixture(scope="module")
def corpus(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of our own: labels are written into its folder."""
    folder = tmp_path_factory.mktemp("cluster_runs") / "corpus"
    shutil.copytree(small_corpus.root, folder)
    return folder


# Stopped and continued.


@pytest.fixture(scope="module")
def continued(corpus: Path) -> dict[str, Done]:
    """One fit that nobody stops; one that is stopped twice and then finished, then asked again."""
    folder = corpus.parent
    run = partial(cluster, corpus, *LONG, "--out")
    stop = folder / "stopped.safetensors"
    done: dict[str, Done] = {}

    def in_parts() -> None:
        done["term"] = stopped(signal.SIGTERM, 3, corpus, *LONG, "--out", stop)
        shutil.copy(folder / "stopped.part.safetensors", folder / "left")
        done["int"] = stopped(signal.SIGINT, 700, corpus, *LONG, "--out", stop)
        done["rest"] = run(stop)
        assert not list(folder.glob("stopped.part*"))  # the next run would clear it away too
        done["again"] = run(stop)
        done["other"] = run(stop, "--seed", 1)
        shutil.copy(folder / "left", folder / "other.part.safetensors")
        done["other left"] = run(folder / "other.safetensors", "--seed", 1)

    def straight() -> None:
        done["straight"] = run(folder / "straight.safetensors")

    together(straight, in_parts)
    return done


@pytest.mark.parametrize("name", ["term", "int"])
def test_a_signal_keeps_what_is_done_and_ends_with_status_75(
    name: str, continued: dict[str, Done]
) -> None:
    done = continued[name]
    assert done.returncode == 75, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: stopped after iteration ")
    assert last.endswith(" of 1500. The same command goes on there.")
    assert done.stdout == ""


def test_the_same_command_continues_and_ends_at_the_same_bytes(
    continued: dict[str, Done], corpus: Path
) -> None:
    done, folder = continued["rest"], corpus.parent
    assert done.returncode == 0, done.stderr
    assert "iteration 700/1500" not in done.stderr and "iteration 1500/1500" in done.stderr
    assert "iteration 3/1500" not in continued["int"].stderr
    whole = (folder / "straight.safetensors").read_bytes()
    assert (folder / "stopped.safetensors").read_bytes() == whole


def test_what_is_there_already_is_not_made_again(continued: dict[str, Done], corpus: Path) -> None:
    done = continued["again"]
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{corpus.parent / 'stopped.safetensors'} is there already.\n"


def test_labels_of_other_settings_are_not_overwritten_and_not_continued(
    continued: dict[str, Done], corpus: Path
) -> None:
    for name, cause in (("other", "was fitted to something else"), ("other left", "interrupted")):
        done = continued[name]
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert cause in done.stderr and "seed (there 0, here 1)." in done.stderr
    folder = corpus.parent
    assert not (folder / "other.safetensors").exists()
    assert (folder / "other.part.safetensors").read_bytes() == (folder / "left").read_bytes()


# The released models' labels, and a model's own.


@pytest.fixture(scope="module")
def run_folder(corpus: Path) -> Path:
    """A run with two checkpoints."""
    folder = corpus.parent / "run"
    for step in (10, 20):
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        save_encoder(small_encoder(seed=step, dropout=0.3), checkpoint)
    return folder


@pytest.fixture(scope="module")
def labelled(corpus: Path, run_folder: Path) -> dict[str, Done]:
    slow = corpus.parent / "slow"
    slow.mkdir()
    save_encoder(small_encoder(sample_rate=16_000), slow)
    other = corpus.parent / "other.yaml"
    other.write_text(
        json.dumps(
            {
                "run": {"dir": "run"},
                "data": {"corpus": "corpus"},
                "model": {**SMALL, "conv_strides": [5, 2, 2, 2, 2, 2, 4]},
                "objective": {"targets": {"cqt": {"kind": "cqt"}}},
                "train": {"max_steps": 1, "global_batch": 1},
                "optim": {"lr": 1e-3, "warmup_steps": 0},
            }
        )
    )
    run = partial(cluster, corpus)
    model = ("--model", run_folder, "--clusters", 12)
    jobs = {
        "logmel": partial(run, "--features", "logmel"),
        "chroma": partial(run, "--features", "chroma"),
        "model": partial(run, *model, "--layer", 1),
        "no layer": partial(run, *model),
        "no model": partial(run, "--features", "logmel", "--layer", 1),
        "high": partial(run, *model, "--layer", 3),
        "bins": partial(run, *model, "--layer", 1, "--bins", 20),
        "slow": partial(run, "--model", slow, "--layer", 1),
        "nothing": partial(run, "--model", corpus, "--layer", 1),
        "frames": partial(run, *model, "--layer", 1, "--config", other),
    }
    return dict(zip(jobs, together(*jobs.values()), strict=True))


@pytest.mark.parametrize(
    ("features", "classes", "bins"), [("logmel", 300, 229), ("chroma", 200, 264)]
)
def test_the_defaults_are_those_of_mert_v0(
    features: str, classes: int, bins: int, labelled: dict[str, Done], corpus: Path
) -> None:
    done, path = labelled[features], corpus / f"kmeans-{features}.safetensors"
    assert done.returncode == 0, done.stderr
    quantizer = load_quantizer(path)
    assert quantizer.centroids.shape == (classes, bins)
    assert quantizer.corpus == json.loads((corpus / "index.json").read_text())["fingerprint"]
    with safe_open(path, framework="pt") as file:
        report = json.loads(file.metadata()["report"])
    assert f"in use    {report['used']} of {classes}; {report['rare']} have less" in done.stdout
    assert f"entropy   {report['entropy']:.2f} nats, perplexity {report['perplexity']:.0f}" in (
        done.stdout
    )
    assert f"largest   {report['largest_share']:.2%} of the frames" in done.stdout
    assert quantizer.content_hash in done.stdout
    assert not list(corpus.glob("*.part*"))


def test_the_newest_encoder_of_a_run_is_clustered(
    labelled: dict[str, Done], corpus: Path, run_folder: Path
) -> None:
    done, path = labelled["model"], corpus / "kmeans-encoder.safetensors"
    assert done.returncode == 0, done.stderr
    newest = run_folder / "checkpoints" / "step-00000020"
    assert done.stdout.startswith(f"{path}: 12 classes of layer 1 of {newest}\n")
    quantizer = load_quantizer(path)
    assert quantizer.centroids.shape == (12, SMALL["dim"])
    assert quantizer.settings.encoder is not None
    assert quantizer.settings.encoder.folder == newest


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("no layer", "--model and --layer belong together"),
        ("no model", "--model and --layer belong together"),
        ("high", "has 2 layers: take 0 (input of the first layer) to 2"),
        ("bins", "--bins and --n-fft are about --features"),
        ("slow", "hears 16000 Hz, but"),
        ("nothing", "holds no encoder"),
        ("frames", "has other frames (kernels"),
    ],
)
def test_a_model_that_cannot_be_clustered_is_one_paragraph_and_status_2(
    name: str, cause: str, labelled: dict[str, Done]
) -> None:
    done = labelled[name]
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and cause in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_learns_the_labels_of_another_runs_layer(
    labelled: dict[str, Done], corpus: Path, run_folder: Path
) -> None:
    assert labelled["model"].returncode == 0
    config = Config.model_validate(
        {
            "run": {"dir": corpus.parent / "second"},
            "data": {"corpus": corpus, "crop_seconds": 1.0},
            "model": SMALL,
            # The file of this name is the one that launch/cluster.py writes.
            "objective": {"targets": {"encoder": {"kind": "kmeans", "final_dim": 8}}},
            "train": {"max_steps": 1, "global_batch": 2},
            "optim": {"lr": 1e-3, "warmup_steps": 0},
        }
    )
    inputs = check_inputs(config, rank=0, ranks=1, device="cpu")
    objective = build_objective(config, inputs)
    target = objective.targets["encoder"]
    assert isinstance(target, KmeansTarget) and target.classes == 12

    teacher = load_encoder(run_folder / "checkpoints" / "step-00000020")
    waveform = noise(2, 24_000, seed=8)
    with torch.no_grad():
        states = teacher(waveform).hidden_states[1]
    quantizer = load_quantizer(corpus / "kmeans-encoder.safetensors")
    before = quantizer.assign(states)
    assert len(before.unique()) > 3

    # Nothing of the teacher is in what is trained: the student's tensors and the head's, no more.
    student = {f"encoder.{name}" for name, _ in small_encoder().named_parameters()}
    heads = {name for name, _ in objective.named_parameters()} - student
    assert {name.rpartition("head.")[2] for name in heads} == {
        "projection.weight",
        "projection.bias",
        "embedding",
    }
    assert set(objective.state_dict()) >= student
    assert len(objective.state_dict()) == len(small_encoder().state_dict()) + 3

    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    objective.train()
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(audio_batch(waveform))
    output.loss.backward()
    optimizer.step()
    assert torch.isfinite(output.loss)
    assert all(p.grad is not None for p in target.head.parameters())
    assert torch.equal(target.quantizer(waveform), before)
