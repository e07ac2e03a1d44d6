"""Section ``data``: what is heard. No torch here."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from etude.data.errors import InputError
from etude.data.place import SCHEMES, is_url
from etude.pretrain.config_types import Count, Fraction, Natural, Positive, Section


def _check_place(place: str) -> str:
    try:
        is_url(place)
    except InputError as error:
        raise ValueError(
            f"must be a folder, or a URL of {', '.join(SCHEMES)}; no command is run"
        ) from error
    return place


def _check_several(corpora: tuple["CorpusConfig", ...]) -> tuple["CorpusConfig", ...]:
    places = [corpus.corpus for corpus in corpora]
    if not places or len(set(places)) < len(places):
        raise ValueError("must name at least one corpus, and each once")
    return corpora


Place = Annotated[
    str,
    Field(min_length=1),
    BeforeValidator(lambda place: str(place) if isinstance(place, Path) else place),
    AfterValidator(_check_place),
]
"""A folder or a URL."""


class CorpusConfig(Section):
    """One of several corpora."""

    corpus: Place
    """Folder made by ``launch/prepare.py``, or its URL."""

    weight: Positive = 1.0
    """How much of it is heard; in which unit, ``data.weighting`` says."""


class DataConfig(Section):
    """What is heard."""

    corpus: Annotated[
        Annotated[Place, Tag("one")]
        | Annotated[tuple[CorpusConfig, ...], AfterValidator(_check_several), Tag("several")],
        Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
    ]
    """Folder made by ``launch/prepare.py``, or its URL (``s3://``, ``https://``, ``hf://`` …); or
    several, a list of ``{corpus, weight}``."""

    weighting: Literal["hours", "probability"] = "hours"
    """Of several corpora. ``hours``: each is heard in proportion to its hours times its weight, so
    that equal weights are one large corpus; ``probability``: in proportion to its weight."""

    crops_per_clip: Count = 1
    """Passes over all clips that make an epoch; each cuts its crops from another part of the
    clips (30 s clips and 5 s crops: 6 for about all of the audio)."""

    block_shards: Natural | None = None
    """0: all clips are shuffled freely. Else shards are, and clips within blocks of so many shards,
    so that few are needed at a time. If not given, 0 for folders and 16 for corpora at a URL."""

    cache: Path = Path("~/.cache/etude")
    """Takes the shards of corpora at a URL, on each node's own disk."""

    cache_gb: Positive = 64.0
    """Room for the shards of each such corpus in ``cache``, in 10^9 bytes."""

    reader: Literal["planned", "webdataset"] = "planned"
    """``webdataset``: webdataset's own reader and shuffle, for comparison. Its order depends on the
    number of ranks and workers, a run that continues hears other crops, and what is lost of a
    damaged shard is not counted."""

    crop_seconds: Positive = 5.0
    """Length of a training crop in seconds (MERT 5, music2vec 30)."""

    min_clip_seconds: Positive | None = None
    """Shortest clip that is heard: one between this and ``crop_seconds`` is padded with silence
    that nothing is learnt from. If not given, clips shorter than a crop are left out. For front
    ends with layer norm, and targets that do not hear the padding (a teacher, stored tokens)."""

    workers: Natural = 2
    """Processes per rank that read and decode; 0 decodes in the training process."""

    max_skipped_fraction: Fraction = 0.01
    """Share of crops whose clip may turn out damaged (each is replaced) before the run stops."""

    max_valid_crops: Count = 256
    """Held-out crops per validation, one per clip, of several corpora in turn."""

    @property
    def corpora(self) -> tuple[CorpusConfig, ...]:
        """The corpora, one or several."""
        if isinstance(self.corpus, str):
            return (CorpusConfig(corpus=self.corpus),)
        return self.corpus
