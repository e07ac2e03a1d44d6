"""Cost and error of the CQT target's algorithms, beside librosa's (if installed) on the same music.

    pip install -e ".[bench]"
    OMP_NUM_THREADS=1 python benchmarks/cqt.py [--crops N] [--rounds N]

One process, algorithms in random order within each round, process CPU time, one crop at a time,
median over rounds. The crops are 5 s of demo music at 24 kHz; the settings are the published ones
(336 bins, 48 per octave from 32.7 Hz, hop 320). Errors are relative L2 over magnitudes; the truth
is the sum that defines the transform, of nnAudio's kernels in float64, in all bins of some frames.
"""

import argparse
import importlib.util
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nnAudio.utils import create_cqt_kernels

from etude.data.demo.render import render_track
from etude.models.frames import FrameGrid
from etude.models.spectral import ConstantQ

GRID = FrameGrid(24_000, (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
SETTINGS: dict[str, Any] = {"bins": 336, "bins_per_octave": 48, "fmin": 32.7}
TRUE_FRAMES = [0, 1, 2, 40, 99, 187, 188, 250, 301, 371, 372, 373]

Crop = npt.NDArray[np.float32]
Spectrum = npt.NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--crops", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    crops = [music(index) for index in range(options.crops)]
    ways: dict[str, Callable[[Crop], Spectrum]] = {}
    held: dict[str, str] = {}
    for algorithm in ("fft", "CQT1992v2", "CQT2010v2"):
        ways[algorithm], held[algorithm] = constant_q(algorithm, crops[0])
    versions = f"torch {torch.__version__}"
    if importlib.util.find_spec("librosa"):
        ways["librosa.cqt"], librosa_version = of_librosa()
        versions += f", librosa {librosa_version}"
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    spectra = {name: np.stack([way(crop) for crop in crops]) for name, way in ways.items()}
    for _ in range(options.rounds):
        for name in random.sample(list(ways), len(ways)):
            start = time.process_time()
            for crop in crops:
                ways[name](crop)
            seconds[name].append((time.process_time() - start) / len(crops))
    truth = np.stack([true_frames(crop) for crop in crops])
    published = statistics.median(seconds["CQT1992v2"])
    print(f"{versions}, {torch.get_num_threads()} thread(s), ", end="")
    print(f"{options.crops} crops, {options.rounds} rounds")
    print(
        "| algorithm | CPU ms per crop (min - max) | CQT1992v2's time is | error in float64 "
        "| from CQT1992v2 | from librosa | buffers, made in |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = f"{1e3 * median:.2f} ({1e3 * min(values):.2f} - {1e3 * max(values):.2f})"
        errors = [relative(spectra[name][:, TRUE_FRAMES], truth)]
        errors += [
            relative(spectra[name], spectra[other]) if other in ways else 0.0
            for other in ("CQT1992v2", "librosa.cqt")
        ]
        shown = " | ".join("-" if error == 0 else f"{error:.1e}" for error in errors)
        times = f"{published / median:.1f} x"
        print(f"| {name} | {spread} | {times} | {shown} | {held.get(name, '-')} |")


def music(index: int) -> Crop:
    rendered = render_track(index, seed=0, kind="mix", seconds=6.0, sample_rate=24_000)
    mono = np.asarray(rendered.waveform).mean(axis=0, dtype=np.float32)
    return mono[12_000:132_000]


def constant_q(algorithm: Any, crop: Crop) -> tuple[Callable[[Crop], Spectrum], str]:
    """The transform as training calls it, and what its buffers weigh and took to make."""

    def run(crop: Crop) -> Spectrum:
        spectrum: Spectrum = transform(torch.from_numpy(crop)[None])[0].numpy()
        return spectrum

    start = time.process_time()
    transform = ConstantQ(GRID, scale="linear", algorithm=algorithm, **SETTINGS)
    run(crop)  # `fft` makes its tables here
    first = time.process_time() - start
    start = time.process_time()
    run(crop)
    made = first - (time.process_time() - start)
    size = sum(buffer.numel() * buffer.element_size() for buffer in transform.buffers())
    return run, f"{size / 1e6:.0f} MB, {made:.1f} s"


def of_librosa() -> tuple[Callable[[Crop], Spectrum], str]:
    import librosa

    def run(crop: Crop) -> Spectrum:
        spectrum = librosa.cqt(
            crop,
            sr=GRID.sample_rate,
            hop_length=GRID.hop_samples,
            fmin=SETTINGS["fmin"],
            n_bins=SETTINGS["bins"],
            bins_per_octave=SETTINGS["bins_per_octave"],
            norm=1,
            sparsity=0.0,
            pad_mode="constant",
        )
        return np.abs(spectrum).T[: GRID.num_frames(len(crop))].astype(np.float32)

    return run, str(librosa.__version__)


def true_frames(crop: Crop) -> npt.NDArray[np.float64]:
    """Frames ``TRUE_FRAMES`` of the transform by its definition, zeros outside: (frames, bins)."""
    quality = 1.0 / (2.0 ** (1.0 / SETTINGS["bins_per_octave"]) - 1.0)
    kernels, width, lengths, _ = create_cqt_kernels(
        quality, GRID.sample_rate, SETTINGS["fmin"], SETTINGS["bins"], SETTINGS["bins_per_octave"]
    )
    padded = np.pad(crop.astype(np.float64), (width // 2, width))
    hop = GRID.hop_samples
    windows = np.stack([padded[frame * hop : frame * hop + width] for frame in TRUE_FRAMES], axis=1)
    spectrum = np.empty((len(TRUE_FRAMES), len(kernels)))
    for bin_, kernel in enumerate(kernels):
        held = np.flatnonzero(kernel)
        sums = kernel[held].astype(np.complex128).conj() @ windows[held]
        spectrum[:, bin_] = np.sqrt(float(lengths[bin_])) * np.abs(sums)
    return spectrum


def relative(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


if __name__ == "__main__":
    main()
