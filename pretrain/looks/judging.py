"""Held-out crops judged one by one: the loss of each, and what was predicted of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from etude.data.pipeline import held_out, held_out_batches
from etude.data.plan import Plan
from etude.pretrain.engine import move
from etude.pretrain.masked_prediction import Guess, MaskedPrediction
from etude.pretrain.metrics import MetricSums


@dataclass(frozen=True, eq=False)
class Judged:
    """One crop."""

    clip: str
    """Its clip's key."""

    corpus: str
    """Folder or URL."""

    start_seconds: float
    """Of the crop within the clip."""

    loss: float
    """What validation averages over crops; computed in float32."""

    waveform: Tensor
    """int16 (T,), without padding, on the host."""

    sample_rate: int

    mask_F: Tensor
    """True where frames were masked, on the host."""

    guesses: dict[str, Guess]
    """By target, of this one crop, without padding: (F, …), on the host."""

    def emptied(self) -> "Judged":
        """The same without what is shown of it."""
        return replace(self, waveform=torch.zeros(0, dtype=torch.int16), guesses={})


@torch.no_grad()
def judge(
    objective: MaskedPrediction,
    plan: Plan,
    *,
    crops: int,
    device: torch.device,
    beat: Callable[[], None],
) -> Iterator[Judged]:
    """The first ``crops`` crops of validation, with its masks.

    A crop's loss is that of a batch of it alone: nothing in an encoder looks across a batch.

    :param beat: is called before each.
    """
    objective.eval()
    batches = held_out_batches(plan, crops=crops, micro_batch=1, rank=0, ranks=1)
    for planned, batch in zip(islice(held_out(plan), crops), batches, strict=True):
        beat()
        part = plan.parts[planned.part]
        rate = part.split.corpus.sample_rate
        samples = batch.waveform.shape[1] if batch.num_samples is None else int(batch.num_samples)
        frames = objective.encoder.grid.num_frames(samples)
        moved = move(batch, device)
        sums = MetricSums()
        sums.add({"loss": objective(moved).metrics["loss"]})
        mask_BF, guesses = objective.guess(moved)
        yield Judged(
            clip=part.split.key(planned.clip),
            corpus=part.split.corpus.place,
            start_seconds=planned.start / rate,
            loss=sums.results()["loss"],
            waveform=batch.waveform[0, :samples],
            sample_rate=rate,
            mask_F=mask_BF[0, :frames].cpu(),
            guesses={
                name: Guess(*(values_BF[0, :frames].cpu() for values_BF in guess))
                for name, guess in guesses.items()
            },
        )
