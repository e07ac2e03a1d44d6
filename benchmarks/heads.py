"""The prediction heads beside their published form: cost, and how equal they are.

    OMP_NUM_THREADS=1 python benchmarks/heads.py [--crops 4] [--final-dim 64] [--rounds 3]

Forward and backward of the cosine loss over 8 codebooks of 1,024 classes for the masked frames of
some crops, float32: from projected frames (M, 8 d) and embeddings (8, 1024, d) to the loss and the
gradients of both. Published is HuBERT's formula in the form of fairseq's ``compute_nce``
(``step_ways/published.py``), codebook by codebook. One process, in random order within each round,
process CPU time (on a GPU: wall time after a synchronisation), median with its range.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from etude.pretrain.targets.cosine_loss import cosine_cross_entropy

sys.path.insert(0, str(Path(__file__).parent))
from step_ways.common import CLASSES, CODEBOOKS  # noqa: E402
from step_ways.published import TEMPERATURE, compute_nce  # noqa: E402

_MASKED_PER_CROP = 218
"""Frames of a crop of 5 s at 75 Hz that MERT's masks hide: 58 %."""

Way = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Projected frames (M, K d), embeddings (K, V, d) and labels (M, K) to the loss."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--crops", type=int, default=4)
    parser.add_argument("--final-dim", type=int, default=64, help="95M 64, 330M 128")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    frames = options.crops * _MASKED_PER_CROP
    projected = torch.randn(frames, CODEBOOKS * options.final_dim, generator=generator)
    embeddings = torch.rand(CODEBOOKS, CLASSES, options.final_dim, generator=generator)
    labels = torch.randint(CLASSES, (frames, CODEBOOKS), generator=generator)
    given = [projected.to(device).requires_grad_(), embeddings.to(device).requires_grad_()]
    ways: dict[str, Way] = {"ours": ours, "published": published}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, tuple[Tensor, ...]] = {}
    for round_ in range(options.rounds + 1):
        for name in random.sample(list(ways), len(ways)):
            for tensor in given:
                tensor.grad = None
            began = now(device)
            loss = ways[name](given[0], given[1], labels.to(device))
            loss.backward()
            passed = now(device) - began
            if round_:  # the first warms up
                seconds[name].append(passed)
            results[name] = loss.detach(), *(tensor.grad for tensor in given)
    print(f"{frames} masked frames, d {options.final_dim}, torch {torch.__version__}, {device}, ")
    print(f"{torch.get_num_threads()} thread(s), {options.rounds} rounds\n")
    print("| heads | ms (min - max) | takes, of ours |\n|---|---|---|")
    ratio = statistics.median(seconds["published"]) / statistics.median(seconds["ours"])
    for name, values in seconds.items():
        times = [1e3 * statistics.median(values), 1e3 * min(values), 1e3 * max(values)]
        shown = f"{times[0]:.1f} ({times[1]:.1f} - {times[2]:.1f})"
        print(f"| {name} | {shown} | {'1' if name == 'ours' else f'{ratio:.0f}x'} |")
    for name, ours_, theirs in zip(
        ("loss", "gradient of the frames", "gradient of the embeddings"),
        results["ours"],
        results["published"],
        strict=True,
    ):
        print(f"{name}: relative difference {float((ours_ - theirs).norm() / theirs.norm()):.1e}")


def ours(projected: Tensor, embeddings: Tensor, labels: Tensor) -> Tensor:
    chunks = projected.view(len(projected), CODEBOOKS, -1).transpose(0, 1)
    return cosine_cross_entropy(
        F.normalize(chunks, dim=-1),
        F.normalize(embeddings, dim=-1),
        labels,
        temperature=TEMPERATURE,
    ).loss.sum()


def published(projected: Tensor, embeddings: Tensor, labels: Tensor) -> Tensor:
    loss = projected.new_zeros(())
    for k, chunk in enumerate(projected.chunk(CODEBOOKS, dim=-1)):
        logits = compute_nce(chunk, embeddings[k], labels[:, k])
        loss = loss + F.cross_entropy(logits, torch.zeros_like(labels[:, k]))
    return loss


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


if __name__ == "__main__":
    main()
