"""The figures of an inspection, each with what it is over: for terminal, page and JSON alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt

from etude.data.inspection.audio import ClipMeasures
from etude.data.inspection.look import Inspection, SplitSample

Unit = Literal["count", "hours", "seconds", "bytes", "share", "dBFS", "Hz"]
Basis = Literal["index", "sample"]
Quantiles = tuple[float, ...]
"""Values at ``PERCENT``."""

PERCENT = (5, 25, 50, 75, 95)

DC_LIMIT = 1e-3
"""A clip has a DC offset from here on (-60 dBFS)."""

MOSTLY = 0.5
"""A clip is mostly silent if more of its frames than this are."""

FULL_BAND = 0.92
"""Of half the rate: what the corpus' own resampler leaves, which is no cut of the source."""

TELLTALES = (4000.0, 5512.5, 8000.0, 11025.0, 16000.0, 20000.0)
"""Hertz where audio ends that once had a lower rate, or passed an MP3 encoder (16 and 20 kHz)."""

_TOLERANCE_HZ = 300.0
"""Filters are not infinitely steep, and the bandwidth is known to a band."""


@final
@dataclass(frozen=True)
class Figure:
    """One quantity of every split."""

    key: str
    label: str
    unit: Unit
    basis: Basis
    """All clips, by the index; or those clips that were looked at."""
    values: Mapping[str, float | Quantiles | None]
    """Per split; ``None`` where nothing could be looked at."""


def figures(inspection: Inspection) -> list[Figure]:
    """All figures, in the order in which they are shown."""
    return [*_of_index(inspection), *_of_sample(inspection)]


def is_cut(measures: ClipMeasures, sample_rate: int) -> bool:
    """Whether a clip's spectrum ends as if cut off, below what the corpus' rate could hold."""
    return (
        measures.bandwidth is not None
        and measures.steep
        and measures.bandwidth < FULL_BAND * sample_rate / 2
    )


def spectrum_quartiles(sample: SplitSample) -> npt.NDArray[np.float64] | None:
    """Lower quartile, median and upper quartile over clips of their mean spectra, (3, bins)."""
    if not sample.measures:
        return None
    spectra = np.stack([measures.spectrum_db for measures in sample.measures])
    quartiles: npt.NDArray[np.float64] = np.percentile(spectra, (25, 50, 75), axis=0)
    return quartiles


def as_json(inspection: Inspection) -> dict[str, Any]:
    """Everything, for other programs."""
    corpus, totals = inspection.corpus, {split.name: split.clips for split in inspection.splits}
    return {
        "corpus": str(corpus.root),
        "fingerprint": corpus.fingerprint,
        "sample_rate": corpus.sample_rate,
        "seconds": inspection.seconds,
        "out_of_time": inspection.out_of_time,
        "sample": {
            sample.name: {
                "looked_at": sample.looked_at,
                "chosen": sample.chosen,
                "of": totals[sample.name],
            }
            for sample in inspection.samples
        },
        "percent": list(PERCENT),
        "figures": {
            figure.key: {"basis": figure.basis, "unit": figure.unit, **figure.values}
            for figure in figures(inspection)
        },
        "spectrum": {
            "hertz": [round(float(hertz), 1) for hertz in inspection.grid.frequencies],
            **{
                sample.name: np.round(quartiles, 1).tolist()
                for sample in inspection.samples
                if (quartiles := spectrum_quartiles(sample)) is not None
            },
        },
        "licences": corpus.licences,
        "tracks_read": inspection.tracks.read,
        "source_rates": {
            name: {str(rate): count for rate, count in sorted(rates.items())}
            for name, rates in inspection.tracks.source_rates.items()
        },
        "labels": [
            {
                "name": usage.name,
                "classes": usage.classes,
                "clips": usage.clips,
                "frames": usage.frames,
                "used": usage.used,
                "perplexity": usage.perplexity,
                "most_common": [list(pair) for pair in usage.most_common],
            }
            for usage in inspection.labels
        ],
        "copies": asdict(inspection.copies),
        "leaks": [asdict(leak) for leak in inspection.leaks],
        "damaged": [asdict(damage) for damage in inspection.damages],
    }


