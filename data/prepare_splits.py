"""Which tracks are held out: whole groups, in the order of a hash of the seed and their name.

A group is the tracks of one artist (``--group-by``); a track that names none is a group of its own.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from etude.data.groups import NO_GROUPS
from etude.data.prepare_track import Track

SplitName = Literal["train", "valid"]


@final
@dataclass(frozen=True)
class Group:
    """Tracks that go into the same split."""

    name: str
    """That of the value they share, or of the one track that stands alone."""
    alone: bool
    """Whether this is a track without a value."""
    tracks: tuple[Track, ...]

    @property
    def num_samples(self) -> int:
        """Length of all its tracks, in samples of the corpus."""
        return sum(track.num_samples for track in self.tracks)


def groups_of(tracks: Sequence[Track]) -> list[Group]:
    """The groups of these tracks, in the order of their first ones."""
    members: dict[tuple[bool, str], list[Track]] = {}
    for track in tracks:
        key = (False, track.group) if track.group else (True, track.name)
        members.setdefault(key, []).append(track)
    return [Group(name, alone, tuple(found)) for (alone, name), found in members.items()]


def assign_splits(
    groups: Sequence[Group], *, valid_fraction: float, valid_samples_limit: int, seed: int
) -> dict[str, SplitName]:
    """Track id -> split.

    Groups go to valid until its share is as close as tracks that stand alone come to
    ``valid_fraction`` of the audio: at least one where there are two, never all of them. A group
    that shares a value may be a third of the corpus: where it would overshoot by more than it
    brings nearer it is passed over, and if that goes for all of them, the smallest is held out.
    """
    splits: dict[str, SplitName] = {track.id: "train" for group in groups for track in group.tracks}
    if valid_fraction <= 0 or len(groups) < 2:
        return splits
    total = sum(group.num_samples for group in groups)
    target = min(valid_fraction * total, valid_samples_limit)
    for group in _held_out(sorted(groups, key=lambda group: _draw(seed, group)), target):
        splits.update((track.id, "valid") for track in group.tracks)
    return splits


def _held_out(drawn: Sequence[Group], target: float) -> list[Group]:
    chosen: list[Group] = []
    taken = 0
    for group in drawn:
        if len(chosen) == len(drawn) - 1:
            break
        if taken + group.num_samples / 2 <= target or (group.alone and not chosen):
            chosen.append(group)
            taken += group.num_samples
        elif group.alone:
            break
    # None fits: of any two groups the smaller one leaves valid closer to what was asked for.
    return chosen or [min(drawn, key=lambda group: group.num_samples)]


def _draw(seed: int, group: Group) -> bytes:
    # A track alone is drawn by its name, as in corpora of the time before there were groups.
    name = group.name if group.alone else f"group {group.name}"
    return hashlib.sha256(f"{seed} ".encode() + name.encode("utf-8", "surrogateescape")).digest()


def describe_groups(groups: Sequence[Group], splits: dict[str, SplitName], group_by: str) -> str:
    """What is held out together, and how much of it was, for people."""
    named = [group for group in groups if not group.alone]
    held_out = sum(splits[group.tracks[0].id] == "valid" for group in groups)
    if not named:
        reason = "" if group_by == NO_GROUPS else f" (no track has a tag or a row with {group_by})"
        return f"by track{reason}: {held_out} of {len(groups)} held out"
    alone = len(groups) - len(named)
    return (
        f"by {group_by}: {sum(len(group.tracks) for group in named)} tracks in {len(named)} groups"
        + (f", {alone} tracks alone" if alone else "")
        + f"; {held_out} of {len(groups)} held out"
    )
