"""One file of a user -> its clips, encoded, in one file of the work folder; or the reason why not.

    open by content -> blocks, checked -> mono -> corpus rate -> 16 bit -> clips -> FLAC + JSON

(or WAV, as the corpus is to have it.)

A track is finished when its record is there: an interrupted run continues after the last one.
What a file is worth is decided here; nothing is ever left out without a reason in the record.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NoReturn, final

import numpy as np
import numpy.typing as npt

from etude.data.audio import AudioFile, Resampler, Samples, encode, quantise, to_mono
from etude.data.clip_format import AudioFormat
from etude.data.containers.headers import usual_extension
from etude.data.errors import DataError
from etude.data.files import json_bytes, published, write_bytes
from etude.data.groups import NO_GROUPS, group_of, tag_of
from etude.data.reading import Reason, Unusable, checked_blocks, open_checked, open_source
from etude.data.sources import Finding, Source

QUIET_RMS = 1e-4
"""Below this, after the mean is taken away, there is nothing to hear (-80 dB of full scale)."""

_DC_MEAN = 1e-3
_ABSURD_PEAK = 100.0
_CANCEL_RATIO = 0.01
"""Mono energy over the channels' energy; unrelated channels give 0.5, opposite ones 0."""
_FULL_SCALE = 0.9999
_CLIPPED_FRACTION = 1e-3
_LABELS_LIMIT = 4 << 20


@final
@dataclass(frozen=True)
class TrackSettings:
    """What decides the bytes of a track's clips."""

    sample_rate: int
    clip_seconds: float
    min_seconds: float
    group_by: str = NO_GROUPS
    """Column or tag whose value names the track's group (groups.py)."""
    audio_format: AudioFormat = "flac"
    flac_md5: bool = True

    @property
    def clip_samples(self) -> int:
        """Samples of a full clip at the corpus rate."""
        return round(self.clip_seconds * self.sample_rate)

    @property
    def min_samples(self) -> int:
        """The shortest clip, in samples at the corpus rate."""
        return round(self.min_seconds * self.sample_rate)


@final
@dataclass(frozen=True)
class Clip:
    """One sample of the corpus; in the track's file its JSON follows its audio."""

    key: str
    audio_size: int
    json_size: int
    num_samples: int


@final
@dataclass(frozen=True)
class Track:
    """The record of one file."""

    id: str
    name: str
    skipped: Finding | None
    notes: tuple[Finding, ...]
    clips: tuple[Clip, ...]
    content: str
    """sha256 of the 16-bit mono audio: equal for two copies in different containers."""
    group: str = ""
    """Tracks of the same one are held out together; empty for a track that stands alone."""

    @property
    def num_samples(self) -> int:
        """Length of all clips."""
        return sum(clip.num_samples for clip in self.clips)


def record_path(work: Path, track_id: str) -> Path:
    """Where the record of a finished track lies."""
    return work / f"{track_id}.json"


def clips_path(work: Path, track_id: str) -> Path:
    """Where its encoded clips lie until they are in a shard."""
    return work / f"{track_id}.clips"


def read_record(work: Path, track_id: str) -> Track | None:
    """The record of a track that an earlier run finished."""
    path = record_path(work, track_id)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_bytes())
        if record["id"] != track_id:  # by which files are read and deleted
            raise ValueError(f"it is the one of {record['id']!r}")
        return Track(
            id=track_id,
            name=record["name"],
            skipped=Finding(**record["skipped"]) if record["skipped"] else None,
            notes=tuple(Finding(**note) for note in record["notes"]),
            clips=tuple(Clip(**clip) for clip in record["clips"]),
            content=record["content"],
            group=record["group"],
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: not a record that launch/prepare.py writes ({error!r}). Delete {work} and "
            f"prepare again."
        ) from error


def write_record(work: Path, track: Track) -> None:
    """Marks a track as finished."""
    write_bytes(record_path(work, track.id), json_bytes(asdict(track), indent=None))


def skipped_track(source: Source, reason: Reason, detail: str) -> Track:
    """The record of a file that gave nothing."""
    return Track(source.id, source.name, Finding(source.name, reason, detail), (), (), "")


