"""Tiny but real runs that campaigns disturb: their corpus, their recipes, what they wrote.

A MERT-like and a music2vec-like run of 60 updates on a minute or two of demo music, with mixture,
layer drop, a loader worker, a checkpoint every few updates and validation in between.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "launch" / "train.py"
UPDATES, EVERY, VALID_EVERY = 60, 4, 6

TINY = {
    "sample_rate": 16_000,
    "conv_dims": [16] * 7,
    "dim": 32,
    "ffn_dim": 48,
    "heads": 4,
    "layers": 2,
    "position_kernel": 16,
    "position_groups": 4,
    "layer_drop": 0.1,
}
PARADIGMS: dict[str, dict[str, Any]] = {
    "mert": {
        "model": TINY,
        "objective": {
            "targets": {"cqt": {"kind": "cqt", "bins": 24, "bins_per_octave": 12, "fmin": 220.0}},
            "mixture": {"prob": 0.5, "group": 2, "min_seconds": 0.2, "max_seconds": 0.5},
        },
    },
    "music2vec": {
        "model": {**TINY, "conv_norm": "layer"},
        "objective": {
            "targets": {
                "teacher": {
                    "kind": "teacher",
                    "top_layers": 2,
                    "decay": 0.9,
                    "end_decay": 0.99,
                    "anneal_steps": 50,
                }
            },
            "mask": {"prob": 0.5, "span_frames": 5},
        },
    },
}


def lines(run: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of a run's metrics; a kill may tear the last one."""
    path = run / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            yield json.loads(line)
        except ValueError:
            return


def write_recipe(folder: Path, name: str, corpus: Path, *, dropout: float, stage: int = 0) -> Path:
    values = {
        "run": {"dir": str(folder / "unused")},
        "seed": 5,
        "data": {"corpus": str(corpus), "crop_seconds": 1.0, "workers": 1},
        "train": {
            "max_steps": UPDATES,
            "global_batch": 4,
            "micro_batch": 2,
            "precision": "fp32",
        },
        "optim": {"lr": 1e-3, "warmup_steps": 5},
        "checkpoint": {"every_steps": EVERY},
        "logging": {"every_steps": 1, "valid_every_steps": VALID_EVERY, "tensorboard": False},
        "health": {"every_steps": 0, "min_target_std": 0.0, "min_prediction_std": 0.0},
        "deepspeed": {"zero_optimization": {"stage": stage}},
        **PARADIGMS[name],
    }
    kinds = ("dropout", "attention_dropout", "projection_dropout")
    values["model"] = {**values["model"], **dict.fromkeys(kinds, dropout)}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def make_corpus(folder: Path, *, clip_seconds: float = 5.0, held_out: float = 0.1) -> Path:
    """Three minutes of music.

    :param held_out: share of the tracks; more of them, in shorter clips, make validation longer.
    """
    from etude.data.demo.files import write_demo_files
    from etude.data.prepare import PrepareSettings, prepare

    music = folder / "music"
    music.mkdir()
    write_demo_files(music, minutes=3.0, seed=0, workers=1)
    settings = PrepareSettings(
        sample_rate=16_000,
        clip_seconds=clip_seconds,
        min_seconds=0.6 * clip_seconds,
        shard_mb=1.0,
        valid_fraction=held_out,
    )
    prepare([music], folder / "corpus", settings, workers=0, say=lambda message: None)
    return folder / "corpus"
