"""A user's file as mono samples at one rate, in blocks: what a model hears that is not trained.

Reads what ``launch/prepare.py`` reads and refuses what cannot be heard as it was meant, for the
same reasons; but a quiet file is a file, and nothing is rounded to 16 bit.
"""

from collections.abc import Iterator

import numpy as np
import soxr

from etude.data.audio import Samples, to_mono
from etude.data.reading import checked_blocks, open_checked, open_source
from etude.data.sources import Source


def mono_blocks(source: Source, sample_rate: int, *, flac_md5: bool = True) -> Iterator[Samples]:
    """Blocks (T,) float32 that are the whole file, resampled by soxr VHQ where its rate differs.

    :param sample_rate: of the blocks, in samples per second.
    :param flac_md5: whether a FLAC file's samples are compared with the MD5 that it states.
    :raises Unusable: with the reason; some are known only at the end of the file.
    """
    with open_source(source) as file:
        audio, _ = open_checked(file, source, flac_md5=flac_md5)
        mono = map(to_mono, checked_blocks(audio, file, source))
        if audio.sample_rate == sample_rate:
            yield from mono
            return
        stream = soxr.ResampleStream(
            audio.sample_rate, sample_rate, 1, dtype="float32", quality="VHQ"
        )
        for block in mono:
            yield stream.resample_chunk(block)
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True)