def pack_track(source: Source, settings: TrackSettings, work: Path) -> Track:
    """Reads one file, writes its clips and its record into ``work``."""
    try:
        track = _Packing(source, settings, work).run()
    except Unusable as unusable:
        track = skipped_track(source, unusable.reason, unusable.detail)
    write_record(work, track)
    return track


def track_key(source: Source) -> str:
    """ASCII, no dots, readable, unique: webdataset splits a member's name at its first dot."""
    stem = unicodedata.normalize("NFKD", str(PurePosixPath(source.name).with_suffix("")))
    ascii_stem = re.sub("[^A-Za-z0-9]+", "_", stem.encode("ascii", "ignore").decode())
    return f"{ascii_stem.strip('_')[-48:].lstrip('_') or 'track'}-{source.id}"


@final
class _Level:
    """Running measures of a file at its own rate."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.frames = 0
        self.full_scale = 0
        self._channel_energy = 0.0
        self._sum = 0.0
        self._energy = 0.0

    def check(self, frames_TC: Samples) -> None:
        """Counts those at full scale, before anything is computed from them."""
        peak = float(np.abs(frames_TC).max())
        if peak > _ABSURD_PEAK:
            raise Unusable("corrupt", f"samples up to {peak:.3g}, where full scale is 1")
        if peak >= _FULL_SCALE:
            loud = np.zeros(len(frames_TC), dtype=np.bool_)
            for channel in range(self.channels):
                loud |= np.abs(frames_TC[:, channel]) >= _FULL_SCALE
            self.full_scale += int(np.count_nonzero(loud))

    def add(self, frames_TC: Samples, mono: Samples) -> None:
        wide = mono.astype(np.float64)
        self.frames += len(mono)
        self._channel_energy += float(np.square(frames_TC, dtype=np.float64).sum()) / self.channels
        self._sum += float(wide.sum())
        self._energy += float(np.square(wide).sum())

    @property
    def mean(self) -> float:
        return self._sum / self.frames

    @property
    def rms(self) -> float:
        """Of the mono signal, its mean taken away."""
        return float(np.sqrt(max(0.0, self._energy / self.frames - self.mean**2)))

    @property
    def cancels(self) -> bool:
        audible = self._channel_energy / self.frames > QUIET_RMS**2
        return audible and self._energy < _CANCEL_RATIO * self._channel_energy


@final
class _Cutter:
    """Cuts a stream into clips; a remainder too short for a clip of its own stays with the last."""

    def __init__(self, clip_samples: int, min_samples: int) -> None:
        self._clip = clip_samples
        self._min = min_samples
        self._pending: list[npt.NDArray[np.int16]] = []
        self._held = 0

    def push(self, samples: npt.NDArray[np.int16]) -> Iterator[npt.NDArray[np.int16]]:
        self._pending.append(samples)
        self._held += len(samples)
        if self._held < self._clip + self._min:
            return
        joined = np.concatenate(self._pending)
        while len(joined) >= self._clip + self._min:
            yield joined[: self._clip]
            joined = joined[self._clip :]
        self._pending = [joined.copy()]
        self._held = len(joined)

    def finish(self) -> npt.NDArray[np.int16]:
        return np.concatenate(self._pending)


@final
class _Packing:
    """The work on one file."""

    def __init__(self, source: Source, settings: TrackSettings, work: Path) -> None:
        self.source = source
        self.settings = settings
        self.work = work
        self.key = track_key(source)
        self.notes: list[Finding] = []
        self.clips: list[Clip] = []
        self.digest = hashlib.sha256()
        self.clipped = 0
        self.tag: str | None = None

    def run(self) -> Track:
        with open_source(self.source) as file:
            self._pack(file)
        return Track(
            self.source.id,
            self.source.name,
            None,
            tuple(self.notes),
            tuple(self.clips),
            self.digest.hexdigest(),
            group_of(self.source, self.settings.group_by, self.tag),
        )

    def _pack(self, file: BinaryIO) -> None:
        audio = self._open(file)
        level = _Level(audio.channels)
        cutter = _Cutter(self.settings.clip_samples, self.settings.min_samples)
        resampler = Resampler(audio.sample_rate, self.settings.sample_rate)
        labels = self._labels()
        self.tag = tag_of(self.source, self.settings.group_by)
        source_info = {
            "source_sample_rate": audio.sample_rate,
            "source_channels": audio.channels,
        }
        with published(clips_path(self.work, self.source.id)) as out:
            for block in checked_blocks(audio, file, self.source):
                level.check(block)
                mono = to_mono(block)
                level.add(block, mono)
                for clip in cutter.push(self._quantise(resampler.push(mono))):
                    self._write(out, clip, source_info, labels)
            rest = resampler.push(np.zeros(0, np.float32), last=True)
            for clip in cutter.push(self._quantise(rest)):
                self._write(out, clip, source_info, labels)
            last = cutter.finish()
            if len(last) < self.settings.min_samples:
                seconds = len(last) / self.settings.sample_rate
                raise Unusable(
                    "too_short",
                    f"{seconds:.2f} s, at least {self.settings.min_seconds:g} s are needed",
                )
            self._check_level(level)
            self._write(out, last, source_info, labels)
        if audio.sample_rate != self.settings.sample_rate:
            self._note("resampled", f"{audio.sample_rate} Hz to {self.settings.sample_rate} Hz")
        if self.clipped or level.full_scale > _CLIPPED_FRACTION * level.frames:
            self._note(
                "clipped",
                f"{level.full_scale} of {level.frames} frames at full scale; "
                f"{self.clipped} samples clipped in 16 bit",
            )

    def _open(self, file: BinaryIO) -> AudioFile:
        audio, promise = open_checked(file, self.source, flac_md5=self.settings.flac_md5)
        if promise.wrong_header:
            self._note("wrong_header", promise.wrong_header)
        if not usual_extension(audio.container, self.source.path):
            self._note("wrong_extension", f"the content is {audio.container}")
        return audio

    def _check_level(self, level: _Level) -> None:
        if level.rms < QUIET_RMS:
            if level.cancels:
                raise Unusable("silent", "the channels cancel each other, mono has no sound left")
            if abs(level.mean) >= _DC_MEAN:
                raise Unusable("dc", f"a constant {level.mean:.3f}, no sound")
            raise Unusable("silent", f"rms {level.rms:.1e} of full scale")
        if level.cancels:
            self._note("channels_cancel", "mono has less than 1 % of the channels' energy")

    def _labels(self) -> Any:
        path = self.source.labels
        if path is None:
            return None
        try:
            if self.source.labels_size > _LABELS_LIMIT:
                raise ValueError(f"{self.source.labels_size} bytes, at most {_LABELS_LIMIT}")
            labels = json.loads(path.read_text(encoding="utf-8"), parse_constant=_not_json)
            json_bytes(labels)  # 1e999 reads as infinity, which JSON cannot hold
            return labels
        except (OSError, ValueError, RecursionError) as error:
            self._note("broken_labels", f"{path.name}: {error}; packed without labels")
            return None

    def _quantise(self, samples: Samples) -> npt.NDArray[np.int16]:
        quantised, clipped = quantise(samples)
        self.clipped += clipped
        self.digest.update(quantised.tobytes())
        return quantised

    def _write(
        self,
        out: BinaryIO,
        samples: npt.NDArray[np.int16],
        source_info: dict[str, int],
        labels: Any,
    ) -> None:
        rate = self.settings.sample_rate
        offset = sum(clip.num_samples for clip in self.clips)
        metadata: dict[str, Any] = {
            "track": self.key,
            "source": self.source.name,
            "clip": len(self.clips),
            "offset_seconds": offset / rate,
            "offset_samples": offset,
            "num_samples": len(samples),
            "sample_rate": rate,
            **source_info,
        }
        if self.tag is not None:
            metadata[self.settings.group_by] = self.tag
        if self.source.metadata is not None:
            metadata["metadata"] = self.source.metadata
        if labels is not None:
            metadata["labels"] = labels
        audio = encode(samples, rate, self.settings.audio_format)
        text = json_bytes(metadata, indent=None)
        out.write(audio)
        out.write(text)
        key = f"{self.key}-{len(self.clips):05d}"
        self.clips.append(Clip(key, len(audio), len(text), len(samples)))

    def _note(self, reason: str, detail: str) -> None:
        self.notes.append(Finding(self.source.name, reason, detail))


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
