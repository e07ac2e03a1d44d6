"""Tokens stored once, or made online? Both measured here: `launch/encode.py --advise`.

    encoding   whole tracks, as `launch/encode.py` does it (`encoding.py`)
    online     crops, as an objective with `source: online` has them encoded (`Codec.encode`)
    reading    a crop's frames of stored tokens; of a corpus that has none, of a temporary copy

What both ways need, such as reading and decoding the audio of a crop, is left out. Hours are of
this device, and of a process that does nothing else; n devices share either work.
"""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import final

import numpy as np
import torch

from etude.data.batch import scaled
from etude.data.errors import InputError
from etude.data.pipeline import collate, read_crop
from etude.data.plan import CropPlan
from etude.data.shards import MEMBERS_NAME, Corpus
from etude.data.text import aligned
from etude.data.tokens import (
    SplitTokens,
    Tokens,
    TokenSettings,
    open_tokens,
    shard_keys,
    tokens_root,
    write_token_index,
    write_token_shard,
)
from etude.pretrain.codec import Codec
from etude.pretrain.encoding import (
    check_rate,
    chunk_frames,
    encode_chunks,
    token_settings,
    tracks_of,
)

_SPLIT = "train"
_WARM_UP_STEPS = 2
_WARM_UP_SHARE = 0.2
_TAR_BLOCK, _TAR_RECORD, _ARRAY_HEAD = 512, 10_240, 128
_CROPS_READ = 500


@final
@dataclass(frozen=True)
class Rate:
    """How fast something went."""

    amount: float
    """Seconds of audio, or crops."""
    seconds: float
    """In which it was done, after a warm-up."""

    @property
    def each(self) -> float:
        """Seconds for one."""
        return self.seconds / self.amount

    @property
    def text(self) -> str:
        """How it came to be known."""
        return f"measured, {self.seconds:.1f} s"


@final
@dataclass(frozen=True)
class Workload:
    """What the corpus asks for, counted from its index."""

    encoded_seconds: float
    """Audio to encode: all, and what comes again of tracks that lie in several shards."""
    packed_bytes: int
    plain_bytes: int
    """Of the sidecar tars, in either layout."""
    crop_seconds: float
    crops_per_pass: float
    """Crops that together are as long as the audio that is trained on."""
    crops: int | None = None
    """Of the whole run; None if nobody has said how long it is."""


@final
@dataclass(frozen=True)
class Advice:
    """Both ways in numbers."""

    workload: Workload
    encoding: Rate
    online: Rate
    reading: Rate
    reading_from: str
    there: bool
    """Whether the corpus has this codec's tokens already."""

    @property
    def storing_hours(self) -> float:
        """To encode the corpus once."""
        return self.workload.encoded_seconds * self.encoding.each / 3600

    def online_hours(self, crops: float) -> float:
        """To encode so many crops in training."""
        return crops * self.online.each / 3600

    def reading_hours(self, crops: float) -> float:
        """To read the tokens of so many crops."""
        return crops * self.reading.each / 3600

    @property
    def break_even(self) -> float | None:
        """Passes after which storing has cost less; None if it never does."""
        crops = self.workload.crops_per_pass
        saved = self.online_hours(crops) - self.reading_hours(crops)
        return self.storing_hours / saved if saved > 0 else None

    def lines(self) -> list[str]:
        """A table whose every number says how it came to be known, and a verdict."""
        work, both = self.workload, "measured x counted"
        spans = [(f"a pass of {work.crops_per_pass:,.0f} crops", work.crops_per_pass)]
        if work.crops is not None:
            spans.append((f"the run of {work.crops:,} crops", work.crops))
        audio = f"{work.encoded_seconds / 3600:,.2f} h of audio"
        reading, online = 1e3 * self.reading.each, 1e3 * self.online.each
        read = f"{self.reading.text}, {self.reading_from}"
        encoded = f"{1 / self.encoding.each:.1f} s"
        rows = [
            ["store once", "audio per second", encoded, self.encoding.text],
            ["", audio, _hours(self.storing_hours), both],
            ["", "size, packed", _size(work.packed_bytes), "counted"],
            ["", "size, plain uint16", _size(work.plain_bytes), "counted"],
            ["", "reading, per crop", f"{reading:.3f} ms", read],
            *(["", f"reading, {name}", _hours(self.reading_hours(n)), both] for name, n in spans),
            ["online", f"a crop of {work.crop_seconds:g} s", f"{online:.1f} ms", self.online.text],
            *(["", name, _hours(self.online_hours(n)), both] for name, n in spans),
        ]
        if self.break_even is not None:
            rows.append(["break-even", "after", f"{self.break_even:,.2f} passes", both])
        return [aligned(rows), "", self.verdict()]

    def verdict(self) -> str:
        """Which of the two, and why."""
        edge = (
            "Online tokens also differ near a crop's start, where the codec has not heard what "
            "came before it (docs/codec.md)."
        )
        if self.there and self.break_even is not None:
            return f"verdict: read the tokens that are there already (source: stored). {edge}"
        if self.break_even is None:
            return f"verdict: online. To read stored tokens takes longer here. {edge}"
        crops = self.workload.crops
        if crops is None:
            return (
                f"verdict: store them (--packed) if the runs hear the corpus more than "
                f"{self.break_even:,.2f} times, together; below that, online is cheaper. {edge}"
            )
        stored = self.storing_hours + self.reading_hours(crops)
        online = self.online_hours(crops)
        passes = crops / self.workload.crops_per_pass
        compared = (
            f"the run hears the corpus {passes:,.2f} times: {_hours(stored)} with stored tokens, "
            f"{_hours(online)} online"
        )
        if stored <= online:
            return f"verdict: store them (--packed): {compared}. {edge}"
        return f"verdict: online is cheaper: {compared}; stored ones serve the next run too. {edge}"


