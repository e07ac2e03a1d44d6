"""What of an inspection someone should look at: sentences, and the clips that are oddest."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

from etude.data.inspection.audio import ClipMeasures
from etude.data.inspection.figures import DC_LIMIT, MOSTLY, is_cut
from etude.data.inspection.index import EXAMPLES
from etude.data.inspection.look import Inspection

_WORTH_SAYING = 0.01
"""Share of clips from which on silence, clipping and cut spectra stand among the findings."""

_NEARLY_CONSTANT = 0.5
"""Training refuses labels of which one is more frequent than this (``pretrain/label_check.py``)."""

_LEAKS = {
    "track": "held-out clips are of tracks that train has too: held-out figures would be too good",
    "audio": "held-out clips are, to the byte, clips of train: held-out figures would be too good",
    "source": "held-out tracks are of files that train has too: held-out figures would be too good",
    "artist": "held-out tracks are by artists that train has too: tracks are held out, not artists",
}


@final
@dataclass(frozen=True)
class Oddity:
    """The clips that are farthest out in one respect."""

    title: str
    clips: tuple[tuple[str, str], ...]
    """Names and what was found, the worst first."""
    count: int
    """All clips of the sample that are so."""


def findings(inspection: Inspection) -> Iterator[str]:
    """A sentence for everything that is not as it should be; nothing for a good corpus."""
    if inspection.damages:
        clips = len({damage.clip for damage in inspection.damages})
        yield f"{clips} of the clips that were opened {_are(clips)} damaged (named below)."
    for leak in inspection.leaks:
        if leak.found:
            yield f"{leak.found:,} of {leak.held_out:,} {_LEAKS[leak.kind]}."
    copies = inspection.copies
    if copies.extra_clips:
        yield (
            f"{copies.extra_clips:,} clips have the same audio as another clip ({copies.groups:,} "
            f"recordings, {copies.groups_across_tracks:,} of them in several tracks): they are "
            "trained on more often than the rest."
        )
    for oddity in oddities(inspection):
        measured = sum(len(sample.measures) for sample in inspection.samples)
        if oddity.count > _WORTH_SAYING * measured:
            share = oddity.count / measured
            yield f"{share:.1%} of the clips that were looked at: {oddity.title}."
    for usage in inspection.labels:
        if usage.most_common and usage.most_common[0][1] > _NEARLY_CONSTANT:
            label, share = usage.most_common[0]
            yield (
                f"{usage.name}: label {label} makes up {share:.1%} of {usage.frames:,} frames: "
                "training refuses such labels."
            )


def oddities(inspection: Inspection) -> list[Oddity]:
    """Clips of the sample to listen to; only kinds of which there are any."""
    rate = inspection.corpus.sample_rate
    named = [
        (name, measures)
        for sample in inspection.samples
        for name, measures in zip(sample.clips, sample.measures, strict=True)
    ]

    def of(
        title: str,
        badness: Callable[[ClipMeasures], float],
        describe: Callable[[ClipMeasures], str],
    ) -> Oddity:
        """``badness`` is 0 for a clip that is not odd."""
        odd = [(name, measures) for name, measures in named if badness(measures) > 0]
        worst = sorted(odd, key=lambda pair: -badness(pair[1]))[:EXAMPLES]
        return Oddity(title, tuple((name, describe(m)) for name, m in worst), len(odd))

    found = [
        of(
            "mostly silent",
            lambda m: m.silent_share if m.silent_share > MOSTLY else 0.0,
            lambda m: f"{m.silent_share:.0%} silent, level {m.rms_db:.1f} dBFS",
        ),
        of(
            "a DC offset",
            lambda m: abs(m.mean) if abs(m.mean) > DC_LIMIT else 0.0,
            lambda m: f"mean {m.mean:+.4f} of full scale",
        ),
        of(
            "touching full scale",
            lambda m: m.full_scale_samples / m.samples,
            lambda m: f"{m.full_scale_samples:,} of {m.samples:,} samples",
        ),
        of(
            "a spectrum that is cut off",
            lambda m: rate / (m.bandwidth or rate) if is_cut(m, rate) else 0.0,
            lambda m: f"nothing above {m.bandwidth or 0:,.0f} Hz",
        ),
        of(
            "nothing but rounding noise",
            lambda m: float(m.bandwidth is None),
            lambda m: f"level {m.rms_db:.1f} dBFS",
        ),
    ]
    return [oddity for oddity in found if oddity.count]


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
