"""Finished tracks and their splits -> which shard -> tars.

The plan is a pure function of the tracks' records and the settings, so that an interrupted run
plans the same shards again and writes only those that are missing.
"""

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from etude.data.clip_format import EXTENSIONS, AudioFormat
from etude.data.errors import DataError
from etude.data.files import published
from etude.data.prepare_splits import SplitName
from etude.data.prepare_track import Clip, Track, clips_path
from etude.data.tar import BLOCK, add_member


@final
@dataclass(frozen=True)
class ShardPlan:
    """One tar to be."""

    file: str
    split: SplitName
    clips: tuple[tuple[Track, Clip], ...]
    audio_format: AudioFormat = "flac"


def drop_duplicates(tracks: Sequence[Track]) -> tuple[list[Track], dict[str, str]]:
    """Tracks to keep, and {id of a copy: name of the first one}, by decoded content."""
    first: dict[str, str] = {}
    kept: list[Track] = []
    copies: dict[str, str] = {}
    for track in tracks:
        if track.content in first:
            copies[track.id] = first[track.content]
        else:
            first[track.content] = track.name
            kept.append(track)
    return kept, copies


def plan_shards(
    tracks: Sequence[Track],
    splits: dict[str, SplitName],
    *,
    shard_bytes: int,
    audio_format: AudioFormat = "flac",
) -> list[ShardPlan]:
    """Fills shards in the order of tracks and clips, up to ``shard_bytes`` each."""
    plans: list[ShardPlan] = []

    def add(split: SplitName, number: int, clips: list[tuple[Track, Clip]]) -> None:
        file = f"{split}-{number:06d}.tar"
        plans.append(ShardPlan(file, split, tuple(clips), audio_format))

    names: tuple[SplitName, ...] = ("train", "valid")
    for split in names:
        clips: list[tuple[Track, Clip]] = []
        filled = number = 0
        for track in tracks:
            if splits[track.id] != split:
                continue
            for clip in track.clips:
                size = _in_tar(clip.audio_size) + _in_tar(clip.json_size)
                if clips and filled + size > shard_bytes:
                    add(split, number, clips)
                    clips, filled, number = [], 0, number + 1
                clips.append((track, clip))
                filled += size
        if clips:
            add(split, number, clips)
    return plans


def write_shard(plan: ShardPlan, root: Path, work: Path) -> None:
    """Writes one tar: no times, no owners, so that equal audio gives equal bytes.

    ``tarfile`` and not ``webdataset.TarWriter``: the same ustar members, without importing torch.
    """
    with (
        published(root / plan.file) as out,
        tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for track, clip in plan.clips:
            audio, metadata = _read_clip(track, clip, work)
            add_member(tar, f"{clip.key}.{EXTENSIONS[plan.audio_format]}", audio)
            add_member(tar, f"{clip.key}.json", metadata)


@final
class Release:
    """Deletes the work files of tracks once every shard that holds a part of them is written.

    So a run needs little more disk than the corpus itself. The tars are asked, and not a counter:
    other processes may write some of them, at the same time or before a run that continues.
    """

    def __init__(self, plans: Sequence[ShardPlan], root: Path, work: Path) -> None:
        self._root = root
        self._work = work
        self._shards: dict[str, list[str]] = {}
        for plan in plans:
            for track_id in dict.fromkeys(track.id for track, _ in plan.clips):
                self._shards.setdefault(track_id, []).append(plan.file)

    def after(self, plan: ShardPlan) -> None:
        """Looks at the tracks of a shard that has just been written."""
        for track_id in {track.id for track, _ in plan.clips}:
            if all((self._root / file).is_file() for file in self._shards[track_id]):
                clips_path(self._work, track_id).unlink(missing_ok=True)


def _read_clip(track: Track, clip: Clip, work: Path) -> tuple[bytes, bytes]:
    index = track.clips.index(clip)
    offset = sum(before.audio_size + before.json_size for before in track.clips[:index])
    path = clips_path(work, track.id)
    if not path.is_file():
        raise DataError(
            f"{path}: the encoded clips of {track.name} are gone, although its record is there. "
            f"Delete {work.parent} and prepare again."
        )
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(clip.audio_size), file.read(clip.json_size)


def _in_tar(size: int) -> int:
    return BLOCK + -(-size // BLOCK) * BLOCK
