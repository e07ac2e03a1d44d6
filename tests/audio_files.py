"""Music-like audio for tests, and the files it is written to."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

RATE = 24000

Samples = npt.NDArray[np.float32]


def tune(seconds: float, *, seed: int = 0, rate: int = RATE) -> Samples:
    """A few decaying partials with a little noise: something that compresses like music."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    signal = 0.002 * random.standard_normal(len(time))
    for frequency in random.uniform(110, 1760, 5):
        beat = (time * random.uniform(1, 4)) % 1
        signal += 0.12 * np.exp(-3 * beat) * np.sin(2 * np.pi * frequency * time)
    return signal.astype(np.float32)


def write(
    path: Path,
    samples: Samples,
    *,
    rate: int = RATE,
    container: str | None = None,
    subtype: str | None = None,
) -> Path:
    """Writes real audio in the format of the file's name, or the one given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    container = container or path.suffix[1:].upper().replace("OPUS", "OGG")
    if path.suffix == ".opus":
        subtype = "OPUS"
    soundfile.write(path, samples, rate, format=container, subtype=subtype)
    return path
