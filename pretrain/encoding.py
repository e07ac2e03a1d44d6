"""A corpus' tracks -> codec tokens of its clips, in sidecar shards: the work of `launch/encode.py`.

    shard -> its tracks, each from its first clip on -> lanes of one batch, chunk by chunk
    -> codes of whole tracks -> cut per clip -> one tar with the shard's keys and order

Whole tracks are encoded, because the codec's codes depend on all that came before; a clip encoded
alone has other codes at its start. Each shard is a piece of work of its own: a rank takes every
n-th, an interrupted command goes on with those that are missing, and the result depends on neither.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from etude.data.audio import decode
from etude.data.errors import DataError, InputError
from etude.data.files import json_bytes, write_bytes
from etude.data.packing import MAX_BITS, Packing
from etude.data.shards import Corpus, Split
from etude.data.tokens import (
    Codes,
    Tokens,
    TokenSettings,
    layout_values,
    tokens_root,
    write_token_index,
    write_token_shard,
)
from etude.pretrain.codec import Codec, CodecStream

_SETTINGS_NAME = ".encode.json"


@dataclass(frozen=True)
class Track:
    """Clips of one track, in their order."""

    clips: tuple[int, ...]
    """Rows of the split, from the track's first clip to the last that is wanted."""


@dataclass(frozen=True)
class TrackPart:
    """What one step has made of one track."""

    track: Track
    codes: Codes
    """Of the whole frames; perhaps none at the track's end."""
    last: bool


def encode_corpus(
    corpus: Corpus,
    codec: Codec,
    *,
    rank: int = 0,
    ranks: int = 1,
    lanes: int = 8,
    chunk_seconds: float = 1.6,
    packed: bool = False,
    begin: Callable[[int], None] = lambda clips: None,
    advance: Callable[[int], None] = lambda clips: None,
) -> Tokens | None:
    """Encodes this rank's shards; the rank that finds all of them done writes the index.

    :param codec: on the device that is to do the work.
    :param lanes: tracks encoded side by side.
    :param chunk_seconds: of each at a time; memory grows with lanes times this.
    :param packed: codes take the bits that they need, not 16 each.
    :param begin: told how many clips there are to do.
    :param advance: told how many more are done.
    :returns: the finished tokens, or ``None`` where other ranks are still at work.
    :raises InputError: if the folder holds tokens of another codec or in another layout, or clips
        that are no whole number of frames.
    """
    name = codec.name
    settings = token_settings(codec)
    packing = settings.packing if packed else None
    check_rate(corpus, codec)
    _check_clips(corpus, codec)
    root = tokens_root(corpus, name)
    root.mkdir(parents=True, exist_ok=True)
    _claim(root, corpus, settings, packing)
    todo = [
        (shard, rows)
        for number, (shard, rows) in enumerate(corpus.shard_rows())
        if number % ranks == rank and not (root / shard.file).is_file()
    ]
    begin(sum(shard.samples for shard, _ in todo))
    chunk = chunk_frames(codec, chunk_seconds)
    with ThreadPoolExecutor(max_workers=lanes) as readers:
        for shard, rows in todo:
            split = corpus.split(shard.split)
            codes: dict[int, Codes] = {}
            tracks = tracks_of(split, rows)
            for track, of_track in _encode_tracks(split, tracks, codec, lanes, chunk, readers):
                cut = _cut(split, track, of_track, codec.hop_samples)
                wanted = {row: part for row, part in cut if row in rows}
                codes.update(wanted)
                advance(len(wanted))
            samples = ((split.key(row), codes[row]) for row in rows)
            write_token_shard(root / shard.file, name, samples, packing=packing)
    return _finish(root, corpus, name, settings, packing)


def token_settings(codec: Codec) -> TokenSettings:
    """What the index says of this codec's tokens."""
    return TokenSettings(
        codec=codec.name,
        weights_sha256=codec.weights_sha256,
        sample_rate=codec.sample_rate,
        hop_samples=codec.hop_samples,
        codebooks=codec.num_codebooks,
        codebook_size=codec.codebook_size,
    )


def chunk_frames(codec: Codec, seconds: float) -> int:
    """Frames of each lane that are encoded at a time."""
    return max(codec.mirrored_frames, round(seconds * codec.frame_rate))


def check_rate(corpus: Corpus, codec: Codec) -> None:
    """Refuses a corpus of another rate than the codec's."""
    if corpus.sample_rate != codec.sample_rate:
        raise InputError(
            f"{corpus.root} has {corpus.sample_rate} Hz, but {codec.name} hears "
            f"{codec.sample_rate} Hz. Prepare a corpus with --sample-rate {codec.sample_rate}."
        )


def _check_clips(corpus: Corpus, codec: Codec) -> None:
    """A clip that does not begin at a frame would have tokens out of step with its audio."""
    for name in dict.fromkeys(shard.split for shard in corpus.shards):
        split = corpus.split(name)
        followed = np.diff(split.members["track"]) == 0  # by another clip of its track
        broken = np.flatnonzero(followed & (split.num_samples[:-1] % codec.hop_samples != 0))
        if len(broken):
            row = int(broken[0])
            raise InputError(
                f"{split.key(row)} in {corpus.root} has {split.num_samples[row]} samples, no whole "
                f"number of frames of {codec.hop_samples}: the next clip's tokens would be out of "
                "step with its audio. Prepare the corpus with --clip-seconds that are, such as 30."
            )


