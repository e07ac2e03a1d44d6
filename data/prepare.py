"""Files -> shards: the stages of `launch/prepare.py`, in order.

    scan      find audio files, by name and by content              sources.py
    pack      each file -> encoded clips in DIR/.work, in parallel   prepare_track.py
    plan      drop duplicates, split by track, fill shards           prepare_shards.py
    write     tars, one after the other; work files are released
    index     read the tars back, strictly                           index.py
    report    report.json, and index.json last of all                prepare_report.py

Each stage is a pure function of the sources and the settings, and leaves whole files behind or
none: an interrupted run continues, and ends with the same bytes as one that was left alone.
"""

import errno
import fcntl
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from etude.data.errors import DataError, InputError
from etude.data.files import json_bytes, write_bytes
from etude.data.index import scan_shard, write_index
from etude.data.prepare_report import Report, describe, describe_findings, report_path
from etude.data.prepare_shards import (
    ShardPlan,
    assign_splits,
    drop_duplicates,
    plan_shards,
    release_clips,
    write_shard,
)
from etude.data.prepare_track import (
    Track,
    TrackSettings,
    clips_path,
    pack_track,
    read_record,
    skipped_track,
    write_record,
)
from etude.data.prepare_workers import map_unordered
from etude.data.progress import Progress
from etude.data.shards import INDEX_NAME, Corpus, open_corpus
from etude.data.sources import Finding, Scan, Source, scan_sources

_SETTINGS_NAME = ".prepare.json"
_WORK_NAME = ".work"


