"""Makes stand-in weights for EnCodec:  python launch/standin_codec.py CORPUS --out FILE

Where the real ones cannot be had: a random encoder, and codebooks that are k-means centroids on a
few minutes of the corpus, in the layout of the authors' file. They let the path of codec targets be
tried, and say little about what the real ones give.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from etude.data.errors import InputError
from etude.launch.cli import run

if TYPE_CHECKING:
    from torch import Tensor

    from etude.data.shards import Split
    from etude.pretrain.codec_standin import StandinReport


def main() -> int:
    """Reads the corpus, fits, writes."""
    arguments = _parse()
    import torch
    from tqdm import tqdm

    from etude.data.shards import open_corpus
    from etude.pretrain.codec import load_codec, untrained_model
    from etude.pretrain.codec_standin import FRAMES, fit_standin, save_standin

    corpus = open_corpus(arguments.corpus)
    model = untrained_model(seed=arguments.seed)
    if corpus.sample_rate != model.sample_rate:
        raise InputError(
            f"{arguments.corpus} has {corpus.sample_rate} Hz, but the codec hears "
            f"{model.sample_rate} Hz. Prepare the corpus with --sample-rate {model.sample_rate}."
        )
    frames = FRAMES
    if arguments.minutes is not None:
        frames = round(arguments.minutes * 60 * model.frame_rate)
    split = corpus.split("train")
    generator = torch.Generator().manual_seed(arguments.seed)
    order = torch.randperm(len(split), generator=generator).tolist()
    state, report = fit_standin(
        tqdm(_waveforms(split, order), unit="clip", disable=not sys.stderr.isatty()),
        seed=arguments.seed,
        frames=frames,
    )
    print(_table(report))
    if not report.balanced:
        raise InputError(
            f"every codebook must be at least half used and have no code on more than 10 % of the "
            f"frames, which is not so on {report.frames:,} frames of {arguments.corpus} (table "
            "above). Take more minutes, or music with less silence. Nothing was written."
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_standin(state, arguments.out)
    print(
        f"{arguments.out}: STAND-IN weights ({load_codec(arguments.out).weights_sha256[:12]}), "
        f"fitted to {report.frames:,} frames. They are for trying the path of codec targets; "
        "accuracies and losses on them say little about EnCodec's own."
    )
    return 0


def _waveforms(split: "Split", order: list[int]) -> "Iterator[Tensor]":
    """Clips in the given order, each as (1, T)."""
    import torch

    from etude.data.audio import decode

    for clip in order:
        waveform, _ = decode(split.read_audio_bytes(clip))
        yield torch.from_numpy(waveform)[None]


def _table(report: "StandinReport") -> str:
    rows = ["codebook   used        largest   entropy     variance left"]
    for number, book in enumerate(report.books):
        rows.append(
            f"{number:8}   {book.used:4} of {book.size}   {book.largest_share:6.1%}   "
            f"{book.entropy:5.2f} nats   {book.residual:7.1%}"
        )
    return "\n".join(rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path, help="folder made by launch/prepare.py, at 24 kHz")
    parser.add_argument("--out", type=Path, required=True, help="file to write, such as codec.th")
    parser.add_argument("--minutes", type=float, help="audio to fit to (6.7)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.minutes is not None and arguments.minutes <= 0:
        raise InputError(f"--minutes must be more than 0, but is {arguments.minutes:g}.")
    if arguments.out.suffix == ".safetensors":
        raise InputError(
            f"--out must not end in .safetensors, but is {arguments.out}: the file is a state dict "
            "saved by torch, as the authors' is. End it in .th."
        )
    return arguments


if __name__ == "__main__":
    run(main)
