"""What decides the bytes of a corpus, and the range of each value."""

from dataclasses import dataclass
from typing import final

from etude.data.clip_format import EXTENSIONS, AudioFormat
from etude.data.errors import InputError


@final
@dataclass(frozen=True)
class PrepareSettings:
    """What decides the bytes of a corpus, beside its sources."""

    sample_rate: int = 24000
    """Hertz; 24 kHz is MERT's rate, music2vec and data2vec use 16 kHz."""
    clip_seconds: float = 30.0
    """Length of a clip; the last one of a track is what remains."""
    min_seconds: float = 5.0
    """Shortest clip, and shortest file that is not skipped as too_short."""
    shard_mb: float = 256.0
    """Upper bound of a shard, in 10^6 bytes."""
    valid_fraction: float = 0.1
    """Share of the audio that is held out; at least one group of tracks, 0 for none."""
    max_valid_hours: float = 10.0
    """Upper bound of what is held out: more makes validation slower, not better."""
    seed: int = 0
    """Decides which tracks are held out."""
    group_by: str = "artist"
    """Tracks that share this tag or column of ``--metadata`` are held out together; none: each
    track alone."""
    audio_format: AudioFormat = "flac"
    """``pcm16`` writes WAV instead of FLAC: 1.6 times the disk, crops without decoding."""
    flac_md5: bool = True
    """Whether the samples of a FLAC file are compared with the MD5 that it states, a fifth of what
    reading one costs; checksums of its frames are compared anyway."""


def check_settings(settings: PrepareSettings) -> None:
    """:class:`InputError` for a value out of range; ``group_by`` is checked in groups.py."""
    if not 4000 <= settings.sample_rate <= 192000:
        raise InputError(
            f"--sample-rate must be between 4000 and 192000 Hz, but is {settings.sample_rate}."
        )
    if not 0 < settings.min_seconds <= settings.clip_seconds <= 3600:
        raise InputError(
            f"--clip-seconds must be at least --min-seconds and at most 3600, and both above 0, "
            f"but they are {settings.clip_seconds:g} and {settings.min_seconds:g}."
        )
    if not settings.shard_mb > 0:
        raise InputError(f"--shard-mb must be above 0, but is {settings.shard_mb:g}.")
    if not 0 <= settings.valid_fraction < 1:
        raise InputError(
            f"--valid-fraction must be at least 0 and below 1, but is {settings.valid_fraction:g}."
        )
    if not settings.max_valid_hours > 0:
        raise InputError(
            f"--max-valid-hours must be above 0, but is {settings.max_valid_hours:g}; "
            f"for no valid split give --valid-fraction 0."
        )
    if settings.audio_format not in EXTENSIONS:
        raise InputError(
            f"--audio-format must be one of {', '.join(EXTENSIONS)}, but is "
            f"{settings.audio_format}."
        )
