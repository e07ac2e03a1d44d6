"""Features of audio files by a trained encoder:  python launch/embed.py MODEL INPUT... --out DIR

    python launch/embed.py runs/mine ~/Music --out features
    python launch/embed.py runs/mine/hf song.mp3 --out features --layers 0,6,12 --dtype float16
    python launch/embed.py runs/mine ~/Music --out tracks --layers all --pool file

MODEL is a run (its newest checkpoint), a checkpoint or a Hugging Face folder. Writes one file per
audio file, such as DIR/Music/album/song.flac.npz, with `features`, `times` and `metadata`. Files of
any length are heard in windows that overlap; docs/embedding.md says how. The same command again
continues an interrupted run, and does nothing after a finished one. What cannot be decoded is left
out and listed at the end, with exit status 3.
"""

import argparse
import errno
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from etude.data.errors import DataError, InputError
from etude.data.feature_file import (
    FeatureSpool,
    Format,
    Precision,
    StoredArray,
    read_metadata,
    write_features,
)
from etude.data.files import file_sha256
from etude.data.mono_stream import mono_blocks
from etude.data.prepare import StorageFull
from etude.data.prepare_report import printable
from etude.data.progress import Progress
from etude.data.reading import Unusable
from etude.data.sources import Finding, Source, scan_sources
from etude.launch.cli import interrupt_on, run

if TYPE_CHECKING:
    import torch

    from etude.models.embedding import Embedder, Features, Layers, TimeMeans
    from etude.models.windows import Windowing
    from etude.probes.frozen import EncoderModel, HfModel, ModelSource

Pooling = Literal["none", "window", "file"]

WINDOW_SECONDS = 30.0
"""Where no run tells what the model heard in training."""

OVERLAP_SHARE = 0.2
"""Of the window: with 5 s, every frame has half a second around it (docs/embedding.md)."""

POOL_SECONDS = 1.0

GPU_BATCH = 8
"""Windows per forward; a CPU gains nothing from more than one, which only costs memory."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def main() -> int:
    """Reads the command line, opens the model, embeds every file that is not there yet."""
    arguments = _parse()
    interrupt_on(signal.SIGTERM)
    scan = scan_sources(arguments.inputs, outside=arguments.out)
    if not scan.sources and not scan.skipped:
        raise DataError(
            f"there must be an audio file in {', '.join(map(str, arguments.inputs))}, but there is "
            "none: give audio files, or folders that hold some."
        )
    # Imported late: a wrong path should not wait for torch.
    import torch

    from etude.models.embedding import Embedder
    from etude.probes.frozen import find_model, load_model

    found = find_model(arguments.model)
    device = _device(arguments.device)
    model = load_model(found, device=device)
    layers = _layers(arguments.layers, _count_states(model))
    job = _job(arguments, found, model, layers)
    batch = arguments.batch or (1 if device.type == "cpu" else GPU_BATCH)
    with _told_of_storage(arguments.out):
        arguments.out.mkdir(parents=True, exist_ok=True)
        todo = [file for file in scan.sources if arguments.overwrite or not job.is_done(file)]
        progress = Progress("embedding", len(todo), unit="file")
        embedder = Embedder(model.layers, layers, batch=batch)
        try:
            seconds, failed = _embed(todo, job, embedder, progress.advance)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{batch} windows of {job.window_seconds:g} s do not fit on {device} together: "
                "lower --batch or --window-seconds."
            ) from error
    made = len(todo) - len(failed)
    print(
        f"{arguments.out}: {made} {'file' if made == 1 else 'files'} embedded, "
        f"{seconds / 60:.1f} min; "
        f"{len(scan.sources) - len(todo)} were there already\n"
        f"  {found.name}, layers {arguments.layers}, windows of {job.window_seconds:g} s, each "
        f"{job.overlap_seconds:g} s into the next"
    )
    if failed := [*scan.skipped, *failed]:
        lines = [f"    {printable(f.file)}: {f.reason}, {printable(f.detail)}" for f in failed]
        raise DataError(
            f"{len(failed)} of {len(scan.sources) + len(scan.skipped)} files could not be embedded "
            f"(below); the others are in {arguments.out}, and the same command tries these again.\n"
            + "\n".join(lines)
        )
    return 0


@final
@dataclass(frozen=True)
class _Job:
    """What is done with every file."""

    out: Path
    format: Format
    precision: Precision
    pooling: Pooling
    pool_seconds: float
    windowing: "Windowing"
    model: str
    settings: Mapping[str, Any]
    """What decides the features, beside the file."""
    flac_md5: bool
    """Whether a FLAC file's samples are compared with the MD5 that it states."""

    @property
    def window_seconds(self) -> float:
        return self.windowing.samples / self.windowing.grid.sample_rate

    @property
    def overlap_seconds(self) -> float:
        return self.windowing.overlap_frames / self.windowing.grid.frame_rate

    def path(self, source: Source) -> Path:
        """Where a file's features lie."""
        return self.out / f"{source.name}.{self.format}"

    def is_done(self, source: Source) -> bool:
        """Whether they lie there.

        :raises InputError: if something else does.
        """
        path = self.path(source)
        if not os.path.exists(path):  # unlike the path's own method, no error for a long name
            return False
        before = read_metadata(path)
        if before is None:
            raise InputError(
                f"{path} is there already and was not written by this command: choose another "
                "--out, or --overwrite it."
            )
        different = [
            f"{key} was {before.get(key)}, now {value}"
            for key, value in {"source_bytes": source.size, **self.settings}.items()
            if before.get(key) != value
        ]
        if different:
            raise InputError(
                f"{path} is there already, of another file or with other settings: "
                f"{'; '.join(different)}. Choose another --out, or --overwrite it."
            )
        return True


