"""Which clip is heard when: the order of a run, computed rather than stored.

Position p of a run is the p-th crop over all epochs. It belongs to epoch ``p // N`` and is the
``p % N``-th clip of that epoch's permutation, so that each clip is heard once per epoch and the
order is a pure function of (seed, corpus). Ranks and workers only take their share:

    update u, chunk c of the global batch, row i  ->  p = u * global_batch + c * micro_batch + i
    chunk c belongs to rank c % ranks; each worker takes every W-th micro-batch of its rank

Hence the same global batches for any number of ranks and workers, and going on at update u costs
nothing: there is no state but u.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from etude.data.crop import crop_start
from etude.data.errors import InputError
from etude.data.shards import Split
from etude.data.tokens import SplitTokens

SUBSTITUTES = 8
"""Clips that are tried in place of a damaged one."""


class PlannedCrop(NamedTuple):
    """One crop that is to be read."""

    position: int
    """Place in the run's order: the sample's id."""

    clip: int
    """Row of the split."""

    start: int
    """First sample within the clip."""


@dataclass(frozen=True)
class BatchShare:
    """How the global batch is cut among ranks."""

    global_batch: int
    micro_batch: int
    rank: int
    ranks: int

    @property
    def micro_batches(self) -> int:
        """Micro-batches that this rank runs per update."""
        return self.global_batch // (self.micro_batch * self.ranks)


class CropPlan:
    """The order of clips and crops of one split.

    :param split: clips shorter than ``min_samples`` are left out; ``too_short`` counts them.
    :param min_samples: shortest clip; one shorter than a crop is to be padded. A whole crop if not
        given.
    :param tokens: by name, what else travels with each crop; its frames are ``hop_samples`` long.
    :raises InputError: if every clip is shorter than a crop.
    """

    def __init__(
        self,
        split: Split,
        *,
        crop_samples: int,
        hop_samples: int,
        seed: int,
        tokens: Mapping[str, SplitTokens] | None = None,
        min_samples: int | None = None,
    ) -> None:
        lengths = np.asarray(split.num_samples)
        self.split = split
        self.tokens = dict(tokens or {})
        self.crop_samples = crop_samples
        self.hop_samples = hop_samples
        self.seed = seed
        self.clips = np.flatnonzero(lengths >= (min_samples or crop_samples))
        self.too_short = len(lengths) - len(self.clips)
        if not len(self.clips):
            longest = lengths.max() / split.corpus.sample_rate if len(lengths) else 0.0
            raise InputError(
                f"no clip of split `{split.name}` in {split.corpus.root} is as long as a crop: "
                f"data.crop_seconds is {crop_samples / split.corpus.sample_rate:g}, the longest "
                f"clip of {len(lengths)} has {longest:.2f} s. Lower data.crop_seconds or prepare "
                "the corpus with longer clips."
            )

    def crop(self, position: int, attempt: int = 0) -> PlannedCrop:
        """The crop at a position; ``attempt`` > 0 gives the substitutes of a damaged clip."""
        epoch, place = divmod(position, len(self.clips))
        # Substitutes lie far apart, so that one damaged shard does not use them all up.
        step = len(self.clips) // (SUBSTITUTES + 1) or 1
        order = _permutation(self.seed, epoch, len(self.clips))
        clip = int(self.clips[order[(place + attempt * step) % len(self.clips)]])
        start = crop_start(
            int(self.split.num_samples[clip]),
            self.crop_samples,
            hop_samples=self.hop_samples,
            seed=self.seed,
            position=position,
        )
        return PlannedCrop(position, clip, start)

    def positions(
        self, share: BatchShare, *, first_update: int, worker: int = 0, workers: int = 1
    ) -> Iterator[list[int]]:
        """Positions of this rank's micro-batches from ``first_update`` on, without end.

        With several workers each yields every ``workers``-th micro-batch counted from the first,
        which is the order in which torch's DataLoader asks them.
        """
        index = worker
        while True:
            update, micro = divmod(index, share.micro_batches)
            chunk = micro * share.ranks + share.rank
            first = (first_update + update) * share.global_batch + chunk * share.micro_batch
            yield list(range(first, first + share.micro_batch))
            index += workers


@lru_cache(maxsize=2)  # the current epoch and, at its end, the next
def _permutation(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    # As a plain list the two would become floats, and the epoch would be rounded away.
    key = np.array([seed, (1 << 63) + epoch], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    return generator.permutation(count)
