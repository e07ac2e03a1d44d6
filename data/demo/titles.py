"""Names for what nobody composed: artists, albums and song titles, from small word lists."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Six albums in four folders of artists are enough to look like a music collection.
ALBUMS = (
    ("The Paper Lanterns", "Harbour Lights"),
    ("The Paper Lanterns", "Slow Weather"),
    ("Ada Quill", "Rooms with Pianos"),
    ("Ada Quill", "Letters Home"),
    ("North Window Ensemble", "Studies in Daylight"),
    ("Kite & Anchor", "Low Tide, High Wind"),
)
FIRST_WORDS = (
    *("Amber", "Borrowed", "Clockwork", "Distant", "Early", "Falling", "Gentle", "Hidden"),
    *("Idle", "June", "Kind", "Lonely", "Morning", "Narrow", "Open", "Paper", "Quiet"),
    *("Restless", "Silver", "Tangled", "Unspoken", "Velvet", "Wandering", "Young"),
)
SECOND_WORDS = (
    *("Avenue", "Bridge", "Carousel", "Dancer", "Echo", "Fields", "Garden", "Horizon"),
    *("Island", "Journey", "Kingdom", "Letter", "Meadow", "Night", "Orchard", "Promise"),
    *("Question", "River", "Season", "Train", "Umbrella", "Valley", "Waltz", "Year"),
)


class Title(NamedTuple):
    """What a track is called."""

    artist: str
    album: str
    title: str


def draw_title(rng: np.random.Generator) -> Title:
    """Artist, album and song title of one track."""
    artist, album = ALBUMS[int(rng.integers(len(ALBUMS)))]
    first = FIRST_WORDS[int(rng.integers(len(FIRST_WORDS)))]
    second = SECOND_WORDS[int(rng.integers(len(SECOND_WORDS)))]
    return Title(artist=artist, album=album, title=f"{first} {second}")
