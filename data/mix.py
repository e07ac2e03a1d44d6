"""Several corpora as one order, each heard in its share.

Positions come in blocks of ``BLOCK``. Each block holds the same number of places for a corpus,
dealt anew by a permutation that is a pure function of (seed, block); the k-th place of a corpus
over all blocks is its own k-th crop. So every corpus keeps its own passes and permutations, shares
are exact in every block, and position p is found without walking there.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import final

import numpy as np
import numpy.typing as npt

from etude.data.plan import CropPlan, PlannedCrop

BLOCK = 4096
"""Positions in which the shares are kept: the smallest share is one in so many."""


@final
class MixedPlan:
    """The order of crops of several corpora.

    :param shares: how much of what is heard each of ``parts`` is, in any unit; positive.
    :param seed: decides how corpora follow each other.
    """

    def __init__(self, parts: Sequence[CropPlan], shares: Sequence[float], *, seed: int) -> None:
        self.parts = tuple(parts)
        self.crop_samples = parts[0].crop_samples
        self.seed = seed
        self.counts = places(shares)

    @property
    def lookahead(self) -> int:
        """That of the corpus which is read fastest."""
        parts = zip(self.parts, self.counts, strict=True)
        return min((part.lookahead * BLOCK // n for part, n in parts if part.lookahead), default=0)

    def crop(self, position: int, attempt: int = 0) -> PlannedCrop:
        """The crop at a position; substitutes of a damaged clip come from the same corpus."""
        block, place = divmod(position, BLOCK)
        dealt, nth = _deal(self.seed, block, self.counts)
        part = int(dealt[place])
        index = block * self.counts[part] + int(nth[place])
        return self.parts[part].crop_at(index, position, attempt)._replace(part=part)

    def epochs(self, crops: int) -> list[float]:
        """Of each corpus, its current epoch as a fraction."""
        blocks, rest = divmod(crops, BLOCK)
        dealt, _ = _deal(self.seed, blocks, self.counts)
        begun = np.bincount(dealt[:rest], minlength=len(self.parts))
        return [
            part.epochs(blocks * count + int(more))[0]
            for part, count, more in zip(self.parts, self.counts, begun, strict=True)
        ]


def places(shares: Sequence[float]) -> tuple[int, ...]:
    """Places of a block for each share: by largest remainder, but at least one each."""
    exact = np.asarray(shares, dtype=np.float64) / np.sum(shares) * BLOCK
    counts = np.floor(exact).astype(np.int64)
    left = BLOCK - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:left]] += 1
    while not counts.all():
        counts[counts.argmin()] += 1
        counts[counts.argmax()] -= 1
    return tuple(counts.tolist())


@lru_cache(maxsize=4)
def _deal(
    seed: int, block: int, counts: tuple[int, ...]
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """The corpus of every place in a block, and which of the corpus' places it is."""
    key = np.array([seed, (1 << 62) + block], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    dealt = generator.permutation(np.repeat(np.arange(len(counts), dtype=np.int16), counts))
    nth = np.empty(BLOCK, np.int16)
    for part, count in enumerate(counts):
        nth[dealt == part] = np.arange(count)
    return dealt, nth
