"""``launch/cluster.py`` as a user runs it: the file it writes, and how it refuses."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from training_parts import GRID, ROOT, SMALL, noise

from etude.data.shards import Corpus
from etude.models.frames import FrameGrid
from etude.pretrain.quantizer import load_quantizer

Done = subprocess.CompletedProcess[str]

OWN_KERNELS, OWN_STRIDES = [64, 8, 4], [20, 8, 4]
LOGMEL = ("--features", "logmel", "--bins", "20", "--n-fft", "1024", "--clusters", "8")


def cluster(*words: object) -> Done:
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "cluster.py"), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def together(jobs: dict[str, Callable[[], Done]]) -> dict[str, Done]:
    with ThreadPoolExecutor(max_workers=2) as pool:
        futures = {name: pool.submit(job) for name, job in jobs.items()}
        return {name: future.result() for name, future in futures.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where files go; ``own.yaml`` is a run with convolutions of its own, ``slow.yaml`` one at
    another rate than the corpus."""
    folder = tmp_path_factory.mktemp("cluster")
    own = {"conv_dims": [8] * 3, "conv_kernels": OWN_KERNELS, "conv_strides": OWN_STRIDES}
    for name, model in (("own", {**SMALL, **own}), ("slow", {**SMALL, "sample_rate": 16_000})):
        values = {
            "run": {"dir": "run"},
            "data": {"corpus": "corpus"},
            "model": model,
            "objective": {"targets": {"logmel": {"kind": "kmeans", "centroids": "not yet"}}},
            "train": {"max_steps": 1, "global_batch": 1},
            "optim": {"lr": 1e-3, "warmup_steps": 0},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return folder


@pytest.fixture(scope="module")
def done(small_corpus: Corpus, folder: Path) -> dict[str, Done]:
    out = ("--out", folder / "refused.safetensors")
    run = partial(cluster, small_corpus.root)
    logmel, again = folder / "new" / "logmel.safetensors", folder / "again.safetensors"
    chroma = ("--features", "chroma", "--clusters", 3, "--hours", 0.005)
    return together(
        {
            "logmel": partial(run, *LOGMEL, "--out", logmel),
            "again": partial(run, *LOGMEL, "--out", again),
            "own": partial(
                run,
                *chroma,
                *("--config", folder / "own.yaml"),
                *("--out", folder / "own.safetensors"),
            ),
            "missing": partial(cluster, folder / "nowhere", *LOGMEL, *out),
            "another rate": partial(run, *LOGMEL, "--config", folder / "slow.yaml", *out),
            "no clusters": partial(run, *LOGMEL, "--clusters", 0, *out),
            "too many": partial(run, *LOGMEL, "--clusters", 100_000, *out),
            "small window": partial(run, *LOGMEL, "--n-fft", 2, *out),
        }
    )


def test_the_file_labels_every_frame_of_a_crop(done: dict[str, Done], folder: Path) -> None:
    path = folder / "new" / "logmel.safetensors"
    assert done["logmel"].returncode == 0, done["logmel"].stderr
    assert done["logmel"].stdout.startswith(f"{path}: 8 classes of logmel (20 bins, window 1024)")

    quantizer = load_quantizer(path)
    settings = quantizer.settings
    assert (settings.kind, settings.bins, settings.n_fft) == ("logmel", 20, 1024)
    assert settings.grid == GRID
    assert quantizer.centroids.shape == (8, 20)
    labels = quantizer(noise(2, 24_000))
    assert labels.shape == (2, GRID.num_frames(24_000))
    assert labels.min() >= 0 and labels.max() < 8


def test_the_same_command_gives_the_same_labels(done: dict[str, Done], folder: Path) -> None:
    assert done["again"].returncode == 0, done["again"].stderr
    first = load_quantizer(folder / "new" / "logmel.safetensors")
    second = load_quantizer(folder / "again.safetensors")
    assert torch.equal(first.centroids, second.centroids)


def test_a_config_gives_the_frames_and_the_released_models_the_rest(
    done: dict[str, Done], folder: Path
) -> None:
    assert done["own"].returncode == 0, done["own"].stderr
    quantizer = load_quantizer(folder / "own.safetensors")
    assert quantizer.settings.grid == FrameGrid(24_000, tuple(OWN_KERNELS), tuple(OWN_STRIDES))
    assert quantizer.settings.bins == 264  # MERT-v0's


@pytest.mark.parametrize(
    "name, cause",
    [
        ("missing", "nowhere: no prepared corpus here (index.json is missing)"),
        ("another rate", "slow.yaml is for 16000 Hz, but"),
        ("no clusters", "--clusters must be at least 1, but is 0"),
        ("too many", "frames cannot make 100000 clusters"),
        ("small window", "--n-fft must be at least 64, but is 2"),
    ],
)
def test_what_cannot_be_clustered_is_one_paragraph_and_status_2(
    done: dict[str, Done], folder: Path, name: str, cause: str
) -> None:
    refused = done[name]
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.startswith("error: ") and cause in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (folder / "refused.safetensors").exists()
