"""What the audio member of a clip may be: a FLAC file, or a WAV file of 16-bit PCM.

PCM is 1.6 times as large as FLAC, and a crop of it is a slice of bytes that nobody has to decode.
"""

import struct
from typing import Literal

AudioFormat = Literal["flac", "pcm16"]

EXTENSIONS: dict[AudioFormat, str] = {"flac": "flac", "pcm16": "wav"}
"""Of the members' names, after the dot."""

PCM16_HEADER = 44
"""Bytes of a WAV file before its samples, where nothing else is in it."""


def pcm16_header(num_samples: int, sample_rate: int) -> bytes:
    """The header of a mono WAV file of 16-bit samples, which all follow it."""
    size = 2 * num_samples
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", PCM16_HEADER - 8 + size, b"WAVE"),
        *(b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16),
        *(b"data", size),
    )
