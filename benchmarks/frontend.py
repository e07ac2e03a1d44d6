"""What `model.impl: fast` saves: cost of the conv stack, and what it keeps for backward.

    OMP_NUM_THREADS=1 python benchmarks/frontend.py [--crops N] [--rounds N] [--geometry G]

Forward and backward of the front end's convolutions on crops of 5 s of noise; one process, ways in
random order within each round, process CPU time, median over rounds. Bytes are those of all tensors
that autograd keeps and that grow with the batch. Errors are relative L2 to fairseq2's module in
float32: of the output, and of all gradients together. `products` is `fast` without oneDNN's
convolution, which it takes in float32 on CPUs.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from etude.models import conv_rows
from etude.models.frames import FrameGrid
from etude.models.frontend import WaveformFrontend, initialise_frontend

GEOMETRIES = {
    "mert": (24_000, (512,) * 7, (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), False),
    "music2vec": (16_000, (512,) * 7, (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), True),
    "quickstart": (16_000, (64, 128, 192), (512, 4, 4), (20, 4, 4), False),
}
"""Rate, channels, kernels, strides, and whether a layer norm follows every convolution."""

SECONDS = 5.0
BY_CONVOLUTION = conv_rows._by_convolution


@dataclass
class Measured:
    both: list[float] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)
    output: Tensor = field(default_factory=lambda: torch.empty(0))
    gradient: Tensor = field(default_factory=lambda: torch.empty(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--crops", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="mert")
    options = parser.parse_args()
    rate, channels, kernels, strides, layer_norm = GEOMETRIES[options.geometry]
    samples = round(SECONDS * rate)
    frames = FrameGrid(rate, kernels, strides).num_frames(samples)
    torch.manual_seed(0)
    front = WaveformFrontend(
        list(zip(channels, kernels, strides, strict=True)), 8, layer_norm=layer_norm
    )
    initialise_frontend(front)
    noise = 0.1 * torch.randn(options.crops, samples)
    weights = torch.randn(options.crops, frames, channels[-1])
    print(
        f"{options.geometry}, {options.crops} x {SECONDS:g} s, torch {torch.__version__}, ", end=""
    )
    print(f"{torch.get_num_threads()} thread(s), {options.rounds} rounds")
    print(
        "| type | impl | CPU ms per crop (min - max) | plain / this | forward alone (min - max) | "
        "plain / this | kept MB per crop | output error | gradient error |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    exact: Measured | None = None
    for dtype in (torch.float32, torch.bfloat16):
        found = measure(front, noise, weights, dtype=dtype, rounds=options.rounds)
        exact = exact or found["plain"]
        kept = {impl: kept_bytes(features(front, impl, dtype), noise[:1]) for impl in found}
        show(found, exact=exact, dtype=dtype, crops=options.crops, kept=kept)


def features(front: WaveformFrontend, impl: str, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    def run(waveform: Tensor) -> Tensor:
        front.impl = "plain" if impl == "plain" else "fast"
        conv_rows._by_convolution = (lambda rows: False) if impl == "products" else BY_CONVOLUTION
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            return front(waveform).raw

    return run


def measure(
    front: WaveformFrontend, noise: Tensor, weights: Tensor, *, dtype: torch.dtype, rounds: int
) -> dict[str, Measured]:
    ways = ("plain", "fast", *(("products",) if dtype == torch.float32 else ()))
    found = {impl: Measured() for impl in ways}
    for round_ in range(rounds + 1):
        for impl in random.sample(list(found), len(found)):
            front.zero_grad()
            run = features(front, impl, dtype)
            with torch.no_grad():
                start = time.process_time()
                run(noise)
                forward = time.process_time() - start
            start = time.process_time()
            output = run(noise)
            (output * weights).sum().backward()
            both = time.process_time() - start
            if round_:  # the first warms up
                found[impl].forward.append(forward / len(noise))
                found[impl].both.append(both / len(noise))
            found[impl].output = output.detach().float()
            given = (parameter.grad for parameter in front.conv.parameters())
            found[impl].gradient = torch.cat([grad.flatten() for grad in given if grad is not None])
    return found


def kept_bytes(run: Callable[[Tensor], Tensor], crop: Tensor) -> int:
    """Bytes kept for backward by each crop more: what casts of the weights take is not counted."""
    return kept_by_batch(run, crop.repeat(3, 1)) - kept_by_batch(run, crop.repeat(2, 1))


def kept_by_batch(run: Callable[[Tensor], Tensor], batch: Tensor) -> int:
    kept: dict[int, Tensor] = {}  # holds them, lest an address is used again

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def show(
    found: dict[str, Measured],
    *,
    exact: Measured,
    dtype: torch.dtype,
    crops: int,
    kept: dict[str, int],
) -> None:
    plain = found["plain"]
    for impl, one in found.items():
        both, forward = statistics.median(one.both), statistics.median(one.forward)
        cells = [
            str(dtype).removeprefix("torch."),
            impl,
            f"{1e3 * both:.0f} ({1e3 * min(one.both):.0f} - {1e3 * max(one.both):.0f})",
            f"{statistics.median(plain.both) / both:.2f}",
            f"{1e3 * forward:.0f} ({1e3 * min(one.forward):.0f} - {1e3 * max(one.forward):.0f})",
            f"{statistics.median(plain.forward) / forward:.2f}",
            f"{kept[impl] / 1e6:.1f}",
            *(
                "-" if one is exact else f"{error:.1e}"
                for error in (
                    relative(one.output, exact.output),
                    relative(one.gradient, exact.gradient),
                )
            ),
        ]
        print(f"| {' | '.join(cells)} |")


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


if __name__ == "__main__":
    main()