def advise(
    corpus: Corpus,
    codec: Codec,
    *,
    crop_seconds: float,
    crops: int | None = None,
    lanes: int = 8,
    chunk_seconds: float = 1.6,
    seconds: float = 5.0,
) -> Advice:
    """Measures both ways; nothing is written to the corpus.

    :param codec: on the device that is to do the work.
    :param crops: that the run will hear, if that is known.
    :param lanes: tracks encoded side by side, and crops encoded together.
    :param seconds: for each measurement, after a warm-up.
    :raises InputError: if the corpus cannot be encoded with this codec, or has no such crops.
    """
    check_rate(corpus, codec)
    plan = CropPlan(
        corpus.split(_SPLIT),
        crop_samples=max(1, round(crop_seconds * codec.frame_rate)) * codec.hop_samples,
        hop_samples=codec.hop_samples,
        seed=0,
    )
    reading, reading_from, there = _reading(plan, codec, seconds)
    return Advice(
        _workload(plan, codec, crops),
        _encoding(corpus, codec, lanes, chunk_frames(codec, chunk_seconds), seconds),
        _online(plan, codec, lanes, seconds),
        reading,
        reading_from,
        there,
    )


def sidecar_bytes(corpus: Corpus, settings: TokenSettings, *, packed: bool) -> int:
    """Bytes of the corpus' sidecar tars, from its index."""
    packing = settings.packing if packed else None
    row_bytes = 2 * settings.codebooks if packing is None else packing.row_bytes
    total = 0
    for shard, rows in corpus.shard_rows():
        lengths = corpus.split(shard.split).num_samples[rows.start : rows.stop]
        arrays = _ARRAY_HEAD + lengths // settings.hop_samples * row_bytes
        members = _TAR_BLOCK * (1 + -(-arrays // _TAR_BLOCK))
        total += _TAR_RECORD * -(-(int(members.sum()) + 2 * _TAR_BLOCK) // _TAR_RECORD)
    return total


def _workload(plan: CropPlan, codec: Codec, crops: int | None) -> Workload:
    corpus, settings = plan.split.corpus, token_settings(codec)
    samples = 0
    for shard, rows in corpus.shard_rows():
        split = corpus.split(shard.split)
        first = tracks_of(split, rows)[0].clips[0] if rows else rows.start
        samples += int(split.num_samples[first : rows.stop].sum())
    crop_seconds = plan.crop_samples / codec.sample_rate
    return Workload(
        encoded_seconds=samples / codec.sample_rate,
        packed_bytes=sidecar_bytes(corpus, settings, packed=True),
        plain_bytes=sidecar_bytes(corpus, settings, packed=False),
        crop_seconds=crop_seconds,
        crops_per_pass=plan.seconds / crop_seconds,
        crops=crops,
    )


def _encoding(corpus: Corpus, codec: Codec, lanes: int, chunk: int, seconds: float) -> Rate:
    """Seconds of audio, encoded as `encode_corpus` does, shard by shard and then from the first."""

    def steps() -> Generator[float, None, None]:
        with ThreadPoolExecutor(max_workers=lanes) as readers:
            while True:
                for shard, rows in corpus.shard_rows():
                    split = corpus.split(shard.split)
                    tracks = tracks_of(split, rows)
                    for step in encode_chunks(split, tracks, codec, lanes, chunk, readers):
                        yield sum(len(part.codes) for part in step) / codec.frame_rate

    running = steps()
    try:
        return _timed(lambda: next(running), seconds)
    finally:
        running.close()


def _online(plan: CropPlan, codec: Codec, batch: int, seconds: float) -> Rate:
    """Crops, encoded in batches that lie on the device already."""
    device = codec.codebooks_KVD.device
    crops = [read_crop(plan, position) for position in range(batch)]
    stored = collate(crops, update=0, crop_samples=plan.crop_samples).waveform
    waveform = scaled(stored.to(device))

    def step() -> float:
        codec.encode(waveform)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return batch

    return _timed(step, seconds)


def _reading(plan: CropPlan, codec: Codec, seconds: float) -> tuple[Rate, str, bool]:
    """Crops whose tokens are read; of which tokens, and whether they are this codec's."""
    corpus = plan.split.corpus
    try:
        tokens = open_tokens(corpus, codec.name)
    except InputError:  # none, or unfinished ones
        with TemporaryDirectory(prefix="etude-tokens-") as folder:
            tokens = _temporary_tokens(corpus, codec, Path(folder))
            (shard,) = tokens.corpus.shards
            few = CropPlan(
                tokens.corpus.split(shard.split),
                crop_samples=plan.crop_samples,
                hop_samples=codec.hop_samples,
                seed=0,
                # Perhaps no clip of this one shard is as long as a crop.
                min_samples=codec.hop_samples,
            )
            rate = _timed_reading(few, tokens.split(shard.split), seconds)
            return rate, "temporary packed tokens", False
    layout = "plain" if tokens.packing is None else "packed"
    same = tokens.settings == token_settings(codec)
    rate = _timed_reading(plan, tokens.split(_SPLIT), seconds)
    return rate, f"the corpus' own {layout} tokens", same


def _temporary_tokens(corpus: Corpus, codec: Codec, folder: Path) -> Tokens:
    """Packed random codes of the first shard's clips, beside links to the corpus' own files."""
    (shard, keys), (_, rows) = next(zip(shard_keys(corpus), corpus.shard_rows(), strict=True))
    for file in (MEMBERS_NAME, shard.file):
        (folder / file).symlink_to((corpus.root / file).resolve())
    lengths = corpus.split(shard.split).num_samples[rows.start : rows.stop] // codec.hop_samples
    generator = np.random.default_rng(0)
    shapes = [(int(frames), codec.num_codebooks) for frames in lengths]
    codes = (generator.integers(codec.codebook_size, size=s, dtype=np.uint16) for s in shapes)
    copy = replace(corpus, root=folder, shards=(shard,))
    root, settings = tokens_root(copy, codec.name), token_settings(codec)
    root.mkdir(parents=True)
    samples = zip(keys, codes, strict=True)
    write_token_shard(root / shard.file, codec.name, samples, packing=settings.packing)
    return write_token_index(copy, codec.name, settings, packing=settings.packing)


def _timed_reading(plan: CropPlan, tokens: SplitTokens, seconds: float) -> Rate:
    frames = plan.crop_samples // plan.hop_samples
    planned = [plan.crop(position) for position in range(_CROPS_READ)]

    def step() -> float:
        for crop in planned:
            tokens.read(crop.clip, start=crop.start // plan.hop_samples, frames=frames)
        return len(planned)

    return _timed(step, seconds)


def _timed(step: Callable[[], float], seconds: float) -> Rate:
    """Steps for at least so long, after a warm-up.

    :param step: returns how much it has done.
    """
    begun, steps = perf_counter(), 0
    while steps < _WARM_UP_STEPS or perf_counter() - begun < _WARM_UP_SHARE * seconds:
        step()
        steps += 1
    begun, amount = perf_counter(), 0.0
    while amount == 0 or perf_counter() - begun < seconds:
        amount += step()
    return Rate(amount, perf_counter() - begun)


def _hours(hours: float) -> str:
    return f"{hours:,.2f} h" if hours >= 0.1 else f"{3600 * hours:.2f} s"


def _size(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"
