"""Cost and error of the CQT target's algorithms, beside librosa's on the same music.

    pip install -e ".[bench]"
    OMP_NUM_THREADS=1 python benchmarks/cqt.py [--crops N] [--rounds N]

One process, algorithms in random order within each round, process CPU time, median over rounds.
The crops are 5 s of demo music at 24 kHz; the settings are the published ones (336 bins, 48 per
octave from 32.7 Hz, hop 320). Errors are relative L2 over magnitudes.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import librosa
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from etude.data.demo.render import render_track
from etude.models.frames import FrameGrid
from etude.models.spectral import ConstantQ

GRID = FrameGrid(24_000, (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
SETTINGS = {"bins": 336, "bins_per_octave": 48, "fmin": 32.7}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--crops", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    crops = [music(index) for index in range(options.crops)]
    ways: dict[str, Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]] = {
        "nnAudio CQT1992v2 (default)": nnaudio("CQT1992v2"),
        "nnAudio CQT2010v2": nnaudio("CQT2010v2"),
        "librosa.cqt": of_librosa,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    spectra: dict[str, npt.NDArray[np.float32]] = {}
    for name, way in ways.items():  # also warms up
        spectra[name] = np.stack([way(crop) for crop in crops])
    for _ in range(options.rounds):
        for name in random.sample(list(ways), len(ways)):
            start = time.process_time()
            for crop in crops:
                ways[name](crop)
            seconds[name].append((time.process_time() - start) / len(crops))
    published = statistics.median(seconds["nnAudio CQT1992v2 (default)"])
    print(f"torch {torch.__version__}, librosa {librosa.__version__}, ", end="")
    print(f"{torch.get_num_threads()} thread(s), {options.crops} crops, {options.rounds} rounds")
    print(
        "| algorithm | CPU ms per crop (min - max) | of default | error vs librosa | vs default |"
    )
    print("|---|---|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = f"{1e3 * median:.0f} ({1e3 * min(values):.0f} - {1e3 * max(values):.0f})"
        errors = [
            relative(spectra[name], spectra[other])
            for other in ("librosa.cqt", "nnAudio CQT1992v2 (default)")
        ]
        shown = " | ".join("-" if error == 0 else f"{error:.1e}" for error in errors)
        print(f"| {name} | {spread} | {median / published:.2f} | {shown} |")


def music(index: int) -> npt.NDArray[np.float32]:
    rendered = render_track(index, seed=0, kind="mix", seconds=6.0, sample_rate=24_000)
    mono = np.asarray(rendered.waveform).mean(axis=0, dtype=np.float32)
    return mono[12_000:132_000]


def nnaudio(algorithm: str) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    transform = ConstantQ(GRID, scale="linear", algorithm=algorithm, **SETTINGS)

    def run(crop: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        spectrum: Tensor = transform(torch.from_numpy(crop)[None])
        return spectrum[0].numpy()

    return run


def of_librosa(crop: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
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


def relative(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


if __name__ == "__main__":
    main()
