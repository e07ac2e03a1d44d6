"""What an audio file's container promises, compared with what the file holds.

    by content -> chunks.py (WAV, AIFF, MP4 ...), ogg.py, flac.py, mpeg.py (MP3, AAC)

Decoders are lenient: a cut recording passes as a shorter one, a stream with a hole as a shorter one
too, and where a header is wrong they believe it. So every container is looked through, without
decoding, before it is decoded.
"""

from pathlib import Path
from typing import BinaryIO

from etude.data.containers.chunks import (
    read_aiff,
    read_asf,
    read_au,
    read_caf,
    read_mp4,
    read_w64,
    read_wav,
    read_wavpack,
)
from etude.data.containers.flac import read_flac
from etude.data.containers.mpeg import read_adts, read_mp3
from etude.data.containers.ogg import read_ogg
from etude.data.containers.promise import Promise
from etude.data.tags import skip_id3

_EXTENSIONS = {
    "WAV": {".wav", ".wave", ".rf64"},
    "WAVEX": {".wav", ".wave", ".rf64"},
    "RF64": {".wav", ".wave", ".rf64"},
    "FLAC": {".flac", ".fla"},
    "OGG": {".ogg", ".oga", ".opus"},
    "MP3": {".mp3"},
    "M4A": {".m4a", ".mp4", ".aac"},
    "AAC": {".aac"},
    "WV": {".wv"},
    "ASF": {".wma"},
    "APE": {".ape"},
    "MPC": {".mpc"},
    "MPC8": {".mpc"},
    "AIFF": {".aif", ".aiff", ".aifc"},
    "AU": {".au", ".snd"},
    "CAF": {".caf"},
    "W64": {".w64"},
}

AUDIO_EXTENSIONS = frozenset().union(*_EXTENSIONS.values(), {".wma", ".ape", ".wv", ".mpc"})
"""A file named so is meant to be audio: if it is not, the report says so."""

_ASF = bytes.fromhex("3026b2758e66cf11")


def recognised(head: bytes) -> bool:
    """Whether the first 12 bytes of a file are those of a known audio container."""
    return (
        head[:4] in (b"fLaC", b"OggS", b"caff", b".snd", b"riff", b"wvpk", b"MAC ", b"MPCK")
        or head[:3] in (b"ID3", b"MP+")
        or (head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE")
        or (head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"))
        or head[4:8] == b"ftyp"
        or head[:8] == _ASF
    )


def usual_extension(container: str, path: Path) -> bool:
    """Whether files of this container are commonly named like this one."""
    known = _EXTENSIONS.get(container)
    return known is None or path.suffix.lower() in known


def read_promise(file: BinaryIO, size: int) -> Promise:
    """Looks through the container; leaves the file at its beginning."""
    try:
        return _read(file, size)
    finally:
        file.seek(0)


def _read(file: BinaryIO, size: int) -> Promise:
    head = file.read(12)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return read_wav(file, size)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return read_aiff(file, size)
    if head[4:8] == b"ftyp":
        return read_mp4(file, size)
    for magic, reader in (
        (b"OggS", read_ogg),
        (b".snd", read_au),
        (b"caff", read_caf),
        (b"riff", read_w64),
        (b"wvpk", read_wavpack),
        (_ASF, read_asf),
    ):
        if head.startswith(magic):
            return reader(file, size)
    for magic, demuxer in ((b"MAC ", "ape"), (b"MPCK", "mpc8"), (b"MP+", "mpc")):
        if head.startswith(magic):
            return Promise(demuxer=demuxer, complete=False)
    file.seek(skip_id3(file, 0))
    if file.read(4) == b"fLaC":
        return read_flac(file, size)
    if head[:4] in (b"RIFF", b"FORM"):
        return Promise()  # of another kind: what is inside is not looked for
    return read_adts(file, size) or read_mp3(file, size) or Promise()
