"""From planned positions to batches: the stages, in the order in which a crop passes them.

A WebDataset pipeline with our own source: webdataset's readers have no position to resume from
and repeat their order every epoch, so the source walks the plan and reads members by offset.
"""

import atexit
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import webdataset
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from etude.data.ahead import ReadAhead
from etude.data.audio import decode_pcm16
from etude.data.batch import AudioBatch, Crop
from etude.data.errors import DataError
from etude.data.plan import SUBSTITUTES, BatchShare, CropPlan, Plan, PlannedCrop
from etude.data.stock import StockRead
from etude.data.tokens import Codes

_log = logging.getLogger(__name__)

PREFETCH = 4
"""Micro-batches that each worker keeps ready."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class _Positions(IterableDataset[int]):
    """Source: positions of this worker's crops, one by one."""

    def __init__(self, share: BatchShare, first_update: int) -> None:
        self._share, self._first_update = share, first_update

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        for micro_batch in self._share.positions(
            first_update=self._first_update, worker=worker, workers=workers
        ):
            yield from micro_batch


class _Read:
    """Stage: a position becomes a crop; a damaged clip is replaced, counted and named once."""

    def __init__(self, plan: Plan, share: BatchShare) -> None:
        self._plan, self._share = plan, share
        self._named: set[tuple[int, int]] = set()

    def __call__(self, positions: Iterable[int]) -> Iterator[Crop]:
        ahead = ReadAhead(self._plan)  # here: its threads belong to the worker
        for number, position in enumerate(positions):
            ahead.at(position)
            row = number % self._share.micro_batch
            if row == 0:
                rows = np.empty((self._share.micro_batch, self._plan.crop_samples), np.int16)
            crop = read_crop(self._plan, position, self._name, out=rows[row])
            yield crop._replace(rows=rows)

    def _name(self, planned: PlannedCrop, error: DataError) -> None:
        if (planned.part, planned.clip) not in self._named:
            self._named.add((planned.part, planned.clip))
            _log.warning("skipped a damaged clip, taking another in its place: %s", error)


class _Batch:
    """Stage: crops become micro-batches, each with the update it belongs to."""

    def __init__(self, plan: Plan, share: BatchShare) -> None:
        self._plan, self._share = plan, share

    def __call__(self, crops: Iterable[Crop]) -> Iterator[AudioBatch]:
        rows: list[Crop] = []
        for crop in crops:
            rows.append(crop)
            if len(rows) == self._share.micro_batch:
                update = rows[0].position // self._share.global_batch
                yield collate(rows, update=update, crop_samples=self._plan.crop_samples)
                rows = []


class _Deliver:
    """Stage: an error travels as a value, or torch would wrap it in the worker's traceback."""

    def __call__(self, batches: Iterable[AudioBatch]) -> Iterator[AudioBatch | DataError]:
        try:
            yield from batches
        except DataError as error:
            yield error


def training_batches(
    plan: Plan,
    share: BatchShare,
    *,
    first_update: int,
    workers: int,
    pin_memory: bool,
    stock: bool = False,
) -> Iterator[AudioBatch]:
    """This rank's micro-batches from ``first_update`` on, without end.

    :param stock: reads as webdataset would, not as planned (``stock.py``).
    :raises DataError: if a clip and all its substitutes are damaged.
    """
    pipeline = webdataset.DataPipeline(
        _Positions(share, first_update),
        # From here on: positions of this worker, nothing read yet.
        StockRead(plan, share, first_update) if stock else _Read(plan, share),
        # From here on: decoded crops.
        _Batch(plan, share),
        # From here on: micro-batches in the order of the plan.
        _Deliver(),
    )
    if workers:
        atexit.register(_end_workers)
    loader: DataLoader[AudioBatch | DataError] = DataLoader(
        pipeline,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_ignore_signals,
        pin_memory=pin_memory,
        prefetch_factor=PREFETCH if workers else None,
    )
    # A worker that is just being born has torch's handler, which dies of SIGTERM.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    try:
        for batch in batches:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    finally:
        del batches  # the workers end, even while an error keeps this frame


def held_out_batches(
    plan: Plan, *, crops: int, micro_batch: int, rank: int, ranks: int
) -> Iterator[AudioBatch]:
    """One crop from the middle of each of the first ``crops`` clips, always the same.

    Of several corpora, clips are taken in turn. Every rank takes its part. Ids are negative: no
    training crop shares its mask with one of these.
    """
    rows: list[Crop] = []
    for number, planned in enumerate(islice(held_out(plan), crops)):
        if number % ranks != rank:
            continue
        part = plan.parts[planned.part]
        waveform = _decode(part, planned, np.empty(plan.crop_samples, np.int16))
        rows.append(Crop(-1 - number, waveform, _read_codes(part, planned), 0))
        if len(rows) == micro_batch:
            yield collate(rows, update=0, crop_samples=plan.crop_samples)
            rows = []
    if rows:
        yield collate(rows, update=0, crop_samples=plan.crop_samples)


