"""Files -> shards: the stages of `launch/prepare.py`, in order.

    scan      find audio files, by name and by content               sources.py
    match     rows of --metadata to tracks                           metadata.py
    join      the other ranks of the same launch, where there are    prepare_ranks.py
    begin     or continue, or refuse                                 prepare_start.py
    estimate  how much audio, how much disk                          prepare_estimate.py
    pack      each file -> encoded clips in DIR/.work, in parallel   prepare_track.py
    plan      drop duplicates, split by artist, fill shards          prepare_splits.py
    write     tars, one after the other; work files are released     prepare_shards.py
    index     read the tars back, strictly                           index.py
    report    report.json, and index.json last of all                prepare_report.py

Each stage is a pure function of the sources and the settings, and leaves whole files behind or
none: an interrupted run continues, and ends with the same bytes as one that was left alone. So
several ranks can share the work: each packs its part of the sources, all plan the same shards from
the records of all, each writes its part of the shards, and rank 0 reads them back.
"""

import errno
import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, final

from etude.data.errors import DataError, InputError
from etude.data.files import json_bytes, write_bytes
from etude.data.groups import check_group_by
from etude.data.index import ShardScan, scan_shard, write_index
from etude.data.metadata import describe_match, read_table, with_metadata
from etude.data.prepare_estimate import describe_estimate, estimate
from etude.data.prepare_ranks import Peers, Place, describe_ranks, joined
from etude.data.prepare_report import describe, describe_findings, make_report, report_path
from etude.data.prepare_settings import PrepareSettings, check_settings
from etude.data.prepare_shards import (
    Release,
    ShardPlan,
    drop_duplicates,
    plan_shards,
    write_shard,
)
from etude.data.prepare_splits import assign_splits, describe_groups, groups_of
from etude.data.prepare_start import SETTINGS_NAME, WORK_NAME, begin, beginning
from etude.data.prepare_track import (
    Track,
    TrackSettings,
    clips_path,
    pack_track,
    read_record,
    record_path,
    skipped_track,
    write_record,
)
from etude.data.prepare_workers import map_unordered
from etude.data.progress import Progress
from etude.data.shards import Corpus, open_corpus
from etude.data.sources import Scan, Source, scan_sources

_SHARDS_FOR_A_POOL = 16
"""From so many on they are read back by workers, whose start takes a second."""


@final
class StorageFull(Exception):
    """The disk that takes the corpus is full; the same command continues once there is room."""

    exit_status = 77


def prepare(
    roots: Sequence[Path],
    out: Path,
    settings: PrepareSettings,
    *,
    workers: int,
    metadata: Path | None = None,
    place: Place | None = None,
    patience_seconds: float = 1800.0,
    say: Callable[[str], None] = print,
) -> Corpus | None:
    """Packs all audio under ``roots`` into a corpus in ``out``; None in all ranks but 0.

    :param workers: processes of this rank; 0 works in this one.
    :param metadata: a table about the tracks (metadata.py).
    :param place: which of how many ranks this is; the only one, if None.
    :param patience_seconds: how long a rank waits for others while nothing moves.
    :raises InputError: for what cannot be done as asked, before anything is written.
    :raises DataError: if no file is usable, or the disk gives back something else.
    :raises StorageFull: if the corpus does not fit.
    :raises LaunchBroken: if another rank failed or is gone.
    """
    place = place or Place()
    check_settings(settings)
    table = None if metadata is None else read_table(metadata)
    check_group_by(settings.group_by, table)
    scan = scan_sources(roots, outside=out)
    if table is not None:
        scan = with_metadata(scan, table)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, but --out names the folder that takes the corpus.")
    key = hashlib.sha256(json_bytes(beginning(settings, scan))).hexdigest()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with joined(out, place, patience_seconds) as peers:
            if not peers.begin(key, lambda: begin(out, settings, scan, say)):
                peers.leave()
                return open_corpus(out) if place.rank == 0 else None
            if place.rank == 0:
                if table is not None:
                    say(describe_match(scan, table))
                expected = estimate(scan.sources, settings, ranks=place.count)
                say(describe_estimate(expected, out))
            return _Job(scan, out, settings, workers, peers, say).run()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                f"{out}: no space left. Make room, or move the folder to a larger disk, and run "
                f"the same command again: it continues where it stopped."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(
                f"{error.filename or out}: {error.strerror}. --out has to be a folder that you "
                f"may write to."
            ) from error
        raise