@final
@dataclass(frozen=True)
class PrepareSettings:
    """What decides the bytes of a corpus, beside its sources."""

    sample_rate: int = 24000
    """Hertz; 24 kHz is MERT's rate, music2vec and data2vec use 16 kHz."""
    clip_seconds: float = 30.0
    """Length of a clip; the last one of a track is what remains."""
    min_seconds: float = 5.0
    """Shortest clip, and shortest file that is not skipped as too_short."""
    shard_mb: float = 256.0
    """Upper bound of a shard, in 10^6 bytes."""
    valid_fraction: float = 0.1
    """Share of the audio that is held out; at least one track, 0 for none."""
    max_valid_hours: float = 10.0
    """Upper bound of what is held out: more makes validation slower, not better."""
    seed: int = 0
    """Decides which tracks are held out."""


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
    say: Callable[[str], None] = print,
) -> Corpus:
    """Packs all audio under ``roots`` into a corpus in ``out``."""
    _check_settings(settings)
    scan = scan_sources(roots, outside=out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, but --out names the folder that takes the corpus.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            if not _start(out, settings, scan, say):
                return open_corpus(out)
            return _prepare(scan, out, settings, workers, say)
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


def _prepare(
    scan: Scan, out: Path, settings: PrepareSettings, workers: int, say: Callable[[str], None]
) -> Corpus:
    work = out / _WORK_NAME
    work.mkdir(exist_ok=True)
    tracks = _pack_all(scan.sources, settings, work, workers)
    usable = [track for track in tracks if track.skipped is None]
    kept, copies = drop_duplicates(usable)
    report = _report(scan, tracks, copies, len(kept))
    write_bytes(report_path(out), json_bytes(report.as_json()))
    if not kept:
        shutil.rmtree(work)
        (out / _SETTINGS_NAME).unlink()
        found = "\n".join(describe_findings(report.skipped)) or "    no audio files"
        raise DataError(
            f"no usable audio: {report.found} audio files found, all skipped (reasons below; "
            f"every file is in {report_path(out)}). Give other sources, or lower --min-seconds "
            f"if they are too short.\n{found}"
        )
    for track in tracks:
        if track.id in copies:
            clips_path(work, track.id).unlink(missing_ok=True)
    splits = assign_splits(
        kept,
        valid_fraction=settings.valid_fraction,
        valid_samples_limit=round(settings.max_valid_hours * 3600 * settings.sample_rate),
        seed=settings.seed,
    )
    plans = plan_shards(kept, splits, shard_bytes=round(settings.shard_mb * 1e6))
    _write_all(plans, out, work)
    corpus = _index(plans, out, settings)
    shutil.rmtree(work)
    say(describe(corpus, report))
    return corpus


def _start(out: Path, settings: PrepareSettings, scan: Scan, say: Callable[[str], None]) -> bool:
    """Whether there is work to do; clears what an interrupted run made of other sources."""
    path = out / _SETTINGS_NAME
    wanted: dict[str, Any] = asdict(settings)
    finished = (out / INDEX_NAME).is_file()
    if not path.is_file():
        strangers = sorted(file.name for file in out.glob("*.tar"))
        if finished or strangers:
            raise InputError(
                f"{out}: holds a corpus or tars ({', '.join([INDEX_NAME][:finished] + strangers)}) "
                f"that this command did not begin. Choose an empty --out."
            )
    else:
        before = json.loads(path.read_bytes())
        differing = [
            f"{name} was {before['settings'].get(name)}, now {value}"
            for name, value in wanted.items()
            if before["settings"].get(name) != value
        ]
        same_sources = before["sources"] == scan.fingerprint()
        if finished and not same_sources:
            differing.append(
                f"the sources were {before['files']} audio files, now {len(scan.sources)}"
                + (" of other size or date" if before["files"] == len(scan.sources) else "")
            )
        if differing:
            raise InputError(
                f"{out}: was prepared with other settings: {'; '.join(differing)}. Choose another "
                f"--out, or delete this folder first."
            )
        if finished:
            shutil.rmtree(out / _WORK_NAME, ignore_errors=True)  # killed between index and cleanup
            say(f"{out} is complete, with these sources and settings: nothing to do.")
            return False
        if same_sources:
            say(f"continuing the unfinished corpus in {out}")
            return True
        say(f"the sources changed since {out} was begun: starting over")
        shutil.rmtree(out / _WORK_NAME, ignore_errors=True)
        for split in ("train", "valid"):
            for shard in out.glob(f"{split}-*.tar"):
                shard.unlink()
    beginning = {
        "settings": wanted,
        "sources": scan.fingerprint(),
        "files": len(scan.sources),
    }
    write_bytes(path, json_bytes(beginning))
    return True


def _pack_all(
    sources: Sequence[Source], settings: PrepareSettings, work: Path, workers: int
) -> list[Track]:
    """The records of all sources in their order, however many processes made them."""
    track_settings = TrackSettings(
        settings.sample_rate, settings.clip_seconds, settings.min_seconds
    )
    done: dict[str, Track] = {}
    for source in sources:
        record = read_record(work, source.id)
        if record is not None:
            done[source.id] = record
    progress = Progress("packing", len(sources), unit="file")
    progress.advance_to(len(done))

    def crashed(source: Source) -> Track:
        track = skipped_track(source, "corrupt", "the decoder crashed on this file")
        write_record(work, track)
        return track

    for track in map_unordered(
        functools.partial(pack_track, settings=track_settings, work=work),
        [source for source in sources if source.id not in done],
        workers=workers,
        crashed=crashed,
        decoder_log=work / "decoder.log",
    ):
        done[track.id] = track
        progress.advance()
    return [done[source.id] for source in sources]


def _write_all(plans: Sequence[ShardPlan], out: Path, work: Path) -> None:
    progress = Progress("writing", len(plans), unit="shard")
    for number, plan in enumerate(plans):
        if not (out / plan.file).is_file():
            write_shard(plan, out, work)
        release_clips(plans, number + 1, work)
        progress.advance()


def _index(plans: Sequence[ShardPlan], out: Path, settings: PrepareSettings) -> Corpus:
    progress = Progress("reading back", len(plans), unit="shard")
    scans = []
    for plan in plans:
        scan = scan_shard(out / plan.file, plan.split, settings.sample_rate)
        if scan.shard.samples != len(plan.clips):
            raise DataError(
                f"{out / plan.file}: {scan.shard.samples} clips, but {len(plan.clips)} were "
                f"written. The disk lost data: check it, delete {out} and prepare again."
            )
        scans.append(scan)
        progress.advance()
    write_index(out, scans, sample_rate=settings.sample_rate, clip_seconds=settings.clip_seconds)
    return open_corpus(out)


def _report(scan: Scan, tracks: Sequence[Track], copies: dict[str, str], packed: int) -> Report:
    skipped = list(scan.skipped)
    noted: list[Finding] = []
    for track in tracks:
        if track.skipped is not None:
            skipped.append(track.skipped)
        elif track.id in copies:
            same = f"the same audio as {copies[track.id]}"
            skipped.append(Finding(track.name, "duplicate", same))
        else:
            noted.extend(track.notes)
    skipped.sort(key=lambda finding: finding.file)
    found = len(scan.sources) + len(scan.skipped)
    return Report(found, packed, scan.other_files, tuple(skipped), tuple(noted))


def _check_settings(settings: PrepareSettings) -> None:
    if not 4000 <= settings.sample_rate <= 192000:
        raise InputError(
            f"--sample-rate must be between 4000 and 192000 Hz, but is {settings.sample_rate}."
        )
    if not 0 < settings.min_seconds <= settings.clip_seconds <= 3600:
        raise InputError(
            f"--clip-seconds must be at least --min-seconds and at most 3600, and both above 0, "
            f"but they are {settings.clip_seconds:g} and {settings.min_seconds:g}."
        )
    if not settings.shard_mb > 0:
        raise InputError(f"--shard-mb must be above 0, but is {settings.shard_mb:g}.")
    if not 0 <= settings.valid_fraction < 1:
        raise InputError(
            f"--valid-fraction must be at least 0 and below 1, but is {settings.valid_fraction:g}."
        )
    if not settings.max_valid_hours > 0:
        raise InputError(
            f"--max-valid-hours must be above 0, but is {settings.max_valid_hours:g}; "
            f"for no valid split give --valid-fraction 0."
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two commands in one folder would write the same temporary files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise InputError(f"{folder}: another prepare is at work in this folder.") from error
    finally:
        os.close(descriptor)