def _claim(root: Path, corpus: Corpus, settings: TokenSettings, packing: Packing | None) -> None:
    """Makes the folder this codec's and this corpus', or refuses what another one began."""
    wanted = {"corpus": corpus.fingerprint, **layout_values(settings, packing)}
    path = root / _SETTINGS_NAME
    if not path.is_file():
        strangers = sorted(file.name for file in root.glob("*.tar"))
        if strangers:
            raise InputError(
                f"{root} holds tars that this command did not begin ({', '.join(strangers[:3])}). "
                "Move them away."
            )
        write_bytes(path, json_bytes(wanted))
        return
    begun = json.loads(path.read_bytes())
    different = [
        f"{key} was {begun.get(key)}, now {value}"
        for key, value in wanted.items()
        if key != "bits" and begun.get(key) != value
    ]
    if different:
        raise InputError(
            f"{root} was begun with other settings: {'; '.join(different)}. Delete the folder to "
            "encode anew."
        )
    if begun.get("bits") != wanted.get("bits"):
        was, go_on = ("plain", "without") if packing is not None else ("packed", "with")
        raise InputError(
            f"{root} was begun with {was} tokens ({begun.get('bits', MAX_BITS)} bits per code), "
            f"and one folder has one layout. Go on {go_on} --packed, or delete the folder to "
            "encode anew."
        )


def _finish(
    root: Path, corpus: Corpus, name: str, settings: TokenSettings, packing: Packing | None
) -> Tokens | None:
    """Writes the index once every shard is there; ranks that end together wait for one another."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not all((root / shard.file).is_file() for shard in corpus.shards):
            return None
        return write_token_index(corpus, name, settings, packing=packing)
    finally:
        os.close(descriptor)


def tracks_of(split: Split, rows: range) -> list[Track]:
    """The tracks of some clips, each from its first clip on, which may lie in an earlier shard."""
    numbers = split.members["track"]
    first = rows.start
    while first > 0 and numbers[first - 1] == numbers[rows.start]:
        first -= 1
    tracks: list[Track] = []
    start = first
    for row in range(first + 1, rows.stop + 1):
        if row == rows.stop or numbers[row] != numbers[start]:
            tracks.append(Track(tuple(range(start, row))))
            start = row
    return tracks


def _encode_tracks(
    split: Split,
    tracks: Sequence[Track],
    codec: Codec,
    lanes: int,
    chunk: int,
    readers: ThreadPoolExecutor,
) -> Iterator[tuple[Track, Codes]]:
    """Codes of whole tracks, as they are finished."""
    made: dict[Track, list[Codes]] = {}
    for step in encode_chunks(split, tracks, codec, lanes, chunk, readers):
        for part in step:
            made.setdefault(part.track, []).append(part.codes)
            if part.last:
                yield part.track, np.concatenate(made.pop(part.track))


def encode_chunks(
    split: Split,
    tracks: Sequence[Track],
    codec: Codec,
    lanes: int,
    chunk: int,
    readers: ThreadPoolExecutor,
) -> Iterator[list[TrackPart]]:
    """Encodes tracks side by side, ``chunk`` frames of each at a time: one step of all lanes."""
    device = codec.codebooks_KVD.device
    stream = CodecStream(codec, lanes=lanes)
    waiting = iter(tracks)
    lane_tracks: list[Track | None] = [None] * lanes
    audio: list[Iterator[npt.NDArray[np.float32]]] = [iter(())] * lanes
    samples = chunk * codec.hop_samples
    while True:
        for lane in range(lanes):
            if lane_tracks[lane] is None and (track := next(waiting, None)) is not None:
                lane_tracks[lane] = track
                audio[lane] = _chunks(split, track, samples)
                stream.restart(lane)
        if not any(lane_tracks):
            return
        read = list(readers.map(lambda source: next(source, None), audio))
        waveform = np.zeros((lanes, samples), dtype=np.float32)
        for lane, piece in enumerate(read):
            if piece is not None:
                waveform[lane, : len(piece)] = piece
        codes_BFK = stream.encode(torch.from_numpy(waveform).to(device)).cpu().numpy()
        step: list[TrackPart] = []
        for lane, piece in enumerate(read):
            of_lane = lane_tracks[lane]
            if of_lane is None or piece is None:
                continue
            codes = codes_BFK[lane, : len(piece) // codec.hop_samples].astype(np.uint16)
            step.append(TrackPart(of_lane, codes, last=len(piece) < samples))
            if len(piece) < samples:
                lane_tracks[lane] = None
        yield step


def _chunks(split: Split, track: Track, samples: int) -> Iterator[npt.NDArray[np.float32]]:
    """A track's audio in pieces of ``samples``; a shorter one, perhaps empty, is the last."""
    held = np.zeros(0, dtype=np.float32)
    for row in track.clips:
        waveform, rate = decode(split.read_audio_bytes(row))
        if rate != split.corpus.sample_rate or len(waveform) != split.num_samples[row]:
            raise DataError(
                f"{split.key(row)} in {split.corpus.root} has {len(waveform)} samples at {rate} "
                f"Hz, but the index says {split.num_samples[row]} at {split.corpus.sample_rate} "
                "Hz. Prepare the corpus again."
            )
        held = np.concatenate([held, waveform])
        while len(held) >= samples:
            yield held[:samples]
            held = held[samples:]
    yield held


def _cut(split: Split, track: Track, codes: Codes, hop_samples: int) -> Iterator[tuple[int, Codes]]:
    """The track's codes cut at its clips' borders."""
    start = 0
    for row in track.clips:
        first, count = start // hop_samples, int(split.num_samples[row]) // hop_samples
        yield row, codes[first : first + count]
        start += int(split.num_samples[row])