@final
class _Track:
    """A file whose features are being made."""

    def __init__(self, source: Source, job: _Job) -> None:
        self.source = source
        self._job = job
        self._spool = FeatureSpool(job.out, job.precision)
        self._means = _means(job)
        self._taken = 0
        self.frames: int | None = None
        self.seconds = 0.0

    def take(self, first_frame: int, features_FLD: "Features") -> None:
        """Frames of the model."""
        self._taken += len(features_FLD)
        (self._means or self._spool).take(first_frame, features_FLD)

    @property
    def complete(self) -> bool:
        """Whether every frame has come."""
        return self._taken == self.frames

    def write(self) -> None:
        """Publishes the features.

        :raises Unusable: if they are not numbers.
        """
        import numpy as np

        assert self.frames is not None
        job = self._job
        if self._means is None:
            times = np.array(job.windowing.grid.frame_times(self.frames))
        else:
            times = self._means.times()
            self._spool.take(0, self._means.means())
        if not self._spool.finite:
            hint = "; --dtype float32 holds larger ones" if job.precision == "float16" else ""
            raise Unusable("nonfinite", f"the features are not all finite{hint}")
        features = self._spool.stored()
        if job.pooling == "file":
            times = times.reshape(())
            shape = (*features.shape[:-2], features.shape[-1])
            features = StoredArray(shape, features.dtype, features.chunks)
        facts = {
            "model": job.model,
            "source": printable(self.source.name),
            "source_bytes": self.source.size,
            "seconds": self.seconds,
            "frames": self.frames,
        }
        write_features(job.path(self.source), features, times, {**facts, **job.settings})

    def close(self) -> None:
        """Lets go of what is on the disk for it."""
        self._spool.close()


def _means(job: _Job) -> "TimeMeans | None":
    from etude.models.embedding import TimeMeans

    if job.pooling == "none":
        return None
    seconds = math.inf if job.pooling == "file" else job.pool_seconds
    return TimeMeans(job.windowing.grid, seconds=seconds)


