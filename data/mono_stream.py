"""A user's file as mono samples at one rate, in blocks: what a model hears that is not trained.

    open by content -> blocks -> finite? -> mono -> resampled -> as long as was promised?

Reads what ``data/prepare_track.py`` reads and refuses what cannot be heard as it was meant, for the
same reasons; but a quiet file is a file, and nothing is rounded to 16 bit.
"""

from collections.abc import Iterator

import numpy as np
import soxr

from etude.data.audio import AudioFile, Samples, Undecodable, open_audio, to_mono
from etude.data.containers.headers import read_promise, recognised
from etude.data.prepare_track import Unusable
from etude.data.sources import Source


def mono_blocks(source: Source, sample_rate: int) -> Iterator[Samples]:
    """Blocks (T,) float32 that are the whole file, resampled by soxr VHQ where its rate differs.

    :param sample_rate: of the blocks, in samples per second.
    :raises Unusable: with the reason; some are known only at the end of the file.
    """
    try:
        with source.path.open("rb") as file:
            if source.size == 0:
                raise Unusable("empty", "0 bytes")
            head = file.read(12)
            file.seek(0)
            promise = read_promise(file, source.size)
            if promise.broken:
                raise Unusable(promise.broken.reason, promise.broken.detail)
            try:
                audio = open_audio(file, source.path, promise)
            except Undecodable as error:
                audible = not error.foreign and (recognised(head) or error.damaged)
                raise Unusable("corrupt" if audible else "not_audio", str(error)) from error
            try:
                yield from _resampled(audio, sample_rate)
            except Undecodable as error:
                # A decoder that starves at the end of the file was given a cut file.
                if file.tell() >= source.size and not error.damaged:
                    raise Unusable("truncated", f"{error} at the end of the file") from error
                raise Unusable("corrupt", str(error)) from error
    except OSError as error:
        raise Unusable("unreadable", error.strerror or str(error)) from error
    except ModuleNotFoundError as error:
        raise Unusable("unreadable", str(error)) from error


def _resampled(audio: AudioFile, sample_rate: int) -> Iterator[Samples]:
    if audio.sample_rate == sample_rate:
        yield from _mono(audio)
        return
    stream = soxr.ResampleStream(audio.sample_rate, sample_rate, 1, dtype="float32", quality="VHQ")
    for mono in _mono(audio):
        yield stream.resample_chunk(mono)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _mono(audio: AudioFile) -> Iterator[Samples]:
    frames = 0
    for block in audio.blocks:
        if not np.isfinite(block).all():
            raise Unusable("nonfinite", f"NaN or infinity after frame {frames}")
        frames += len(block)
        yield to_mono(block)
    if frames == 0:
        raise Unusable("empty", "no audio inside")
    declared = audio.declared_frames
    if declared is None:
        return
    if frames < declared - audio.slack_frames:
        text = f"{frames} of the {declared} frames that the header promises"
        raise Unusable("corrupt", text)
