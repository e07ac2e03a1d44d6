"""Prepared corpora are damaged in every way we know, and every clip must be accounted for.

    python tests/campaigns/faulty_shards.py [--count 2000] [--seed S] [--webdataset]

Real corpora (demo music through `prepare`, with tokens beside it) get faults of which is known what
they are: in members of shards, also while they are read; in whole shards; in the indices; in the
answers of a web server that a corpus lies on. Each case is a process of its own with a deadline. It
walks whole epochs as a run does, by `read_crop` or by `training_batches` of one or two ranks with
or without workers, and holds what comes against the undamaged corpus, which it reads with tarfile
and soundfile alone:

    per epoch, used + skipped is the number of clips in the index
    what is skipped is exactly what was damaged, and is named; what is used is right to the last bit
    what makes a corpus unusable is refused by a DataError or InputError that names the file

Every fault has one outcome:

    found       its clips were skipped, and no others; or reading or verifying what it damaged,
                which training does not read, was refused by name
    refused     the corpus was not opened
    no matter   all of the corpus was used, and was right: asked again, or bytes that mean nothing
    used wrongly, silent loss (also of the name), crash, hang: mistakes; the exit status is 1

`--webdataset` also reads the structurally damaged shards with webdataset's own reader, and says
what it loses without a word.
"""

import argparse
import faulthandler
import http.server
import io
import json
import logging
import math
import os
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import astuple, dataclass, field, replace
from functools import cache, partial
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import torch

from etude.data import remote
from etude.data.audio import encode
from etude.data.batch import AudioBatch
from etude.data.clip_format import AudioFormat
from etude.data.errors import DataError, InputError
from etude.data.index import verify
from etude.data.mix import MixedPlan
from etude.data.pipeline import held_out_batches, read_crop, training_batches
from etude.data.plan import SUBSTITUTES, BatchShare, CropPlan, Plan, PlannedCrop
from etude.data.shards import Corpus, open_corpus
from etude.data.tar import BLOCK
from etude.data.tokens import (
    TokenSettings,
    open_tokens,
    shard_keys,
    tokens_root,
    write_token_index,
    write_token_shard,
)

RATE, HOP, CROP = 8_000, 80, 4_000
NAME = "numbers"
DEADLINE = 60.0
"""Seconds for a case; the longest takes a few."""
PER_PASS = 40
"""Faults in members that one pass over a corpus accounts for."""
TRIES = 5
"""Of a file of a store, as docs/streaming.md says."""

GOOD = ("found", "refused", "no matter")
BAD = ("used wrongly", "silent loss", "crash", "hang")
HTML = b"<!DOCTYPE html>\n<html><body><h1>Please log in to go on</h1></body></html>\n"


# ---- the undamaged corpus


@dataclass(frozen=True)
class Member:
    """Bytes of a file of the corpus."""

    file: str
    offset: int
    size: int

    def of(self, content: bytes) -> bytes:
        return content[self.offset : self.offset + self.size]


@dataclass(frozen=True, eq=False)
class Clip:
    audio: Member
    json: Member
    codes: Member
    samples: npt.NDArray[np.float32]

    def read(self, *, tokens: bool) -> tuple[Member, ...]:
        """What training reads of it."""
        return (self.audio, self.codes) if tokens else (self.audio,)


@dataclass(frozen=True)
class Truth:
    """A corpus as it was made, found out without the code that is tested."""

    corpus: Corpus
    files: dict[str, bytes]
    """By path within the folder."""
    clips: dict[str, list[Clip]]
    """Of each split, in the order of the index: shards by name, members as they lie."""

    def copy(self, folder: Path) -> Path:
        return Path(shutil.copytree(self.corpus.root, folder))

    def damaged(self, root: Path, *, tokens: bool, held: Iterable[str] = ()) -> set[int]:
        """Training clips of which a byte that is read is not what it was.

        :param held: files that are open, so that it does not matter what is at their paths.
        """
        now = {file: content for file, content in self.files.items() if file.endswith(".tar")}
        for file in now.keys() - set(held):
            now[file] = (root / file).read_bytes() if (root / file).is_file() else b""
        return {
            number
            for number, clip in enumerate(self.clips["train"])
            if any(m.of(now[m.file]) != m.of(self.files[m.file]) for m in clip.read(tokens=tokens))
        }

    def shards(self, *, tokens: bool = False) -> list[str]:
        """Files of the training split's audio, or of its tokens."""
        return sorted({clip.read(tokens=tokens)[-1].file for clip in self.clips["train"]})

    def names(self, root: Path, error: Exception) -> bool:
        """Whether a message leads to a file of the copy in ``root``, or to the tokens' folder."""
        message = str(error)
        names = {Path(file).name for file in self.files} | {f"{root}/targets/{NAME}"}
        return str(root) in message and any(name in message for name in names)


def make_truth(folder: Path, *, minutes: float, seed: int, audio_format: AudioFormat) -> Truth:
    """Demo music as a corpus of many small shards, with tokens that say where they are from."""
    from etude.data.demo.files import write_demo_files
    from etude.data.prepare import PrepareSettings, prepare

    music = folder / "music"
    music.mkdir(parents=True)
    write_demo_files(music, minutes=minutes, seed=seed, workers=1)
    for labels in music.rglob("*.json"):  # in each clip's JSON they would be most of all bytes
        labels.unlink()
    settings = PrepareSettings(
        sample_rate=RATE,
        clip_seconds=0.6,
        min_seconds=0.5,
        shard_mb=0.06,
        audio_format=audio_format,
    )
    corpus = prepare([music], folder / "corpus", settings, workers=0, say=lambda message: None)
    write_tokens(corpus, packed=audio_format == "pcm16")
    root = corpus.root
    files = {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.suffix in (".tar", ".npy") or path.name == "index.json"
    }
    clips: dict[str, list[Clip]] = {"train": [], "valid": []}
    for file in sorted(file for file in files if file.endswith(".tar") and "/" not in file):
        codes = members(f"targets/{NAME}/{file}", files)
        pairs = members(file, files)
        for audio, text, code in zip(pairs[::2], pairs[1::2], codes, strict=True):
            samples, rate = soundfile.read(io.BytesIO(audio.of(files[file])), dtype="float32")
            assert rate == RATE and len(samples) >= CROP
            clips[file.partition("-")[0]].append(Clip(audio, text, code, samples))
    return Truth(corpus, files, clips)


