"""Section ``probe``: probes beside training (docs/probes_in_training.md). No torch here."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from etude.pretrain.config_types import Count, Natural, NonNegative, Section


class ProbeConfig(Section):
    """``launch/probe.py`` on the encoder as it is, beside training. May change on continuing."""

    every_steps: Natural = 0
    """Updates between probes; 0: none."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """What is asked of the features; ``None``: what ``launch/probe.py`` asks by itself."""

    tracks: Count | None = None
    """Tracks of each kind; ``None``: the probe's own number."""

    seconds: Annotated[float, Field(ge=5.0)] = 15.0
    """Length of a track, in which a clip of 5 s must lie."""

    seed: Natural = 0
    """Tracks, splits, bootstrap: the same for every probe of a run."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where the encoder runs: ``cuda`` is the GPU of rank 0, beside training, whose memory and time
    it takes a part of."""

    threads: Count = 1
    """Cores that a probe may use; training comes first on them (a priority of nice 19)."""

    cache: Path | None = None
    """``--cache`` of ``launch/probe.py``, which runs may share; ``None``: ``RUN/probes/corpus``."""

    wait_seconds: NonNegative = 300.0
    """How long a run that has come to its end waits for a probe that is not done; the same command
    again begins it anew."""
