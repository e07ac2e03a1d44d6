"""Drawings of a corpus: what is distributed how, split by split."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from etude.data.inspection.audio import FLOOR_DB, ClipMeasures
from etude.data.inspection.figures import spectrum_quartiles
from etude.data.inspection.labels import LabelUsage
from etude.data.inspection.look import Inspection, SplitSample
from etude.pretrain.report_figures import RUN_COLOURS, drawing, grid, legend
from etude.pretrain.report_page import figure

Values = npt.NDArray[np.float64]

_BINS = 40
_LENGTHS = (
    "The last clip of a track is what remained of it. Clips shorter than a crop are left out of "
    "training, or padded."
)
_LEVEL = (
    "RMS of each clip, its mean taken away; a full-scale sine has -3 dBFS. Two humps are two ways "
    "of mastering, a tail to the left fades and silence."
)
_PEAK = "Largest sample of each clip. A pile at 0 dBFS is loud mastering, or clipping."
_SPECTRUM = (
    "Mean power of a clip per frequency: the median clip, and between which values half of the "
    "clips lie. The splits should look alike. A cliff that all quartiles share is a filter."
)
_BANDWIDTH = (
    "Above it, a clip holds nothing but the noise of rounding to 16 bit. Music that was recorded "
    "at the corpus' rate reaches half of it; a pile below comes from files of a lower rate or from "
    "lossy coding."
)
_SILENCE = (
    "Share of a clip's frames (50 ms) below -60 dBFS. What sits on the right teaches silence; it "
    "also makes one label of every target very frequent."
)
_LABELS = (
    "Share of the frames that have the commonest label, the second, and so on: flat is good. A "
    "codebook whose line falls off early leaves its other entries unused."
)


def corpus_panels(inspection: Inspection, over: str) -> list[str]:
    """The figures as HTML, in the order of the table.

    :param over: which clips those of the sample are.
    """
    numbers = iter(range(100))

    def panel(title: str, basis: str, note: str, plot: Callable[[Figure, Axes], None]) -> str:
        return figure(title, drawing(title, plot, number=next(numbers)), f"{note} {basis}")

    samples = [sample for sample in inspection.samples if sample.measures]
    lengths = {split.name: split.seconds for split in inspection.splits}
    made = [panel("Clip length", "All clips, by the index.", _LENGTHS, _steps(lengths, "s"))]
    if not samples:
        return made
    half = inspection.corpus.sample_rate / 2
    made += [
        panel("Level", over, _LEVEL, _steps(_of(samples, lambda s: [m.rms_db for m in s]), "dBFS")),
        panel("Peak", over, _PEAK, _steps(_of(samples, lambda s: [m.peak_db for m in s]), "dBFS")),
        panel("Spectrum", over, _SPECTRUM, lambda f, a: _spectra(inspection, samples, f, a)),
        panel(
            "Bandwidth",
            over,
            _BANDWIDTH,
            _steps(
                _of(samples, lambda s: [m.bandwidth or 0.0 for m in s]), "Hz", between=(0.0, half)
            ),
        ),
        panel(
            "Silence",
            over,
            _SILENCE,
            _steps(
                _of(samples, lambda s: [m.silent_share for m in s]),
                "share of frames",
                between=(0.0, 1.0),
            ),
        ),
    ]
    # One drawing per file of labels, whose codebooks are called NAME/q0 and so on.
    for name in dict.fromkeys(usage.name.partition("/")[0] for usage in inspection.labels):
        books = [u for u in inspection.labels if u.name.partition("/")[0] == name and u.frames]
        if books:
            of = f"{over} Labels of {books[0].clips:,} of these clips were counted."
            made.append(panel(f"Use of labels: {name}", of, _LABELS, _ranks(books)))
    return made


def _of(
    samples: Sequence[SplitSample], values: Callable[[Sequence[ClipMeasures]], list[float]]
) -> dict[str, Values]:
    return {sample.name: np.array(values(sample.measures)) for sample in samples}


def _steps(
    values: dict[str, Values], unit: str, *, between: tuple[float, float] | None = None
) -> Callable[[Figure, Axes], None]:
    """Histograms: shares of the clips of each split, one over the other."""
    everything = np.concatenate(list(values.values()))
    low, high = between or (float(everything.min()), float(everything.max()))
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _BINS + 1)

    def plot(figure: Figure, axes: Axes) -> None:
        for number, clips in enumerate(values.values()):
            shares = np.histogram(clips, bins=edges)[0] / len(clips)
            axes.stairs(shares, edges, color=_colour(number), linewidth=1.2, fill=False)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(unit)
        axes.set_ylabel("share of clips")
        grid(axes)
        legend(figure, _handles(list(values)))

    return plot


def _spectra(
    inspection: Inspection, samples: Sequence[SplitSample], figure: Figure, axes: Axes
) -> None:
    hertz = inspection.grid.frequencies[1:]
    lowest = 0.0
    for number, sample in enumerate(samples):
        quartiles = spectrum_quartiles(sample)
        assert quartiles is not None
        lower, median, upper = quartiles[:, 1:]
        axes.fill_between(hertz, lower, upper, color=_colour(number), alpha=0.2, linewidth=0)
        axes.plot(hertz, median, color=_colour(number), linewidth=1.0)
        lowest = min(lowest, float(lower[lower > FLOOR_DB].min(initial=0.0)))
    axes.axhline(inspection.grid.rounding_db, color=_colour(2), linestyle=":", linewidth=1.0)
    axes.set_ylim(bottom=min(lowest, inspection.grid.rounding_db) - 5)
    axes.set_xlabel("Hz")
    axes.set_ylabel("dBFS per bin")
    grid(axes)
    dotted = Line2D([], [], color=_colour(2), linestyle=":", label="rounding to 16 bit")
    legend(figure, [*_handles([sample.name for sample in samples]), dotted])


def _ranks(books: Sequence[LabelUsage]) -> Callable[[Figure, Axes], None]:
    """Shares of labels, the commonest first; the seventh line has the first's colour, dashed."""

    def plot(figure: Figure, axes: Axes) -> None:
        handles = []
        for number, usage in enumerate(books):
            shares = np.sort(usage.counts[usage.counts > 0])[::-1] / usage.frames
            dashed = "--" if number >= len(RUN_COLOURS) else "-"
            look: Any = {"color": _colour(number), "linestyle": dashed, "linewidth": 1.0}
            axes.plot(np.arange(1, len(shares) + 1), shares, **look)
            handles.append(Line2D([], [], label=usage.name.partition("/")[2], **look))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("rank of the label")
        axes.set_ylabel("share of frames")
        grid(axes)
        if len(books) > 1:
            legend(figure, handles)

    return plot


def _handles(names: Sequence[str]) -> list[Line2D]:
    return [Line2D([], [], color=_colour(i), label=name) for i, name in enumerate(names)]


def _colour(number: int) -> str:
    return RUN_COLOURS[number % len(RUN_COLOURS)]
