"""How many tokens of a crop encoded alone differ from those of its whole track, frame by frame.

    python benchmarks/codec_edge.py CORPUS --weights FILE [--crops N]

CORPUS has its tokens already (launch/encode.py). Crops of 5 s start at least 5 s into their
track. What differs is what `objective.targets.codec.source: online` gets wrong near a crop's start.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from etude.data.audio import decode
from etude.data.shards import open_corpus
from etude.data.tokens import open_tokens
from etude.pretrain.codec import load_codec

BINS = ((0, 5), (5, 10), (10, 20), (20, 50), (50, 375))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--crops", type=int, default=60)
    options = parser.parse_args()
    codec = load_codec(options.weights)
    corpus = open_corpus(options.corpus)
    split = corpus.split("valid")
    tokens = open_tokens(corpus, codec.name).split("valid")
    first_of_track = np.diff(split.members["track"], prepend=-1) != 0
    crop, generator = 5 * codec.sample_rate, np.random.default_rng(0)
    equal = []
    while len(equal) < options.crops:
        row = int(generator.integers(len(split)))
        earliest = 5 * codec.sample_rate if first_of_track[row] else 0
        latest = int(split.num_samples[row]) - crop
        if latest < earliest:
            continue
        start = int(generator.integers(earliest, latest, endpoint=True))
        start = start // codec.hop_samples * codec.hop_samples
        waveform, _ = decode(split.read_audio_bytes(row), start=start, frames=crop)
        alone = codec.encode(torch.from_numpy(waveform)[None])[0].numpy()
        frame = start // codec.hop_samples
        equal.append(alone == tokens.read(row)[frame : frame + len(alone)])
    equal_NFK = np.stack(equal)
    print(
        f"{len(equal)} crops of 5 s from held-out tracks, {codec.name} {codec.weights_sha256[:12]}"
    )
    print("| frames after the crop's start | codebook 0 | all codebooks |")
    print("|---|---|---|")
    for first, end in BINS:
        part = equal_NFK[:, first:end]
        print(f"| {first} to {end - 1} | {part[..., 0].mean():.1%} | {part.mean():.1%} |")


if __name__ == "__main__":
    main()
