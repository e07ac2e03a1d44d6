"""Fits k-means labels from a corpus:  python launch/cluster.py CORPUS --features logmel --out FILE

Streams the training clips once; writes one safetensors file with the centroids and how the
features are made, for `objective.targets.NAME.centroids`.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from etude.data.errors import InputError
from etude.launch.cli import run

if TYPE_CHECKING:
    from torch import Tensor

    from etude.data.shards import Split

_DEFAULTS = {"logmel": (229, 0.064), "chroma": (264, 0.256)}
"""Bins of MERT-v0, and a window in seconds, rounded up to a power of two (chosen: the authors'
is unknown)."""


def main() -> int:
    """Reads the corpus, fits, writes."""
    arguments = _parse()
    import torch
    from tqdm import tqdm

    from etude.data.shards import open_corpus
    from etude.models.config import EncoderConfig
    from etude.pretrain.clustering import fit_kmeans
    from etude.pretrain.config_file import load_config
    from etude.pretrain.quantizer import FeatureSettings, save_quantizer

    corpus = open_corpus(arguments.corpus)
    split = corpus.split("train")
    bins, seconds = _DEFAULTS[arguments.features]
    geometry = EncoderConfig(sample_rate=corpus.sample_rate)
    if arguments.config is not None:
        geometry = load_config(arguments.config).model
        if geometry.sample_rate != corpus.sample_rate:
            raise InputError(
                f"{arguments.config} is for {geometry.sample_rate} Hz, but {arguments.corpus} has "
                f"{corpus.sample_rate} Hz. Prepare the corpus with --sample-rate "
                f"{geometry.sample_rate}."
            )
    settings = FeatureSettings(
        kind=arguments.features,
        bins=arguments.bins or bins,
        n_fft=arguments.n_fft or 2 ** (round(seconds * corpus.sample_rate) - 1).bit_length(),
        sample_rate=corpus.sample_rate,
        conv_kernels=geometry.conv_kernels,
        conv_strides=geometry.conv_strides,
    )
    generator = torch.Generator().manual_seed(arguments.seed)
    order = torch.randperm(len(split), generator=generator).tolist()
    clips = _waveforms(split, order, arguments.hours, geometry.grid.receptive_samples)
    stream = tqdm(clips, unit="clip", disable=not sys.stderr.isatty(), desc=arguments.features)
    quantizer, report = fit_kmeans(
        stream,
        settings,
        clusters=arguments.clusters,
        iterations=arguments.iterations,
        seed=arguments.seed,
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_quantizer(quantizer, arguments.out, report=asdict(report))
    print(
        f"{arguments.out}: {arguments.clusters} classes of {settings.kind} ({settings.bins} bins, "
        f"window {settings.n_fft}) from {report.frames:,} frames; {report.used} in use, largest "
        f"{report.largest_share:.1%}, entropy {report.entropy:.2f} nats"
    )
    return 0


def _waveforms(
    split: "Split", order: list[int], hours: float | None, shortest: int
) -> "Iterator[Tensor]":
    """Clips in random order until ``hours`` are heard, each as (1, T)."""
    import torch

    from etude.data.audio import decode

    left = float("inf") if hours is None else hours * 3600 * split.corpus.sample_rate
    for clip in order:
        if left <= 0:
            return
        waveform, _ = decode(split.read_audio_bytes(clip))
        left -= len(waveform)
        if len(waveform) >= shortest:
            yield torch.from_numpy(waveform)[None]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path, help="folder made by launch/prepare.py")
    parser.add_argument("--features", choices=sorted(_DEFAULTS), required=True)
    parser.add_argument("--clusters", type=int, required=True, help="number of classes")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument(
        "--config", type=Path, help="run whose frames to label; the released models' if not given"
    )
    parser.add_argument("--bins", type=int, help="mel bands (229) or chroma bins (264)")
    parser.add_argument("--n-fft", type=int, help="window in samples, a power of two")
    parser.add_argument("--hours", type=float, help="audio to hear; all of it if not given")
    parser.add_argument("--iterations", type=int, default=20, help="Lloyd iterations")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in ("clusters", "iterations"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name} must be at least 1, but is {getattr(arguments, name)}.")
    return arguments


if __name__ == "__main__":
    run(main)
