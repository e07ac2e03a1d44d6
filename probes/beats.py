"""Beats as frames: what a head is trained on, and how its activation becomes times again.

No tempo model smooths the activation (MARBLE runs madmom's): peaks say what the features know, and
a model of steady pulses would put back much of what they lack.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.signal import find_peaks

from etude.probes.task_types import Example, Span

MIN_GAP_SECONDS = 0.25
"""Between two beats: the demo corpus' fastest are 0.33 s apart."""


def beat_targets(example: Example) -> npt.NDArray[np.float32]:
    """1 for the span that holds a beat, .5 for its neighbours, (spans,)."""
    assert isinstance(example.truth, tuple)
    starts = np.array([_span(span)[0] for span in example.spans])
    targets = np.zeros(len(starts) + 2, dtype=np.float32)
    for beat in example.truth:
        place = int(np.searchsorted(starts, beat, side="right")) - 1
        # Shifted by one: a neighbour beyond the clip falls on a margin that is cut off.
        targets[place : place + 3] = np.maximum(targets[place : place + 3], (0.5, 1.0, 0.5))
    return targets[1:-1]


def pick_beats(
    activation: npt.NDArray[np.float32], spans: Sequence[Span | None]
) -> npt.NDArray[np.float64]:
    """Times of the peaks above the clip's own mean, in seconds.

    :param activation: of each span, (spans,).
    """
    centres = np.array([sum(_span(span)) / 2 for span in spans])
    step = float(centres[1] - centres[0]) if len(centres) > 1 else MIN_GAP_SECONDS
    # Low at both ends, so that a beat in the first or the last span is a peak too.
    level = float(activation.mean())
    padded = np.pad(activation, 1, constant_values=float(activation.min()) - 1.0)
    peaks, _ = find_peaks(padded, height=level, distance=max(1, round(MIN_GAP_SECONDS / step)))
    return np.asarray(centres[peaks - 1], dtype=np.float64)


def regular_pulse(examples: Sequence[Example]) -> npt.NDArray[np.float64]:
    """The beats that a listener would tap without hearing: the median period, from 0 on."""
    gaps = np.concatenate([np.diff(example.truth) for example in examples])
    seconds = max(example.clip.seconds for example in examples)
    period = float(np.median(gaps)) if len(gaps) else seconds
    return np.arange(0.0, seconds, period)


def _span(span: Span | None) -> Span:
    assert span is not None, "beats are asked of stretches of a clip, not of all of it"
    return span
