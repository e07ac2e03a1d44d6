"""Where a corpus may lie: a folder, or a URL."""

import re

from etude.data.errors import InputError

SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "hf", "https", "http", "file")
"""Stores that are read; for some, fsspec asks for a package of their own."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://.*", re.DOTALL)


def is_url(place: str) -> bool:
    """Whether a place is a URL and no path.

    :raises InputError: if it is something else that could be opened: a command, a chain of stores,
        an unknown store.
    """
    found = _URL.fullmatch(place)
    if place.startswith("pipe:") or "::" in place or (found and found[1] not in SCHEMES):
        raise InputError(
            f"a corpus is a folder, or a URL of {', '.join(SCHEMES)} (no command is run, and "
            f"nothing else is opened), but this is {place}."
        )
    return found is not None