def _embed(
    sources: Sequence[Source], job: _Job, embedder: "Embedder", advance: Callable[[], None]
) -> tuple[float, list[Finding]]:
    """Seconds that were embedded, and the files that were not."""
    working: list[_Track] = []
    failed: list[Finding] = []
    embedded = 0.0

    def finish() -> None:
        nonlocal embedded
        for track in [track for track in working if track.complete]:
            try:
                track.write()
                embedded += track.seconds
            except Unusable as unusable:
                drop(track, Finding(track.source.name, unusable.reason, unusable.detail))
            except OSError as error:
                # A full disk ends the command, a name that is too long for it one file.
                if error.errno in (*_FULL, *_FORBIDDEN):
                    raise
                detail = error.strerror or str(error)
                drop(track, Finding(track.source.name, "unwritable", detail))
            else:
                working.remove(track)
                track.close()
                advance()

    def drop(track: _Track, finding: Finding) -> None:
        failed.append(finding)
        embedder.forget(track)
        working.remove(track)
        track.close()
        advance()

    rate = job.windowing.grid.sample_rate
    for source in sources:
        track = _Track(source, job)
        working.append(track)
        try:
            blocks = mono_blocks(source, rate, flac_md5=job.flac_md5)
            for window in job.windowing.cut(blocks):
                if window.last:
                    track.frames = window.kept_until
                    track.seconds = job.windowing.end_seconds(window)
                embedder.push(window, track)
                finish()
            if track.frames is None:
                least = job.windowing.grid.receptive_samples
                raise Unusable("too_short", f"one frame needs {least} samples at {rate} Hz")
        except Unusable as unusable:
            drop(track, Finding(source.name, unusable.reason, unusable.detail))
    embedder.flush()
    finish()
    return embedded, failed