def members(file: str, files: dict[str, bytes]) -> list[Member]:
    with tarfile.open(fileobj=io.BytesIO(files[file])) as tar:
        return [Member(file, info.offset_data, info.size) for info in tar]


def write_tokens(corpus: Corpus, *, packed: bool) -> None:
    """Codes of two books: the clip's number, and the frame's."""
    settings = TokenSettings(NAME, "0" * 64, RATE, HOP, 2, 1024)
    packing = settings.packing if packed else None
    tokens_root(corpus, NAME).mkdir(parents=True)
    for (shard, keys), (_, rows) in zip(shard_keys(corpus), corpus.shard_rows(), strict=True):
        lengths = corpus.split(shard.split).num_samples
        codes = [true_codes(row, 0, int(lengths[row]) // HOP) for row in rows]
        path = tokens_root(corpus, NAME) / shard.file
        write_token_shard(path, NAME, zip(keys, codes, strict=True), packing=packing)
    write_token_index(corpus, NAME, settings, packing=packing)


def true_codes(clip: int, first: int, frames: int) -> npt.NDArray[np.uint16]:
    return np.array([(clip, first + frame) for frame in range(frames)], np.uint16)


# ---- walking, and holding it against the truth


@dataclass(frozen=True)
class Order:
    """How a run goes through its corpora."""

    seed: int
    tokens: bool
    crops_per_clip: int
    block_shards: int
    ranks: int
    workers: int
    batched: bool
    """By `training_batches`, or else by `read_crop`."""

    def part(self, corpus: Corpus, split: str = "train") -> CropPlan:
        tokens = {NAME: open_tokens(corpus, NAME).split(split)} if self.tokens else {}
        return CropPlan(
            corpus.split(split),
            crop_samples=CROP,
            hop_samples=HOP,
            seed=self.seed,
            tokens=tokens,
            crops_per_clip=self.crops_per_clip,
            block_shards=self.block_shards,
        )

    def plan(self, corpora: Sequence[Corpus]) -> Plan:
        parts = [self.part(corpus) for corpus in corpora]
        if len(parts) == 1:
            return parts[0]
        return MixedPlan(parts, [part.seconds for part in parts], seed=self.seed)


def draw_order(random_: random.Random, *, tokens: bool | None = None) -> Order:
    return Order(
        seed=random_.randrange(1 << 40),
        tokens=random_.random() < 0.5 if tokens is None else tokens,
        crops_per_clip=random_.choice([1, 1, 2]),
        block_shards=random_.choice([0, 0, 1, 3]),
        ranks=random_.choice([1, 2]),
        workers=random_.choice([0, 0, 2]),
        batched=random_.random() < 0.4,
    )


Place = tuple[int, int]
"""Part of the plan, clip."""


@dataclass
class Listener:
    """Holds every crop against what was planted."""

    truths: Sequence[Truth]
    damaged: set[Place]
    order: Order
    reference: Plan = field(init=False)
    """The plan of the undamaged corpora."""
    mistakes: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    skipped_at: dict[int, bool] = field(default_factory=dict)
    """By position: whether the planned clip was skipped, by what was heard."""
    wrong: set[Place] = field(default_factory=set)
    """Planned clips at whose positions something was heard that is not in the corpus."""
    used: set[Place] = field(default_factory=set)
    skipped: set[Place] = field(default_factory=set)
    """In epochs that were heard whole."""
    epochs: int = 0
    """How many these are."""

    def __post_init__(self) -> None:
        self.reference = self.order.plan([truth.corpus for truth in self.truths])
        self.tries = cache(self.tries)  # type: ignore[method-assign]

    def note(self, kind: str, what: str) -> None:
        self.mistakes[kind] += 1
        self.notes.append(f"{kind}: {what}")

    def tries(self, position: int) -> list[PlannedCrop]:
        """The crops to be tried up to the first whole one; all of them if there is none."""
        tried = []
        for attempt in range(SUBSTITUTES + 1):
            tried.append(self.reference.crop(position, attempt))
            if (tried[-1].part, tried[-1].clip) not in self.damaged:
                break
        return tried

    def wave(self, crop: PlannedCrop) -> npt.NDArray[np.float32]:
        clip = self.truths[crop.part].clips["train"][crop.clip]
        return clip.samples[crop.start : crop.start + CROP]

    def hear(self, position: int, waveform: npt.NDArray[np.float32], codes: Any) -> None:
        """A crop that came; ``codes`` are None where none were asked for."""
        tried = self.tries(position)
        place = (tried[0].part, tried[0].clip)
        planned, right = self.wave(tried[0]), self.wave(tried[-1])
        if not np.array_equal(waveform, right):
            self.wrong.add(place)
            self.note("used wrongly", f"position {position} is not {tried[-1]}")
        elif codes is not None:
            first = tried[-1].start // HOP
            if not np.array_equal(codes, true_codes(tried[-1].clip, first, CROP // HOP)):
                self.wrong.add(place)
                self.note("used wrongly", f"codes of position {position} are not of {tried[-1]}")
        # Of two clips with the same samples (silence) nobody can tell which it was.
        same = len(tried) > 1 and np.array_equal(planned, right)
        self.skipped_at[position] = same or not np.array_equal(waveform, planned)

    def hopeless(self, position: int) -> bool:
        last = self.tries(position)[-1]
        return (last.part, last.clip) in self.damaged

    def finish(self) -> None:
        """The accounts of every epoch of every corpus that was heard whole."""
        sizes = [len(truth.clips["train"]) for truth in self.truths]
        crops: Counter[int] = Counter()
        epochs: dict[tuple[int, int], list[tuple[int, bool]]] = {}
        for position in range(max(self.skipped_at, default=-1) + 1):
            crop = self.reference.crop(position)
            epoch = crops[crop.part] // sizes[crop.part]
            crops[crop.part] += 1
            if position in self.skipped_at:
                heard = epochs.setdefault((crop.part, epoch), [])
                heard.append((crop.clip, self.skipped_at[position]))
        for (part, _), heard in epochs.items():
            if len(heard) < sizes[part]:
                continue
            self.epochs += 1
            bad = {clip for where, clip in self.damaged if where == part}
            used = {clip for clip, skipped in heard if not skipped}
            lost = {clip for clip, skipped in heard if skipped}
            self.skipped |= {(part, clip) for clip in lost}
            self.used |= {(part, clip) for clip in used}
            if len(used) + len(lost) != sizes[part] or used & lost:
                self.note("silent loss", f"{len(used)} used, {len(lost)} skipped of {sizes[part]}")
            if lost - bad:
                self.note("silent loss", f"skipped, though whole: {sorted(lost - bad)}")
            if bad - lost:
                self.note("used wrongly", f"used, though damaged: {sorted(bad - lost)}")

    def crops(self, epochs: float) -> int:
        """Positions in which every corpus is heard so often."""
        sizes = [len(truth.clips["train"]) for truth in self.truths]
        crops = math.ceil(epochs * sum(sizes))
        while any(
            part_epochs * self.order.crops_per_clip < epochs
            for part_epochs in self.reference.epochs(crops)
        ):
            crops += 1
        return crops


def walk(plan: Plan, listener: Listener, first: int, epochs: float) -> None:
    """Hears whole epochs of a plan, from a position on that begins one."""
    last = first + listener.crops(epochs)
    # Nothing may follow a position at which all is damaged.
    end = next((p for p in range(first, last) if listener.hopeless(p)), None)
    positions = range(first, last if end is None else end)
    if listener.order.batched:
        walk_batches(plan, listener, positions)
    else:
        for position in positions:
            walk_crop(plan, listener, position)
    if end is not None:
        try:
            read_crop(plan, end)
            listener.note("used wrongly", f"position {end}, at which all is damaged")
        except DataError as error:
            if not str(error).startswith(f"{SUBSTITUTES + 1} clips in a row are damaged"):
                raise
    listener.finish()
    if end is None and not listener.epochs:
        listener.note("silent loss", "no epoch was heard to its end")


def as_floats(waveform: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """Samples of a crop as soundfile gives them."""
    return waveform.astype(np.float32) / 32768


def walk_crop(plan: Plan, listener: Listener, position: int) -> None:
    told: list[tuple[PlannedCrop, str]] = []
    crop = read_crop(plan, position, lambda planned, error: told.append((planned, str(error))))
    listener.hear(position, as_floats(crop.waveform), crop.codes.get(NAME))
    tried = listener.tries(position)[:-1]
    if [planned for planned, _ in told] != tried or crop.skipped != bool(tried):
        listener.note("silent loss", f"position {position}: told of {told}, damaged {tried}")
    if listener.skipped_at[position] != bool(told):
        listener.note("silent loss", f"position {position}: {told} told, but otherwise heard")
    for planned, message in told:
        clip = listener.truths[planned.part].clips["train"][planned.clip]
        if not any(Path(m.file).name in message for m in clip.read(tokens=True)):
            listener.note("silent loss", f"the shard of {planned} is not named: {message}")


def walk_batches(plan: Plan, listener: Listener, positions: range) -> None:
    """The same by the streams of all ranks; what is no whole update, crop by crop."""
    order = listener.order
    share = BatchShare(6 * order.ranks, 3, 0, order.ranks)
    first = -(-positions.start // share.global_batch)
    updates = max(0, positions.stop // share.global_batch - first)
    batched = range(first * share.global_batch, (first + updates) * share.global_batch)
    for position in positions:
        if position not in batched:
            walk_crop(plan, listener, position)
    for rank in range(order.ranks if updates else 0):
        stream = training_batches(
            plan,
            replace(share, rank=rank),
            first_update=first,
            workers=order.workers,
            pin_memory=False,
        )
        with closing(stream) as endless:  # type: ignore[type-var]
            for batch in islice(endless, updates * share.micro_batches):
                hear_batch(batch, listener)


def hear_batch(batch: AudioBatch, listener: Listener) -> None:
    positions = batch.sample_ids.tolist()
    for row, position in enumerate(positions):
        codes = batch.codes[NAME][row].numpy() if listener.order.tokens else None
        listener.hear(position, as_floats(batch.waveform[row].numpy()), codes)
    skipped = sum(listener.skipped_at[position] for position in positions)
    if int(batch.skipped) != skipped:
        what = f"positions {positions}: {batch.skipped} counted, {skipped} were skipped"
        listener.note("silent loss", what)


# ---- faults in members


Spoil = Callable[[bytes, "Draw"], bytes]


@dataclass
class Draw:
    """What a fault may draw from."""

    random: random.Random
    others: list[bytes]
    """Members of the same kind."""
    samples: npt.NDArray[np.float32]
    """The clip's."""


def flip_bit(old: bytes, draw: Draw) -> bytes:
    return flip_bits(old, draw, 1)


def flip_bits(old: bytes, draw: Draw, count: int | None = None) -> bytes:
    new = bytearray(old)
    for _ in range(count or draw.random.randint(2, 64)):
        bit = draw.random.randrange(8 * len(new))
        new[bit // 8] ^= 1 << bit % 8
    return bytes(new)


def block(old: bytes, draw: Draw, fill: Callable[[int], bytes]) -> bytes:
    size = min(len(old), draw.random.choice([8, 64, 512, 4096]))
    start = draw.random.randrange(len(old) - size + 1)
    return old[:start] + fill(size) + old[start + size :]


def zeros(old: bytes, draw: Draw) -> bytes:
    return block(old, draw, bytes)


def garbage(old: bytes, draw: Draw) -> bytes:
    return block(old, draw, draw.random.randbytes)


def another(old: bytes, draw: Draw) -> bytes:
    other = draw.random.choice(draw.others)
    return (other * (len(old) // len(other) + 1))[: len(old)]


def second_half(old: bytes, draw: Draw) -> bytes:
    return old[: len(old) // 2] + draw.random.randbytes(len(old) - len(old) // 2)


def shifted(old: bytes, draw: Draw) -> bytes:
    at = draw.random.randrange(len(old))
    return (old[:at] + draw.random.randbytes(1) + old[at:])[: len(old)]


def other_rate(old: bytes, draw: Draw) -> bytes:
    return padded(encode(np.zeros(len(draw.samples), np.int16), 2 * RATE), old)


def other_audio(old: bytes, draw: Draw) -> bytes:
    """A whole FLAC file of the right length and rate: no decoder can tell."""
    quieter = (draw.samples * 32768 / draw.random.choice([2, 4, 8])).astype(np.int16)
    return padded(encode(quieter, RATE), old)


def padded(new: bytes, old: bytes) -> bytes:
    # One that does not fit is itself a fault: a file that was cut.
    return new[: len(old)] + bytes(len(old) - len(new[: len(old)]))


def other_number(old: bytes, draw: Draw) -> bytes:
    """JSON that is read as well as before, with another number in it."""
    at = draw.random.choice([i for i, byte in enumerate(old) if chr(byte).isdigit()])
    digit = draw.random.choice([d for d in b"123456789" if d != old[at]])
    return old[:at] + bytes([digit]) + old[at + 1 :]


def other_code(old: bytes, draw: Draw) -> bytes:
    """An array that is read as well as before, with another code in it."""
    codes = np.load(io.BytesIO(old))
    codes[draw.random.randrange(len(codes)), draw.random.randrange(2)] ^= 1
    buffer = io.BytesIO()
    np.save(buffer, codes)
    return buffer.getvalue()


COMMON: dict[str, Spoil] = {
    "a bit flipped": flip_bit,
    "bits flipped": flip_bits,
    "a block of zeros": zeros,
    "a block of garbage": garbage,
    "another member's bytes": another,
    "second half overwritten": second_half,
    "shifted by a byte": shifted,
}
MEMBERS: dict[str, dict[str, Spoil]] = {
    "audio": {
        **COMMON,
        "silence of another rate": other_rate,
        "a whole FLAC of other samples": other_audio,
    },
    "json": {**COMMON, "another number": other_number},
    "codes": {**COMMON, "another code": other_code},
}


@dataclass(frozen=True)
class Verdict:
    """What became of a fault."""

    kind: str
    outcome: str
    note: str = ""
    epochs: int = 0
    """That were accounted for, told once per case."""


def member_faults(
    kinds: Sequence[tuple[str, str]], truths: Sequence[Truth], folder: Path, random_: random.Random
) -> list[Verdict]:
    """Many members damaged in copies of one corpus or a mixture of two; two epochs and more."""
    mixed = random_.random() < 0.3
    truths = truths if mixed else [random_.choice(truths)]
    order = draw_order(random_, tokens=any(part == "codes" for part, _ in kinds) or None)
    roots = [truth.copy(folder / str(number)) for number, truth in enumerate(truths)]
    plan = order.plan([open_corpus(root) for root in roots])
    planted = plant_members(kinds, truths, roots, random_)
    if random_.random() < 0.5:  # while files are held open, and are in the page cache
        for position in range(7):
            read_crop(plan, position)
    for place, (part, _, new) in planted.items():
        member = getattr(truths[place[0]].clips["train"][place[1]], part)
        write_at(roots[place[0]] / member.file, member.offset, new)
    damaged = {
        (number, clip)
        for number, truth in enumerate(truths)
        for clip in truth.damaged(roots[number], tokens=order.tokens)
    }
    listener = Listener(truths, damaged, order)
    walk(plan, listener, 0, epochs=2)
    verdicts = []
    for place, (part, kind, new) in planted.items():
        truth = truths[place[0]]
        old = getattr(truth.clips["train"][place[1]], part)
        changed = new != old.of(truth.files[old.file])
        note = ""
        if place in listener.wrong or (place in listener.used and place in damaged):
            outcome = "used wrongly"
        elif part == "json":
            outcome, note = judge_json(plan.parts[place[0]], place[1], truth, changed)
        elif changed:
            outcome = "found" if place in listener.skipped else "silent loss"
        else:
            outcome = "no matter" if place in listener.used else "silent loss"
        verdicts.append(Verdict(f"{part}: {kind}", outcome, note))
    return with_mistakes(verdicts, listener)


def plant_members(
    kinds: Sequence[tuple[str, str]],
    truths: Sequence[Truth],
    roots: Sequence[Path],
    random_: random.Random,
) -> dict[Place, tuple[str, str, bytes]]:
    """A fault in each of as many clips; what is to be written there."""
    everywhere = [
        (n, c) for n, truth in enumerate(truths) for c in range(len(truth.clips["train"]))
    ]
    chosen = random_.sample(everywhere, len(kinds))
    planted = {}
    for place, (part, kind) in zip(chosen, kinds, strict=True):
        truth = truths[place[0]]
        clips = truth.clips["train"]
        member: Member = getattr(clips[place[1]], part)
        pool = [getattr(clip, part) for clip in random_.sample(clips, 5)]
        others = [other.of(truth.files[other.file]) for other in pool if other != member]
        draw = Draw(random_, others, clips[place[1]].samples)
        new = MEMBERS[part][kind](member.of(truth.files[member.file]), draw)
        assert len(new) == member.size
        planted[place] = (part, kind, new)
    return planted


def judge_json(part: CropPlan, clip: int, truth: Truth, changed: bool) -> tuple[str, str]:
    """Training does not read it, so that whoever does must be told."""
    member = truth.clips["train"][clip].json
    try:
        metadata = part.split.read_metadata(clip)
    except DataError as error:
        named = member.file in str(error) and ".json" in str(error)
        return ("found", "") if named else ("silent loss", f"not named: {error}")
    except Exception as error:  # noqa: BLE001 - which is what must not come
        return "crash", repr(error)
    same = metadata == json.loads(member.of(truth.files[member.file]))
    return ("no matter" if same and not changed else "used wrongly"), f"{member} was read"


def with_mistakes(verdicts: list[Verdict], listener: Listener) -> list[Verdict]:
    """Verdicts, one of them spoilt if the accounts are wrong and none says so yet."""
    verdicts = [replace(verdicts[0], epochs=listener.epochs), *verdicts[1:]]
    if not listener.mistakes:
        return verdicts
    (worst, _), note = listener.mistakes.most_common(1)[0], "; ".join(listener.notes[:3])
    if any(verdict.outcome in BAD for verdict in verdicts):
        return [replace(v, note=note) if v.outcome in BAD else v for v in verdicts]
    return [replace(verdicts[0], outcome=worst, note=note), *verdicts[1:]]


def write_at(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


# ---- held-out clips


def held_out_fault(
    kind: str, truths: Sequence[Truth], folder: Path, random_: random.Random
) -> list[Verdict]:
    """A held-out clip is not replaced, which would compare other clips than before: refused."""
    truth, name = truths[0], kind
    clips = truth.clips["valid"]
    root = truth.copy(folder / "0")
    number = random_.randrange(len(clips))
    member = clips[number].audio
    others = [clip.audio.of(truth.files[clip.audio.file]) for clip in clips if clip.audio != member]
    old = member.of(truth.files[member.file])
    spoil = COMMON[kind.partition(": ")[2]]
    new = spoil(old, Draw(random_, others, clips[number].samples))
    write_at(root / member.file, member.offset, new)
    plan = replace(draw_order(random_), tokens=False).part(open_corpus(root), "valid")
    count = 0
    try:
        for batch in held_out_batches(plan, crops=999, micro_batch=1, rank=0, ranks=1):
            start = (len(clips[count].samples) - CROP) // 2 // HOP * HOP
            right = clips[count].samples[start : start + CROP]
            if not np.array_equal(as_floats(batch.waveform[0].numpy()), right):
                return [Verdict(name, "used wrongly", f"held-out clip {count}")]
            count += 1
    except DataError as error:
        named = member.file in str(error) and count == number and new != old
        return [Verdict(name, "refused" if named else "silent loss", "" if named else str(error))]
    return [Verdict(name, "no matter" if new == old else "silent loss", f"{count} heard")]


# ---- faults in shards


Files = dict[str, bytes | None]
"""New contents of files; ``None`` for one that is gone."""


def cut_at_block(old: bytes, random_: random.Random) -> bytes:
    return old[: BLOCK * random_.randrange(1, len(old) // BLOCK)]


def cut_anywhere(old: bytes, random_: random.Random) -> bytes:
    return old[: random_.randrange(1, len(old))]


def flip_header(old: bytes, random_: random.Random) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(old)) as tar:
        header = random_.choice([info.offset for info in tar])
    new = bytearray(old)
    for _ in range(random_.choice([1, 1, 4])):
        new[header + random_.randrange(BLOCK)] ^= 1 << random_.randrange(8)
    return bytes(new)


def flip_padding(old: bytes, random_: random.Random) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(old)) as tar:
        ends = [info.offset_data + info.size for info in tar]
    places = [at for end in ends for at in range(end, -(-end // BLOCK) * BLOCK)]
    places += range(-(-ends[-1] // BLOCK) * BLOCK, len(old))
    at = random_.choice(places)
    return old[:at] + bytes([old[at] ^ 1 << random_.randrange(8)]) + old[at + 1 :]


ONE_SHARD: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "cut at a block": cut_at_block,
    "cut anywhere": cut_anywhere,
    "cut to nothing": lambda old, random_: b"",
    "missing": lambda old, random_: None,
    "a header flipped": flip_header,
    "padding flipped": flip_padding,
    "an HTML page": lambda old, random_: HTML,
    "an HTML page of its size": lambda old, random_: (HTML * len(old))[: len(old)],
    "appended to": lambda old, random_: old + random_.randbytes(random_.choice([1, 512, 9999])),
    "zeros appended": lambda old, random_: old + bytes(random_.choice([1, 512, 10240])),
    "all zeros": lambda old, random_: bytes(len(old)),
}
TWO_SHARDS = ("two of one size swapped", "two of two sizes swapped", "one over another")


def shard_content(kind: str, truth: Truth, random_: random.Random, *, tokens: bool) -> Files:
    """What the fault makes of which files."""
    shards = truth.shards(tokens=tokens)
    if kind in ONE_SHARD:
        file = random_.choice(shards)
        return {file: ONE_SHARD[kind](truth.files[file], random_)}
    pairs = list(permutations(shards, 2))
    sizes = {file: len(truth.files[file]) for file in shards}
    if kind == "two of one size swapped":
        pairs = [(a, b) for a, b in pairs if sizes[a] == sizes[b]]
    elif kind == "two of two sizes swapped":  # those of tokens may all have one
        pairs = [(a, b) for a, b in pairs if sizes[a] != sizes[b]] or pairs
    one, other = random_.choice(pairs)
    over: Files = {one: truth.files[other]}
    return over if kind == "one over another" else {**over, other: truth.files[one]}


def shard_fault(
    kind: str, truths: Sequence[Truth], folder: Path, random_: random.Random
) -> list[Verdict]:
    """One shard or two, before the corpus is opened or while it is read."""
    stage, _, how = kind.partition(": ")
    truth = truths[0]
    tokens = random_.random() < 0.25
    root = truth.copy(folder / "0")
    content = shard_content(how, truth, random_, tokens=tokens)
    order = draw_order(random_, tokens=tokens or None)
    outcome, note, listener = STAGES[stage](truth, root, content, order, random_)
    verdicts = [Verdict(kind, outcome, note)]
    return verdicts if listener is None else with_mistakes(verdicts, listener)


def shard_before(
    truth: Truth, root: Path, content: Files, order: Order, random_: random.Random
) -> tuple[str, str, Listener | None]:
    write_files(root, content, in_place=random_.random() < 0.5)
    sized = all(
        new is not None and len(new) == len(truth.files[file]) for file, new in content.items()
    )
    try:
        plan = order.plan([open_corpus(root)])
    except (DataError, InputError) as error:
        if sized or not any(str(root / file) in str(error) for file in content):
            return "silent loss", f"refused, but not by name: {error}", None
        return "refused", "", None
    if not sized:
        return "silent loss", f"opened with other sizes of {list(content)}", None
    damaged = truth.damaged(root, tokens=order.tokens)
    listener = Listener([truth], {(0, clip) for clip in damaged}, order)
    walk(plan, listener, 0, epochs=1)
    if any("/" in file for file in content):  # tokens, which have nothing but checksums
        return "found" if damaged else "no matter", "", listener
    try:
        verify(root)
        return "silent loss", f"verify did not see it in {list(content)}", listener
    except DataError as error:
        named = any(str(root / file) in str(error) for file in content)
        return "found" if named else "silent loss", "" if named else str(error), listener


def shard_running(
    truth: Truth, root: Path, content: Files, order: Order, random_: random.Random
) -> tuple[str, str, Listener | None]:
    plan = order.plan([open_corpus(root)])
    reference = Listener([truth], set(), order)
    first = random_.choice([0, reference.crops(1)])
    for position in range(first):
        walk_crop(plan, reference, position)
    in_place = random_.random() < 0.5
    write_files(root, content, in_place=in_place)
    # A file that was read is open, and stays whole for who has it if its name is given to another.
    held = [file for file, new in content.items() if new is None or not in_place] if first else []
    damaged = truth.damaged(root, tokens=order.tokens, held=held)
    listener = Listener([truth], {(0, clip) for clip in damaged}, order)
    listener.notes, listener.mistakes = reference.notes, reference.mistakes
    walk(plan, listener, first, epochs=1)
    return "found" if damaged else "no matter", "", listener


STAGES = {"a shard at the start": shard_before, "a shard while running": shard_running}


def write_files(root: Path, content: Files, *, in_place: bool) -> None:
    for file, new in content.items():
        if new is None:
            (root / file).unlink()
        elif in_place:
            with (root / file).open("r+b") as out:
                out.write(new)
                out.truncate()
        else:
            (root / file).with_suffix(".new").write_bytes(new)
            (root / file).with_suffix(".new").replace(root / file)


# ---- faults in indices


def rows_removed(old: bytes, random_: random.Random, other: bytes) -> bytes:
    if old[:1] == b"{":
        content = json.loads(old)
        del content["shards"][random_.randrange(len(content["shards"]))]
        return json.dumps(content, indent=1).encode()
    rows = np.load(io.BytesIO(old))
    first = random_.randrange(len(rows))
    return saved(np.delete(rows, slice(first, first + random_.randint(1, 9))))


def rows_swapped(old: bytes, random_: random.Random, other: bytes) -> bytes:
    if old[:1] == b"{":
        content = json.loads(old)
        shards = content["shards"]
        a, b = random_.sample(range(len(shards)), 2)
        shards[a], shards[b] = shards[b], shards[a]
        return json.dumps(content, indent=1).encode()
    rows = np.load(io.BytesIO(old))
    a, b = random_.sample(range(len(rows)), 2)
    rows[[a, b]] = rows[[b, a]]
    return saved(rows)


def number_changed(old: bytes, random_: random.Random, other: bytes) -> bytes:
    """A number of the JSON, or a field of a row, off by a little or by much."""
    off = random_.choice([1, -1, 1 << 20, -(1 << 30)])
    if old[:1] == b"{":
        content = json.loads(old)
        leaves = [
            (holder, key)
            for holder in (content, *content["shards"])
            for key, value in holder.items()
            if isinstance(value, int | float)
        ]
        top = [leaf for leaf in leaves if leaf[0] is content]
        holder, key = random_.choice(top if random_.random() < 0.5 else leaves)
        holder[key] += off
        return json.dumps(content, indent=1).encode()
    rows = np.load(io.BytesIO(old))
    at = random_.randrange(len(rows))
    column = rows[random_.choice(rows.dtype.names)] if rows.dtype.names else rows
    column[at] = (int(column[at]) + off) % (1 << 31)
    return saved(rows)


def saved(rows: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, rows)
    return buffer.getvalue()


def head_flipped(old: bytes, random_: random.Random, other: bytes) -> bytes:
    at = random_.randrange(min(len(old), 256))
    return old[:at] + bytes([old[at] ^ 1 << random_.randrange(8)]) + old[at + 1 :]


def garbled(old: bytes, random_: random.Random, spoil: Spoil) -> bytes:
    return spoil(old, Draw(random_, [], np.zeros(0, np.float32)))


INDEX: dict[str, Callable[[bytes, random.Random, bytes], bytes | None]] = {
    "a bit flipped": lambda old, random_, other: garbled(old, random_, flip_bit),
    "a bit of the head flipped": head_flipped,
    "bits flipped": lambda old, random_, other: garbled(old, random_, flip_bits),
    "a block of zeros": lambda old, random_, other: garbled(old, random_, zeros),
    "a block of garbage": lambda old, random_, other: garbled(old, random_, garbage),
    "cut": lambda old, random_, other: old[: random_.randrange(1, len(old))],
    "cut to nothing": lambda old, random_, other: b"",
    "missing": lambda old, random_, other: None,
    "rows removed": rows_removed,
    "rows swapped": rows_swapped,
    "a number changed": number_changed,
    "of another corpus": lambda old, random_, other: other,
    "an HTML page": lambda old, random_, other: HTML,
}
INDICES = {
    "index.json": "index.json",
    "members.npy": "members.npy",
    "blocks.npy": "blocks.npy",
    "tokens' index.json": f"targets/{NAME}/index.json",
    "tokens' members.npy": f"targets/{NAME}/members.npy",
}


def index_fault(
    kind: str, truths: Sequence[Truth], folder: Path, random_: random.Random
) -> list[Verdict]:
    """An index that is not the one that was written."""
    which, _, how = kind.partition(": ")
    truth, other = truths[0], truths[1]
    file = INDICES[which]
    root = truth.copy(folder / "0")
    new = INDEX[how](truth.files[file], random_, other.files[file])
    write_files(root, {file: new}, in_place=False)
    order = draw_order(random_, tokens="tokens" in which or None)
    try:
        corpus = open_corpus(root)
        plan = order.plan([corpus])
    except (DataError, InputError) as error:
        named = truth.names(root, error)
        return [Verdict(kind, "refused" if named else "silent loss", "" if named else str(error))]
    if decides(truth.corpus, order) != decides(corpus, order):
        return [Verdict(kind, "used wrongly", f"other numbers were read from {file}")]
    listener = Listener([truth], set(), order)
    walk(plan, listener, 0, epochs=1)
    return with_mistakes([Verdict(kind, "no matter")], listener)


def decides(corpus: Corpus, order: Order) -> tuple[Any, ...]:
    """All of the indices that decides what is trained on, and how."""
    shards = [replace(shard, seconds=0.0) for shard in corpus.shards]
    tokens = open_tokens(corpus, NAME) if order.tokens else None
    settings = None if tokens is None else (tokens.settings, tokens.packing, tokens.shards)
    return corpus.sample_rate, corpus.fingerprint, shards, settings


# ---- faults of a web server


class Store(http.server.ThreadingHTTPServer):
    """A web server over a folder, with one kind of trouble at one file."""

    def __init__(self, root: Path, trouble: str, file: str, times: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.trouble, self.file, self.left = root, trouble, file, times
        """``left``: how often it still is to fail."""
        self.url = f"http://127.0.0.1:{self.server_port}/corpus"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away while it was kept waiting


class Handler(http.server.BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        name = self.path.removeprefix("/corpus/")
        content = (self.server.root / name).read_bytes()
        trouble = ""
        if name == self.server.file and self.server.left > 0:
            self.server.left -= 1
            trouble = self.server.trouble
        if trouble in ("404", "503"):
            return self.send_error(int(trouble))
        if trouble == "no answer":
            time.sleep(DEADLINE)
        if trouble in ("connection closed", "no answer"):
            return None
        if trouble == "an HTML page":
            content = HTML
        if trouble == "a shorter file":
            content = content[: len(content) // 2]
        if trouble == "a bit flipped":
            content = garbled(content, random.Random(name), flip_bit)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if trouble in ("body cut", "stall"):
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            if trouble == "stall":
                time.sleep(DEADLINE)
            return None
        piece = len(content) // 6 + 1
        for first in range(0, len(content), piece):
            if trouble == "slow":
                time.sleep(STALL / 3)
            self.wfile.write(content[first : first + piece])
        return None

    def log_message(self, format: str, *args: object) -> None:
        pass


STALL = 0.3
"""Seconds without a byte that are too long here; a slow store needs longer for a file."""
TROUBLES = (
    "slow",
    "body cut",
    "a shorter file",
    "404",
    "503",
    "an HTML page",
    "a bit flipped",
    "stall",
    "no answer",
    "connection closed",
)
ASKED_AGAIN = ("slow", "body cut", "503", "stall", "no answer", "connection closed")
"""What the way to a file does, and not what is there."""
CACHED: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "a bit flipped": lambda old, random_: garbled(old, random_, flip_bit),
    "cut": cut_anywhere,
    "gone": lambda old, random_: None,
}


def remote_fault(
    kind: str, truths: Sequence[Truth], folder: Path, random_: random.Random
) -> list[Verdict]:
    """A store that fails at one file, for ever or a few times; a copy of it that is damaged."""
    remote._FIRST_WAIT = 0.001
    remote._STALL_SECONDS = STALL
    truth = truths[0]
    where, _, trouble = kind.partition(": ")
    order = draw_order(random_)
    order = replace(order, block_shards=random_.choice([1, 3]))
    file = random_.choice(truth.shards(tokens=order.tokens and random_.random() < 0.5))
    times: float = math.inf
    if where == "an index at a URL":
        file = INDICES[random_.choice(list(INDICES)[: 5 if order.tokens else 3])]
        times = random_.choice([math.inf, 1, 4])
    elif where == "a shard at a URL, at times":
        times = random_.randint(1, TRIES - 1)
    elif where == "a shard in the cache":
        times = 0
    store = Store(truth.corpus.root, trouble, file, times)
    try:
        corpus = remote.open_remote(store.url, remote.Cache(folder / "cache", 1 << 30))
        plan = order.plan([corpus])
    except (DataError, InputError) as error:
        passing = times < TRIES or trouble == "slow"
        if where != "an index at a URL" or (passing and trouble in ASKED_AGAIN):
            return [Verdict(kind, "silent loss", f"refused for a while's trouble: {error}")]
        named = Path(file).name in str(error)
        return [Verdict(kind, "refused" if named else "silent loss", "" if named else str(error))]
    damaged, first = set(), 0
    if where == "a shard at a URL, for ever" and trouble != "slow":
        damaged = {
            clip
            for clip, place in enumerate(truth.clips["train"])
            if file in [member.file for member in place.read(tokens=order.tokens)]
        }
    if where == "a shard in the cache":
        before = Listener(truths[:1], set(), order)
        first = before.crops(1)
        for position in range(first):
            walk_crop(plan, before, position)
        old = truth.files[file]
        write_files(corpus.root, {file: CACHED[trouble](old, random_)}, in_place=True)
        if trouble == "a bit flipped":  # else it is fetched again
            damaged = truth.damaged(corpus.root, tokens=order.tokens)
    listener = Listener(truths[:1], {(0, clip) for clip in damaged}, order)
    walk(plan, listener, first, epochs=1)
    return with_mistakes([Verdict(kind, "found" if damaged else "no matter")], listener)


# ---- the campaign


Fault = Callable[[str, Sequence[Truth], Path, random.Random], list[Verdict]]


@dataclass(frozen=True)
class Case:
    """Faults of one corpus, judged in a process of their own."""

    kinds: tuple[str, ...]
    """Of its faults, as in the table."""
    run: Callable[[Sequence[Truth], Path, random.Random], list[Verdict]]


MEMBER_KINDS = [(part, kind) for part, kinds in MEMBERS.items() for kind in kinds]
SINGLES: dict[str, tuple[float, Fault, list[str]]] = {
    "held-out audio": (0.02, held_out_fault, [f"held-out audio: {kind}" for kind in COMMON]),
    "shards": (
        0.18,
        shard_fault,
        [f"{stage}: {kind}" for kind in (*ONE_SHARD, *TWO_SHARDS) for stage in STAGES],
    ),
    "indices": (0.13, index_fault, [f"{which}: {how}" for how in INDEX for which in INDICES]),
    "URLs": (
        0.08,
        remote_fault,
        [
            *(f"a shard at a URL, for ever: {trouble}" for trouble in TROUBLES),
            *(f"a shard at a URL, at times: {trouble}" for trouble in TROUBLES if trouble != "404"),
            *(f"an index at a URL: {trouble}" for trouble in TROUBLES),
            *(f"a shard in the cache: {how}" for how in CACHED),
        ],
    ),
}
"""Share of all faults, what plants one, kinds. The rest are faults in members."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--webdataset", action="store_true", help="what its own reader loses")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        truths = make_truths(Path(folder), minutes=3.0)
        verdicts = []
        for number, case in enumerate(draw(options.count, options.seed)):
            verdicts += in_child(case, truths, Path(folder), f"{options.seed}/{number}")
        print_table(verdicts)
        if options.webdataset:
            print_rival(truths[0], options.seed)
    wrong = [verdict for verdict in verdicts if verdict.outcome in BAD]
    for verdict in wrong:
        print(f"{verdict.outcome}: {verdict.kind}: {verdict.note[-2000:]}")
    epochs = sum(verdict.epochs for verdict in verdicts)
    seconds = time.monotonic() - began
    print(f"{len(verdicts)} faults, {epochs} epochs, {len(wrong)} mistakes, {seconds:.0f} s")
    return 1 if wrong else 0


def make_truths(folder: Path, *, minutes: float) -> list[Truth]:
    """The corpus that is damaged most often, and another one."""
    return [
        make_truth(folder / "one", minutes=minutes, seed=0, audio_format="flac"),
        make_truth(folder / "other", minutes=minutes / 2, seed=1, audio_format="pcm16"),
    ]


def draw(count: int, seed: int, per_pass: int = PER_PASS) -> list[Case]:
    """Cases with so many faults in all, each kind as often as the others of its group."""
    random_ = random.Random(seed)
    cases = []
    for share, plant, kinds in SINGLES.values():
        for kind in dealt(kinds, round(share * count), random_):
            cases.append(Case((kind,), partial(plant, kind)))
    kinds_of_members = dealt(MEMBER_KINDS, count - len(cases), random_)
    for first in range(0, len(kinds_of_members), per_pass):
        some = kinds_of_members[first : first + per_pass]
        names = tuple(f"{part}: {kind}" for part, kind in some)
        cases.append(Case(names, partial(member_faults, some)))
    return cases


def dealt(kinds: Sequence[Any], count: int, random_: random.Random) -> list[Any]:
    rounds = [random_.sample(kinds, len(kinds)) for _ in range(-(-count // len(kinds)))]
    return [kind for some in rounds for kind in some][:count]


def in_child(case: Case, truths: Sequence[Truth], folder: Path, seed: str) -> list[Verdict]:
    """A case's verdicts, from a fork that ends when its time is over."""
    place = folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    child = os.fork()
    if child == 0:
        status = 2
        try:
            os.setsid()
            torch.set_num_threads(1)
            logging.disable(logging.WARNING)  # that clips are damaged is no news here
            warnings.simplefilter("ignore")
            with (place / "stacks").open("w") as stacks:
                faulthandler.dump_traceback_later(DEADLINE, exit=True, file=stacks)
                verdicts = case.run(truths, place, random.Random(seed))
            (place / "verdicts").write_text(json.dumps([astuple(v) for v in verdicts]))
            status = 0
        except BaseException:  # noqa: BLE001 - whatever it is, the parent has to know
            (place / "stacks").write_text(traceback.format_exc())
        finally:
            os._exit(status)
    _, waited = os.waitpid(child, 0)
    with suppress(ProcessLookupError):  # workers that it left
        os.killpg(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(waited)
    if status == 0:
        return [Verdict(*verdict) for verdict in json.loads((place / "verdicts").read_text())]
    outcome = "hang" if status == 1 else "crash"
    note = f"case {seed}, status {status}: {(place / 'stacks').read_text()}"
    return [Verdict(kind, outcome, note) for kind in case.kinds]


def print_table(verdicts: Sequence[Verdict]) -> None:
    table: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        table.setdefault(verdict.kind, Counter())[verdict.outcome] += 1
    width = max(map(len, table))
    print(f"{'':{width}}  faults" + "".join(f"{outcome:>14}" for outcome in GOOD + BAD))
    total = sum(table.values(), Counter())
    for kind, outcomes in [*sorted(table.items()), ("all", total)]:
        counts = "".join(f"{outcomes[outcome] or '':>14}" for outcome in GOOD + BAD)
        print(f"{kind:{width}}  {outcomes.total():6}{counts}")


# ---- the rival


def print_rival(truth: Truth, seed: int, rounds: int = 20) -> None:
    """What webdataset makes of the same shards: one at a time, with two handlers of errors."""
    import webdataset

    random_ = random.Random(seed)
    print("\nwebdataset's own reader, samples of damaged shards: lost / changed, without an error")
    print(f"{'':26}  samples       by default       warn_and_continue")
    handlers = (webdataset.reraise_exception, webdataset.warn_and_continue)
    total: Counter[str] = Counter()
    for kind, spoil in ONE_SHARD.items():
        counts: Counter[str] = Counter()
        for file in random_.choices(truth.shards(), k=rounds):
            if (content := spoil(truth.files[file], random_)) is not None:
                for handler in handlers:
                    counts += read_by_rival(truth, file, content, handler)
        total += counts
        if counts:
            print_rival_row(kind, counts)
    print_rival_row("all", total)
    print("damaged audio that libsndfile decodes to other samples without an error")
    for kind, damage in MEMBERS["audio"].items():
        heard = [heard_by_rival(truth, damage, random_) for _ in range(10 * rounds)]
        print(f"{kind:32}{sum(heard):4} of {len(heard)}")


def print_rival_row(kind: str, counts: Counter[str]) -> None:
    samples = counts["samples"] // 2
    handlers = ("reraise_exception", "warn_and_continue")
    shares = [[counts[f"{what} {h}"] / samples for what in ("lost", "changed")] for h in handlers]
    cells = "".join(f"{lost:>11.1%} /{changed:>6.1%}" for lost, changed in shares)
    print(f"{kind:26}  {samples:7}{cells}")


def read_by_rival(
    truth: Truth, file: str, content: bytes, handler: Callable[[Exception], bool]
) -> Counter[str]:
    """Samples of a shard that did not come as they were, and of which nobody was told."""
    import webdataset

    clips = [clip for clip in truth.clips["train"] if clip.audio.file == file]
    wanted = [clip.audio.of(truth.files[file]) for clip in clips]
    came = []
    counts = Counter({"samples": len(wanted)})
    with tempfile.NamedTemporaryFile(suffix=".tar") as shard, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shard.write(content)
        shard.flush()
        data = webdataset.WebDataset(
            shard.name, shardshuffle=False, empty_check=False, handler=handler
        )
        try:
            for sample in data:
                came.append(sample.get("flac"))
        except Exception:  # noqa: BLE001 - it has no errors of its own
            return counts
    whole = sum(audio in came for audio in wanted)
    changed = min(sum(audio not in wanted for audio in came), len(wanted) - whole)
    counts[f"changed {handler.__name__}"] = changed
    counts[f"lost {handler.__name__}"] = len(wanted) - whole - changed
    return counts


def heard_by_rival(truth: Truth, damage: Spoil, random_: random.Random) -> bool:
    """Whether a damaged clip decodes to other samples without an error."""
    clip, *others = random_.sample(truth.clips["train"], 5)
    old = clip.audio.of(truth.files[clip.audio.file])
    pool = [other.audio.of(truth.files[other.audio.file]) for other in others]
    try:
        samples, _ = soundfile.read(
            io.BytesIO(damage(old, Draw(random_, pool, clip.samples))), dtype="float32"
        )
    except (soundfile.LibsndfileError, MemoryError):  # a head may promise any length
        return False
    return not np.array_equal(samples, clip.samples)


if __name__ == "__main__":
    torch.set_num_threads(1)  # forks
    sys.exit(main())
