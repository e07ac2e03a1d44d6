"""Self-attention on a CPU in bfloat16: ours in blocks of queries, torch's, and written out.

    OMP_NUM_THREADS=1 python benchmarks/attention.py [--rounds 5] [--heads 12]

Forward and backward at MERT-95M's width (12 heads of 64) on 4 crops of 5 s (374 frames) and on one
of 30 s (2,249). Ways in random order within each round, CPU time of the process, median with its
range, and how far output and gradients are from float64's (the largest relative error of the four).
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from etude.models.attention import blocked_attention

WIDTH = 64
SHAPES = ((4, 374), (1, 2249))

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--heads", type=int, default=12)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)\n")
    print("| crops x frames | way | ms (min - max) | of torch's | error |")
    print("|---|---|---|---|---|")
    for crops, frames in SHAPES:
        measure(crops, frames, options.heads, options.rounds)


def measure(crops: int, frames: int, heads: int, rounds: int) -> None:
    ways: dict[str, Way] = {"torch's": torchs, "blocks": blocked_attention, "written out": written}
    generator = torch.Generator().manual_seed(0)
    shape = (crops, frames, heads, WIDTH)
    given = [torch.randn(shape, generator=generator).bfloat16() for _ in range(4)]
    truth = results(written, [each.double() for each in given])
    errors = {
        name: max(
            float((found.double() - wanted).norm() / wanted.norm())
            for found, wanted in zip(results(way, given), truth, strict=True)
        )
        for name, way in ways.items()
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name in random.sample(list(ways), len(ways)):
            start = time.process_time()
            results(ways[name], given)
            milliseconds[name].append(1e3 * (time.process_time() - start))
    of_torch = statistics.median(milliseconds["torch's"])
    for name, values in milliseconds.items():
        median = statistics.median(values)
        span = f"{median:.0f} ({min(values):.0f} - {max(values):.0f})"
        ratio = f"{median / of_torch:.2f}"
        print(
            f"| {crops} x {frames} | {name} | {span} | {ratio} | {errors[name]:.1e} |", flush=True
        )


def results(way: Way, given: list[Tensor]) -> list[Tensor]:
    leaves = [each.clone().requires_grad_() for each in given[:3]]
    output = way(leaves[0], leaves[1], leaves[2])
    output.backward(given[3])
    return [output.detach(), *[leaf.grad for leaf in leaves if leaf.grad is not None]]


def torchs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    return scaled_dot_product_attention(query, key, value).transpose(1, 2)


def written(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    weights = (query / WIDTH**0.5 @ key.transpose(2, 3)).softmax(dim=-1)
    return (weights @ value).transpose(1, 2)


if __name__ == "__main__":
    main()
