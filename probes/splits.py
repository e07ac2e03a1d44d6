"""Which track is for fitting, which for choosing, which for the number that is reported.

Tracks, never clips: two clips of a track share its key, its instrument and its room, so that a
split of clips would measure memory.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

import numpy as np

Split = Literal["train", "valid", "test"]

SPLITS: tuple[Split, ...] = ("train", "valid", "test")

FRACTIONS: Mapping[Split, float] = {"train": 0.5, "valid": 0.15, "test": 0.35}
"""Large test share: what is wanted is a narrow interval, and a linear probe needs little data."""


def split_tracks(
    strata: Sequence[Hashable], classes: Sequence[frozenset[int]], *, seed: int
) -> list[Split]:
    """One split per track, a pure function of its arguments.

    Within each stratum the shares come as close to ``FRACTIONS`` as whole tracks allow, and what
    one stratum got too much of is taken off the next, so that the totals fit as well. The first
    track of every stratum trains.

    :param strata: what to balance over, one value per track (its key, its instrument).
    :param classes: labels that occur in each track; one that would be missing in training
        brings its first track there.
    """
    rng = np.random.default_rng((seed, 0x5B117))
    members: dict[Hashable, list[int]] = {}
    for track, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(track)

    assigned: dict[int, Split] = {}
    owed = dict.fromkeys(SPLITS, 0.0)
    for tracks in members.values():
        for position, track in enumerate(rng.permutation(tracks).tolist()):
            for split in SPLITS:
                owed[split] += FRACTIONS[split]
            chosen: Split = "train" if position == 0 else max(SPLITS, key=lambda s: owed[s])
            owed[chosen] -= 1.0
            assigned[track] = chosen

    trained = {
        label for track, split in assigned.items() if split == "train" for label in classes[track]
    }
    for track in range(len(strata)):
        if not classes[track] <= trained:
            assigned[track] = "train"
            trained |= classes[track]
    return [assigned[track] for track in range(len(strata))]
