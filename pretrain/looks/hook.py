"""Looks at what a model predicts, for people: pictures, sound, use of classes (docs/looking.md).

judge held-out crops one by one -> the first, the worst, the best -> pictures and sound
of each -> counts of classes over all -> RUN/looks/step-…/ and TensorBoard
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, final

from torch import Tensor

from etude.pretrain.hooks import Hook, MetricsFile
from etude.pretrain.looks.album import Album
from etude.pretrain.looks.judging import Judged
from etude.pretrain.looks.pictures import compared, usage_picture
from etude.pretrain.looks.usage import Usage, add_usage
from etude.pretrain.masked_prediction import MaskedPrediction
from etude.pretrain.run_folder import RunFolder, step_folder
from etude.pretrain.targets.base import Target

if TYPE_CHECKING:
    from etude.pretrain.trainer import Trainer

_log = logging.getLogger(__name__)


@final
class Look(Hook):
    """Looks every so many updates and at the end, on the main rank.

    The other ranks go on and wait for this one where they next meet; ``look/seconds`` says how
    long. A look that cannot be written is told and left out.

    :param judge: judges the crops, always the same ones.
    :param shown: how many of the first, the worst and the best are shown.
    """

    def __init__(
        self,
        judge: Callable[[], Iterable[Judged]],
        objective: MaskedPrediction,
        folder: RunFolder,
        metrics: MetricsFile,
        *,
        every: int,
        shown: int,
        max_steps: int,
    ) -> None:
        self._judge = judge
        self._objective = objective
        self._folder = folder.looks
        self._metrics = metrics
        self._every = every
        self._shown = shown
        self._max_steps = max_steps

    def step_end(self, trainer: "Trainer") -> None:
        """Looks when it is time."""
        if trainer.step % self._every and trainer.step != self._max_steps:
            return
        began = time.perf_counter()
        values: dict[str, float] = {}
        try:
            usages = self._look(trainer.step)
        except OSError as error:
            _log.warning("the look of update %d could not be written: %s", trainer.step, error)
            values["look/failed"] = 1.0
        else:
            for name, usage in usages.items():
                values |= {f"look/{name}/{key}": value for key, value in usage.metrics().items()}
        values["look/seconds"] = time.perf_counter() - began
        self._metrics.write(trainer.step, values)

    def _look(self, step: int) -> dict[str, Usage]:
        classes = {
            name: target.classes
            for name, target in self._objective.targets.items()
            if isinstance(target, Target) and target.classes is not None
        }
        usages: dict[str, Usage] = {}
        judged: list[Judged] = []
        for crop in self._judge():
            add_usage(usages, crop, classes)
            judged.append(crop)
            # What is not among the chosen now will never be: its tensors can go.
            kept = choose(judged, self._shown).values()
            judged = [each if each in kept else each.emptied() for each in judged]
        album = Album(step_folder(self._folder, step), step, self._metrics.writer)
        try:
            self._fill(album, judged, usages)
            album.publish()
        finally:
            album.discard()
        return usages

    def _fill(self, album: Album, judged: Sequence[Judged], usages: dict[str, Usage]) -> None:
        chosen = choose(judged, self._shown)
        for label, crop in chosen.items():
            self._show(album, label, crop)
        for name, usage in usages.items():
            album.picture(f"usage-{name}", usage_picture(usage))
        album.note("crops", _crops(judged, chosen), _told(chosen))
        counts = {
            name: {"target": usage.target_KV.tolist(), "predicted": usage.predicted_KV.tolist()}
            for name, usage in usages.items()
        }
        if counts:
            album.note("usage", counts, f"classes of {', '.join(counts)} over masked frames")

    def _show(self, album: Album, label: str, crop: Judged) -> None:
        album.sound(label, crop.waveform, crop.sample_rate)
        for name, guess in crop.guesses.items():
            target = self._objective.targets[name]
            assert isinstance(target, Target)
            if target.classes is None:
                album.picture(f"{label}-{name}", compared(*guess, crop.mask_F))
            for words, values_F in (
                ("target", guess.target_BF),
                ("predicted", _filled(guess.target_BF, guess.predicted_BF, crop.mask_F)),
            ):
                if (sound := target.sound(values_F)) is not None:
                    album.sound(f"{label}-{name}-{words}", *sound)


def choose(judged: Sequence[Judged], number: int) -> dict[str, Judged]:
    """The first ones, those with the highest loss and those with the lowest, by a label."""
    by_loss = sorted(judged, key=lambda crop: math.inf if math.isnan(crop.loss) else crop.loss)
    groups = {"first": judged, "worst": by_loss[::-1], "best": by_loss}
    return {
        f"{name}-{place}": crop
        for name, group in groups.items()
        for place, crop in enumerate(group[:number], start=1)
    }


def _filled(target_F: Tensor, predicted_F: Tensor, mask_F: Tensor) -> Tensor:
    """What was predicted where frames were masked; elsewhere no head is trained to say anything."""
    filled_F = target_F.clone()
    filled_F[mask_F] = predicted_F[mask_F].to(target_F.dtype)
    return filled_F


def _crops(judged: Sequence[Judged], chosen: dict[str, Judged]) -> list[dict[str, object]]:
    return [
        {
            "clip": crop.clip,
            "corpus": crop.corpus,
            "start_seconds": crop.start_seconds,
            "loss": crop.loss if math.isfinite(crop.loss) else None,  # JSON has no NaN
            "shown_as": [label for label, other in chosen.items() if other is crop],
        }
        for crop in judged
    ]


def _told(chosen: dict[str, Judged]) -> str:
    rows = ["| shown as | clip | from | loss |", "|---|---|---|---|"]
    rows += [
        f"| {label} | {crop.clip} | {crop.start_seconds:.2f} s | {crop.loss:.4g} |"
        for label, crop in chosen.items()
    ]
    return "\n".join(rows)