def _of_index(inspection: Inspection) -> list[Figure]:
    def row(key: str, label: str, unit: Unit, values: Sequence[float | Quantiles | None]) -> Figure:
        names = [split.name for split in inspection.splits]
        return Figure(key, label, unit, "index", dict(zip(names, values, strict=True)))

    splits = inspection.splits
    return [
        row("hours", "hours", "hours", [split.hours for split in splits]),
        row("clips", "clips", "count", [split.clips for split in splits]),
        row("tracks", "tracks", "count", [split.tracks for split in splits]),
        row("shards", "shards", "count", [split.shards for split in splits]),
        row("bytes", "size of the shards", "bytes", [split.bytes for split in splits]),
        row("clip_seconds", "clip length", "seconds", [_spread(s.seconds) for s in splits]),
    ]


def _of_sample(inspection: Inspection) -> list[Figure]:
    rate = inspection.corpus.sample_rate

    def row(
        key: str,
        label: str,
        unit: Unit,
        of: Callable[[Sequence[ClipMeasures]], float | Quantiles | None],
    ) -> Figure:
        values = {s.name: of(s.measures) if s.measures else None for s in inspection.samples}
        return Figure(key, label, unit, "sample", values)

    def share(key: str, label: str, holds: Callable[[ClipMeasures], bool]) -> Figure:
        return row(key, label, "share", lambda many: float(np.mean([holds(m) for m in many])))

    def ends_below(measures: ClipMeasures, hertz: float) -> bool:
        limit = min(hertz + _TOLERANCE_HZ, FULL_BAND * rate / 2)
        return measures.bandwidth is not None and measures.bandwidth <= limit

    counts = {sample.name: float(sample.looked_at) for sample in inspection.samples}
    damaged = {sample.name: float(sample.damaged) for sample in inspection.samples}
    return [
        Figure("looked_at", "clips looked at", "count", "sample", counts),
        Figure("damaged", "of them damaged", "count", "sample", damaged),
        row("rms", "level (RMS)", "dBFS", lambda many: _spread([m.rms_db for m in many])),
        row("peak", "peak", "dBFS", lambda many: _spread([m.peak_db for m in many])),
        share("dc", "clips with a DC offset", lambda m: abs(m.mean) > DC_LIMIT),
        share("clipped", "clips that touch full scale", lambda m: m.full_scale_samples > 0),
        row(
            "full_scale",
            "samples at full scale",
            "share",
            lambda many: sum(m.full_scale_samples for m in many) / sum(m.samples for m in many),
        ),
        row(
            "silent_frames",
            "silent frames",
            "share",
            lambda many: float(np.mean([m.silent_share for m in many])),
        ),
        share("mostly_silent", "clips mostly silent", lambda m: m.silent_share > MOSTLY),
        row(
            "bandwidth",
            "bandwidth",
            "Hz",
            lambda many: _spread([m.bandwidth for m in many if m.bandwidth is not None]),
        ),
        share("cut", "clips whose spectrum is cut off", lambda m: is_cut(m, rate)),
        *(
            share(
                f"nothing_above_{hertz:g}",
                f"clips with nothing above {hertz / 1000:.3g} kHz",
                lambda m, hertz=hertz: ends_below(m, hertz),  # type: ignore[misc]
            )
            for hertz in TELLTALES
            if hertz <= FULL_BAND * rate / 2
        ),
    ]


def _spread(values: Sequence[float] | npt.NDArray[np.float64]) -> Quantiles | None:
    if not len(values):
        return None
    return tuple(float(value) for value in np.percentile(np.asarray(values), PERCENT))
