"""Which clip is heard when: the order of a run, computed rather than stored.

Position p of a run is the p-th crop over all epochs. It belongs to pass ``p // N`` through the
corpus and is the ``p % N``-th clip of that pass' permutation, so that each clip is heard once per
pass and the order is a pure function of (seed, corpus). Ranks and workers only take their share:

    update u, chunk c of the global batch, row i  ->  p = u * global_batch + c * micro_batch + i
    chunk c belongs to rank c % ranks; each worker takes every W-th micro-batch of its rank

Hence the same global batches for any number of ranks and workers, and going on at update u costs
nothing: there is no state but u. Several corpora: ``mix.py``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from etude.data.crop import crop_start
from etude.data.errors import InputError
from etude.data.shards import Split
from etude.data.tokens import SplitTokens

SUBSTITUTES = 8
"""Clips that are tried in place of a damaged one."""

_KEPT_ORDERS = 2  # the current pass and, at its end, the next


class PlannedCrop(NamedTuple):
    """One crop that is to be read."""

    position: int
    """Place in the run's order: the sample's id."""

    clip: int
    """Row of the split."""

    start: int
    """First sample within the clip."""

    part: int = 0
    """Which of the plan's parts it belongs to."""


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

    def positions(
        self, *, first_update: int, worker: int = 0, workers: int = 1
    ) -> Iterator[list[int]]:
        """Positions of this rank's micro-batches from ``first_update`` on, without end.

        With several workers each yields every ``workers``-th micro-batch counted from the first,
        which is the order in which torch's DataLoader asks them.
        """
        index = worker
        while True:
            update, micro = divmod(index, self.micro_batches)
            chunk = micro * self.ranks + self.rank
            first = (first_update + update) * self.global_batch + chunk * self.micro_batch
            yield list(range(first, first + self.micro_batch))
            index += workers


class Plan(Protocol):
    """An order of crops, of one corpus or of several."""

    crop_samples: int
    """Samples of a crop."""

    @property
    def parts(self) -> Sequence["CropPlan"]:
        """The corpora that crops come from."""

    def crop(self, position: int, attempt: int = 0) -> PlannedCrop:
        """The crop at a position; ``attempt`` > 0 gives the substitutes of a damaged clip."""

    @property
    def lookahead(self) -> int:
        """How many positions before a crop its shard should be asked for; 0 if all are here."""

    def epochs(self, crops: int) -> list[float]:
        """How often each part's clips have been heard when ``crops`` crops have been."""


class CropPlan:
    """The order of clips and crops of one split.

    :param split: clips shorter than ``min_samples`` are left out; ``too_short`` counts them.
    :param min_samples: shortest clip; one shorter than a crop is to be padded. A whole crop if not
        given.
    :param tokens: by name, what else travels with each crop; its frames are ``hop_samples`` long.
    :param crops_per_clip: passes that make an epoch; each takes its crops from another part of the
        clips.
    :param block_shards: clips are shuffled within blocks of so many shards, and the shards among
        them, so that a reader needs few shards at a time; 0 shuffles all clips freely.
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
        crops_per_clip: int = 1,
        block_shards: int = 0,
    ) -> None:
        lengths = np.asarray(split.num_samples)
        self.split = split
        self.tokens = dict(tokens or {})
        self.crop_samples = crop_samples
        self.hop_samples = hop_samples
        self.seed = seed
        self.crops_per_clip = crops_per_clip
        self.block_shards = block_shards
        self.clips = np.flatnonzero(lengths >= (min_samples or crop_samples))
        self.too_short = len(lengths) - len(self.clips)
        self._orders: dict[int, npt.NDArray[np.int32]] = {}
        if not len(self.clips):
            longest = lengths.max() / split.corpus.sample_rate if len(lengths) else 0.0
            raise InputError(
                f"no clip of split `{split.name}` in {split.corpus.root} is as long as a crop: "
                f"data.crop_seconds is {crop_samples / split.corpus.sample_rate:g}, the longest "
                f"clip of {len(lengths)} has {longest:.2f} s. Lower data.crop_seconds or prepare "
                "the corpus with longer clips."
            )

    def __getstate__(self) -> dict[str, Any]:
        # Orders are computed again where they are needed: cheaper than to pickle them.
        return {**self.__dict__, "_orders": {}}

    @property
    def parts(self) -> tuple["CropPlan"]:
        """Itself: one corpus."""
        return (self,)

    @property
    def lookahead(self) -> int:
        """A block, of a corpus whose shards are elsewhere."""
        if self.split.corpus.store is None:
            return 0
        return self.block_shards * len(self.clips) // len(self.split.corpus.shards) or 1

    @property
    def seconds(self) -> float:
        """Audio in the clips that are heard."""
        return float(self.split.num_samples[self.clips].sum()) / self.split.corpus.sample_rate

    def epochs(self, crops: int) -> list[float]:
        """Passes over ``crops_per_clip``, the current one as a fraction."""
        return [crops / (len(self.clips) * self.crops_per_clip)]

    def crop(self, position: int, attempt: int = 0) -> PlannedCrop:
        """The crop at a position; ``attempt`` > 0 gives the substitutes of a damaged clip."""
        return self.crop_at(position, position, attempt)

    def crop_at(self, index: int, position: int, attempt: int = 0) -> PlannedCrop:
        """The ``index``-th crop of this corpus, as that of ``position`` in the run."""
        number, place = divmod(index, len(self.clips))
        # Substitutes lie far apart, so that one damaged shard does not use them all up.
        step = len(self.clips) // (SUBSTITUTES + 1) or 1
        row = self.order(number)[(place + attempt * step) % len(self.clips)]
        clip = int(self.clips[row])
        start = crop_start(
            int(self.split.num_samples[clip]),
            self.crop_samples,
            hop_samples=self.hop_samples,
            seed=self.seed,
            position=position,
            # Turned by the clip, or a pass would hear all clips at the same part.
            stratum=(number + clip) % self.crops_per_clip,
            strata=self.crops_per_clip,
        )
        return PlannedCrop(position, clip, start)

    def order(self, number: int) -> npt.NDArray[np.int32]:
        """The clips of pass ``number`` in their order, as rows of ``clips``."""
        if number not in self._orders:
            while len(self._orders) >= _KEPT_ORDERS:
                del self._orders[min(self._orders)]
            self._orders[number] = self._make_order(number)
        return self._orders[number]

    def _make_order(self, number: int) -> npt.NDArray[np.int32]:
        # As a plain list the two would become floats, and the pass would be rounded away.
        key = np.array([self.seed, (1 << 63) + number], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        if not self.block_shards:
            return generator.permutation(len(self.clips)).astype(np.int32)
        shards = self.split.members["shard"][self.clips]
        _, shard_of = np.unique(shards, return_inverse=True)
        ranks = generator.permutation(int(shard_of[-1]) + 1)
        blocks = ranks[shard_of] // self.block_shards
        return np.lexsort((generator.random(len(self.clips)), blocks)).astype(np.int32)
