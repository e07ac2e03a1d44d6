"""How labels are used: of each codebook the entries in use, their perplexity, the commonest.

Stored tokens are read here. Labels that have to be computed (k-means) are another listener's, where
there is torch: see ``etude.pretrain.inspection_kmeans``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
import numpy.typing as npt

from etude.data.audio import Samples
from etude.data.errors import DataError, InputError
from etude.data.shards import Corpus, Split
from etude.data.tokens import SplitTokens, Tokens, open_tokens, tokens_root

_MOST_COMMON = 3


@final
@dataclass(frozen=True)
class LabelUsage:
    """One stream of labels over the clips that were looked at, all splits together."""

    name: str
    classes: int
    clips: int
    counts: npt.NDArray[np.int64]
    """Frames of every class."""

    @property
    def frames(self) -> int:
        """All frames that were counted."""
        return int(self.counts.sum())

    @property
    def used(self) -> int:
        """Classes that occur."""
        return int(np.count_nonzero(self.counts))

    @property
    def perplexity(self) -> float:
        """Exponential of the entropy: the number of equally common classes that say as much."""
        share = self.counts[self.counts > 0] / max(1, self.frames)
        return float(np.exp(-(share * np.log(share)).sum()))

    @property
    def most_common(self) -> tuple[tuple[int, float], ...]:
        """The commonest classes with their share of the frames."""
        order = np.argsort(-self.counts, kind="stable")[:_MOST_COMMON]
        return tuple(
            (int(label), float(self.counts[label] / self.frames))
            for label in order
            if self.counts[label]
        )


class Listener(Protocol):
    """Something that counts labels of the clips that are looked at."""

    def hear(self, split: Split, clip: int, samples: Samples) -> None:
        """Takes one clip, (frames,).

        :raises DataError: if what is stored for it is damaged.
        """

    def usage(self) -> list[LabelUsage]:
        """What was counted so far, one per codebook."""


@final
class TokenCounter:
    """Counts the stored tokens of a codec."""

    def __init__(self, tokens: Tokens) -> None:
        settings = tokens.settings
        self._tokens = tokens
        self._splits: dict[str, SplitTokens] = {}
        self._counts = np.zeros((settings.codebooks, settings.codebook_size), dtype=np.int64)
        self._clips = 0

    def hear(self, split: Split, clip: int, samples: Samples) -> None:
        """Reads the clip's tokens."""
        if split.name not in self._splits:
            self._splits[split.name] = self._tokens.split(split.name)
        stored = self._splits[split.name]
        codes, size = stored.read(clip), self._tokens.settings.codebook_size
        if codes.size and int(codes.max()) >= size:
            raise DataError(
                f"{stored.place(clip)}: codes must be below {size}, but one is {codes.max()}. "
                "Encode the corpus again."
            )
        for counts, book in zip(self._counts, codes.T, strict=True):
            counts += np.bincount(book, minlength=size)
        self._clips += 1

    def usage(self) -> list[LabelUsage]:
        """One per codebook."""
        size = self._tokens.settings.codebook_size
        return [
            LabelUsage(f"{self._tokens.name}/q{k}", size, self._clips, counts)
            for k, counts in enumerate(self._counts)
        ]


def token_counters(corpus: Corpus) -> tuple[list[TokenCounter], list[str]]:
    """A counter for each set of stored tokens, and why others cannot be read."""
    counters, problems = [], []
    for name in _names(corpus):
        try:
            counters.append(TokenCounter(open_tokens(corpus, name)))
        except (DataError, InputError) as error:
            problems.append(f"tokens {name!r}: {error}")
    return counters, problems


def _names(corpus: Corpus) -> Sequence[str]:
    folder = tokens_root(corpus, "")
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir())