@final
@dataclass(frozen=True)
class _Job:
    """The work of one rank, once it is clear that there is any."""

    scan: Scan
    out: Path
    settings: PrepareSettings
    workers: int
    peers: Peers
    say: Callable[[str], None]

    @property
    def work(self) -> Path:
        return self.out / WORK_NAME

    def run(self) -> Corpus | None:
        main = self.peers.place.rank == 0
        self.work.mkdir(exist_ok=True)
        tracks = self._pack_all()
        kept, copies = drop_duplicates([track for track in tracks if track.skipped is None])
        report = make_report(self.scan, tracks, copies, len(kept))
        if main:
            write_bytes(report_path(self.out), json_bytes(report.as_json()))
            for track_id in copies:
                clips_path(self.work, track_id).unlink(missing_ok=True)
        if not kept:
            self.peers.leave()
            if not main:
                return None
            shutil.rmtree(self.work)
            (self.out / SETTINGS_NAME).unlink()
            found = "\n".join(describe_findings(report.skipped)) or "    no audio files"
            raise DataError(
                f"no usable audio: {report.found} audio files found, all skipped (reasons below; "
                f"every file is in {report_path(self.out)}). Give other sources, or lower "
                f"--min-seconds if they are too short.\n{found}"
            )
        groups = groups_of(kept)
        splits = assign_splits(
            groups,
            valid_fraction=self.settings.valid_fraction,
            valid_samples_limit=round(
                self.settings.max_valid_hours * 3600 * self.settings.sample_rate
            ),
            seed=self.settings.seed,
        )
        plans = plan_shards(
            kept,
            splits,
            shard_bytes=round(self.settings.shard_mb * 1e6),
            audio_format=self.settings.audio_format,
        )
        self._write_all(plans)
        if not main:
            self.peers.leave()
            return None
        corpus = self._index(plans)
        self.peers.leave()
        shutil.rmtree(self.work)
        self.say(describe(corpus, report, describe_groups(groups, splits, self.settings.group_by)))
        return corpus

    def _pack_all(self) -> list[Track]:
        """The records of all sources in their order, however many processes made them."""
        settings = TrackSettings(
            self.settings.sample_rate,
            self.settings.clip_seconds,
            self.settings.min_seconds,
            self.settings.group_by,
            self.settings.audio_format,
            self.settings.flac_md5,
        )
        place, sources = self.peers.place, self.scan.sources
        mine = place.share(sources)
        left = [source for source in mine if not record_path(self.work, source.id).is_file()]
        progress = Progress(self.peers.label("packing"), len(mine), unit="file")
        progress.advance_to(len(mine) - len(left))

        def crashed(source: Source) -> Track:
            track = skipped_track(source, "corrupt", "the decoder crashed on this file")
            write_record(self.work, track)
            return track

        for _ in map_unordered(
            functools.partial(pack_track, settings=settings, work=self.work),
            left,
            workers=self.workers,
            crashed=crashed,
            decoder_log=self.work / f"decoder-{place.rank}.log",
        ):
            progress.advance()
        self._wait_for([record_path(self.work, source.id) for source in sources], "files to pack")
        return [_record(self.work, source) for source in sources]

    def _write_all(self, plans: Sequence[ShardPlan]) -> None:
        mine = self.peers.place.share(plans)
        progress = Progress(self.peers.label("writing"), len(mine), unit="shard")
        release = Release(plans, self.out, self.work)
        for plan in mine:
            if not (self.out / plan.file).is_file():
                write_shard(plan, self.out, self.work)
            release.after(plan)
            progress.advance()

    def _index(self, plans: Sequence[ShardPlan]) -> Corpus:
        self._wait_for([self.out / plan.file for plan in plans], "shards to write")
        progress = Progress("reading back", len(plans), unit="shard")
        clips = {plan.file: len(plan.clips) for plan in plans}
        scans = []
        for scan in map_unordered(
            functools.partial(_scan, out=self.out, settings=self.settings),
            [(plan.file, plan.split) for plan in plans],
            workers=self.workers if len(plans) >= _SHARDS_FOR_A_POOL else 0,
            crashed=_scan_crashed,
            decoder_log=self.work / "decoder-0.log",
        ):
            file, found = scan.shard.file, scan.shard.samples
            if found != clips[file]:
                raise DataError(
                    f"{self.out / file}: {found} clips, but {clips[file]} were written. The disk "
                    f"lost data: check it, delete {self.out} and prepare again."
                )
            scans.append(scan)
            progress.advance()
        write_index(
            self.out,
            scans,
            sample_rate=self.settings.sample_rate,
            clip_seconds=self.settings.clip_seconds,
            audio_format=self.settings.audio_format,
        )
        return open_corpus(self.out)

    def _wait_for(self, files: Sequence[Path], what: str) -> None:
        """Until these files of one folder, dealt to all ranks in turn, are there."""
        names = [file.name for file in files]
        folder, count = files[0].parent if files else self.out, self.peers.place.count

        def missing() -> str:
            there = {entry.name for entry in os.scandir(folder)}
            left = [number for number, name in enumerate(names) if name not in there]
            if not left:
                return ""
            ranks = sorted({number % count for number in left})
            return f"{len(left)} of {len(names)} {what}, by {describe_ranks(ranks)}"

        self.peers.wait(missing)


def _scan(shard: tuple[str, str], out: Path, settings: PrepareSettings) -> ShardScan:
    file, split = shard
    return scan_shard(out / file, split, settings.sample_rate, settings.audio_format)


def _scan_crashed(shard: tuple[str, str]) -> NoReturn:
    raise DataError(
        f"{shard[0]}: the process that read it back was killed, twice. Look at the system's log "
        f"(out of memory?), and run the same command again."
    )


def _record(work: Path, source: Source) -> Track:
    track = read_record(work, source.id)
    assert track is not None, f"the record of {source.name} was there a moment ago"
    return track