def held_out(plan: Plan) -> Iterator[PlannedCrop]:
    """The crops of :func:`held_out_batches` in their order."""
    for row in range(max(len(part.clips) for part in plan.parts)):
        for number, part in enumerate(plan.parts):
            if row < len(part.clips):
                clip = int(part.clips[row])
                middle = max(0, int(part.split.num_samples[clip]) - part.crop_samples) // 2
                start = middle // part.hop_samples * part.hop_samples
                yield PlannedCrop(row, clip, start, number)


def read_crop(
    plan: Plan,
    position: int,
    damaged: Callable[[PlannedCrop, DataError], None] = lambda planned, error: None,
    *,
    out: npt.NDArray[np.int16] | None = None,
) -> Crop:
    """Reads and decodes one crop, or a substitute if its clip is damaged.

    :param damaged: is told of every clip that could not be read.
    :param out: takes the samples, if it is given, and zeros behind those of a short clip.
    :raises DataError: if all substitutes are damaged too.
    """
    if out is None:
        out = np.empty(plan.crop_samples, np.int16)
    for attempt in range(SUBSTITUTES + 1):
        planned = plan.crop(position, attempt)
        part = plan.parts[planned.part]
        try:
            # The clip that was planned here is lost; others count where they are planned.
            skipped = int(attempt > 0)
            waveform = _decode(part, planned, out)
            return Crop(position, waveform, _read_codes(part, planned), skipped)
        except DataError as error:
            damaged(planned, error)
            last = error
    raise DataError(
        f"{SUBSTITUTES + 1} clips in a row are damaged; the last: {last} Copy the corpus again "
        "or prepare it anew."
    ) from last


def collate(crops: list[Crop], *, update: int, crop_samples: int) -> AudioBatch:
    """Stacks crops; shorter ones are padded with zeros at the end, and their lengths told."""
    lengths = [len(crop.waveform) for crop in crops]
    rows = crops[0].rows
    return AudioBatch(
        waveform=_stack([crop.waveform for crop in crops], crop_samples)
        if rows is None
        else torch.from_numpy(rows),
        sample_ids=torch.tensor([crop.position for crop in crops]),
        update=torch.tensor(update),
        skipped=torch.tensor(sum(crop.skipped for crop in crops)),
        codes={
            name: _stack(
                [crop.codes[name] for crop in crops], max(len(crop.codes[name]) for crop in crops)
            ).long()
            for name in crops[0].codes
        },
        num_samples=torch.tensor(lengths) if min(lengths) < crop_samples else None,
    )


def _stack(rows: Sequence[npt.NDArray[Any]], length: int) -> Tensor:
    stacked = np.empty((len(rows), length, *rows[0].shape[1:]), dtype=rows[0].dtype)
    for place, row in zip(stacked, rows, strict=True):
        place[: len(row)] = row
        place[len(row) :] = 0
    return torch.from_numpy(stacked)


def _decode(
    plan: CropPlan, planned: PlannedCrop, out: npt.NDArray[np.int16]
) -> npt.NDArray[np.int16]:
    """The crop's samples, at the beginning of ``out``, with zeros behind them."""
    split, start, frames = plan.split, planned.start, _length(plan, planned)
    out[frames:] = 0
    if split.corpus.sliceable:
        out[:frames] = split.read_pcm16(planned.clip, start=start, frames=frames)
        return out[:frames]
    file = split.open_audio(planned.clip)
    try:
        waveform, rate = decode_pcm16(file, start=start, frames=frames, out=out)
    except DataError as error:
        raise file.failure or DataError(
            f"{split.key(planned.clip)} in {split.corpus.root}: {error}"
        ) from error
    if file.failure is not None:  # and yet the decoder was content
        raise file.failure
    if rate != split.corpus.sample_rate:
        raise DataError(
            f"{split.key(planned.clip)} in {split.corpus.root} has {rate} Hz, but the corpus is "
            f"said to have {split.corpus.sample_rate} Hz."
        )
    return waveform


def _length(plan: CropPlan, planned: PlannedCrop) -> int:
    """Samples of the crop: fewer than the plan's where the whole clip is shorter."""
    return min(plan.crop_samples, int(plan.split.num_samples[planned.clip]))


def _read_codes(plan: CropPlan, planned: PlannedCrop) -> dict[str, Codes]:
    """The crop's frames of every kind of tokens; crops start at whole frames (``crop_start``)."""
    first = planned.start // plan.hop_samples
    frames = _length(plan, planned) // plan.hop_samples
    codes = {}
    for name, tokens in plan.tokens.items():
        cut = tokens.read(planned.clip, start=first, frames=frames)
        if len(cut) != frames:
            raise DataError(
                f"{tokens.place(planned.clip)} ends after {first + len(cut)} frames, but the "
                f"clip's audio goes on. Encode the corpus again."
            )
        codes[name] = cut
    return codes


def _ignore_signals(worker: int) -> None:
    # A signal to the whole group is the trainer's to answer; a worker that dies of it takes the
    # trainer's last checkpoint with it.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    torch.set_num_threads(1)


def _end_workers() -> None:
    # Workers that ignore SIGTERM survive multiprocessing's own clean-up, which then waits for them
    # for ever. Registered later than that, this runs before it. torch's handler would take a killed
    # worker for a failure and raise wherever the interpreter is by then.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