@contextmanager
def _told_of_storage(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(
                f"{out}: no space left. Make room and run the same command again: it continues "
                "where it stopped."
            ) from error
        if error.errno in (*_FORBIDDEN, errno.EEXIST, errno.ENOTDIR):
            raise InputError(
                f"{error.filename or out}: {error.strerror}. --out has to be a folder that you may "
                "write to."
            ) from error
        raise


def _job(
    arguments: argparse.Namespace,
    found: "ModelSource",
    model: "EncoderModel | HfModel",
    layers: "Layers",
) -> _Job:
    from etude.models.windows import Windowing

    grid = model.grid
    seconds = arguments.window_seconds
    if seconds is None:
        seconds = _training_seconds(found) or WINDOW_SECONDS
    overlap = arguments.overlap_seconds
    if overlap is None:
        overlap = OVERLAP_SHARE * seconds
    samples, overlap_frames = round(seconds * grid.sample_rate), round(overlap * grid.frame_rate)
    try:
        windowing = Windowing(grid, samples, overlap_frames)
    except ValueError as error:
        raise InputError(
            f"--window-seconds {seconds:g} with --overlap-seconds {overlap:g} cannot be: {error}"
        ) from error
    pool_seconds = POOL_SECONDS if arguments.pool_seconds is None else arguments.pool_seconds
    # Else there would be stretches without the centre of a frame.
    shortest = max(grid.hop_samples, grid.receptive_samples) / grid.sample_rate
    if arguments.pool == "window" and not pool_seconds >= shortest:
        raise InputError(
            f"--pool-seconds must be at least {shortest:g}, what one frame hears, but is "
            f"{pool_seconds:g}."
        )
    settings = {
        "weights_sha256": _weights_sha256(found.folder),
        "layers": layers if layers == "mean" else list(layers),
        "sample_rate": grid.sample_rate,
        "frame_rate": grid.frame_rate,
        "pooling": arguments.pool,
        "pool_seconds": pool_seconds if arguments.pool == "window" else None,
        "window_seconds": samples / grid.sample_rate,
        "overlap_seconds": overlap_frames / grid.frame_rate,
        "dtype": arguments.dtype,
    }
    return _Job(
        arguments.out,
        arguments.format,
        arguments.dtype,
        arguments.pool,
        pool_seconds,
        windowing,
        found.name,
        settings,
        not arguments.skip_flac_md5,
    )


def _training_seconds(found: "ModelSource") -> float | None:
    """Length of the crops that the model was trained on, where its checkpoint lies in a run."""
    from etude.pretrain.report_run import read_config

    place = found.folder.resolve()
    if found.format != "etude" or place.parent.name != "checkpoints":
        return None
    _, config = read_config(place.parents[1])
    data = (config or {}).get("data")
    seconds = data.get("crop_seconds") if isinstance(data, dict) else None
    return float(seconds) if isinstance(seconds, int | float) else None


def _weights_sha256(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return ",".join(map(file_sha256, files))


def _count_states(model: "EncoderModel | HfModel") -> int:
    import torch

    with torch.inference_mode():
        return len(model.layers(torch.zeros(1, model.grid.receptive_samples)))


def _layers(text: str, count: int) -> "Layers":
    last = count - 1
    if text == "mean":
        return "mean"
    if text == "all":
        return range(count)
    if text == "last":
        return [last]
    words = [word.strip() for word in text.split(",")]
    numbers = [int(word) for word in words if word.isascii() and word.isdigit()]
    if len(numbers) < len(words) or max(numbers) > last or len(set(numbers)) < len(numbers):
        raise InputError(
            f"--layers must be last, all, mean, or numbers from 0 (the first layer's input) to "
            f"{last}, separated by commas and none twice, but is {text!r}."
        )
    return numbers


def _device(text: str | None) -> "torch.device":
    import torch

    try:
        device = torch.device(text or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {text} cannot be used here: {error}") from error
    return device


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="embed.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="run, checkpoint or Hugging Face folder")
    add("inputs", nargs="+", type=Path, metavar="INPUT", help="audio files or folders")
    add("--out", type=Path, required=True, metavar="DIR", help="folder that takes the features")
    add(
        "--layers",
        default="last",
        help="last, all, mean (of all), a number or several: 0,6,12; 0 is the first layer's\n"
        "input (%(default)s)",
    )
    add(
        "--pool",
        choices=["none", "window", "file"],
        default="none",
        help="a vector per frame, per --pool-seconds, or per file (%(default)s)",
    )
    add("--pool-seconds", type=float, metavar="S", help=f"with --pool window ({POOL_SECONDS:g})")
    add("--format", choices=["npz", "safetensors"], default="npz", help="(%(default)s)")
    add("--dtype", choices=["float32", "float16"], default="float32", help="(%(default)s)")
    add(
        "--window-seconds",
        type=float,
        metavar="S",
        help=f"heard at once (the run's data.crop_seconds; {WINDOW_SECONDS:g} where no run tells)",
    )
    add(
        "--overlap-seconds",
        type=float,
        metavar="S",
        help=f"of a window with the next ({OVERLAP_SHARE:g} of the window)",
    )
    add("--batch", type=int, help=f"windows per forward (1 on a CPU, else {GPU_BATCH})")
    add("--device", help="cpu, cuda, cuda:1 … (a GPU where there is one)")
    add(
        "--skip-flac-md5",
        action="store_true",
        help="do not compare a FLAC file's samples with the MD5 that it states",
    )
    add("--overwrite", action="store_true", help="make again what is there already")
    arguments = parser.parse_args()
    if arguments.batch is not None and arguments.batch < 1:
        raise InputError(f"--batch must be at least 1, but is {arguments.batch}.")
    if arguments.pool_seconds is not None and arguments.pool != "window":
        raise InputError(
            f"--pool-seconds belongs to --pool window, but the pooling is {arguments.pool}."
        )
    for name in ("window_seconds", "overlap_seconds", "pool_seconds"):
        value = getattr(arguments, name)
        if value is not None and not 0 <= value < math.inf:
            option = "--" + name.replace("_", "-")
            raise InputError(f"{option} must be a length in seconds, but is {value:g}.")
    return arguments


if __name__ == "__main__":
    run(main)
