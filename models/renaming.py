"""Parameter names of one model as those of another: a table of patterns."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

Row = tuple[str, str]
"""Our key pattern, the other side's."""


def rename(state: Mapping[str, Tensor], rows: tuple[Row, ...], *, side: str) -> dict[str, Tensor]:
    """Renames a state dict by a table that must have a row for every key.

    :param rows: (pattern of a key, its new name); ``N`` stands for a layer's number, ``*`` for
        ``weight`` or ``bias``, the same on both sides.
    :param side: what the state dict is of, for messages.
    :raises ValueError: for a key that no row has, or two keys with one new name.
    """
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    compiled = [(_pattern(source), target) for source, target in rows]
    for key, tensor in state.items():
        new_key = _new_key(key, compiled)
        if new_key is None:
            unknown.append(key)
        elif new_key in renamed:
            raise ValueError(f"two parameters would both be called {new_key}: {key} is the second.")
        else:
            renamed[new_key] = tensor
    if unknown:
        raise ValueError(
            f"every parameter of {side} must have a row in the key table, but these have none: "
            f"{', '.join(unknown)}."
        )
    return renamed


def _new_key(key: str, rows: Iterable[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in rows:
        if match := pattern.fullmatch(key):
            parts = match.groupdict()
            return re.sub(r"\bN\b", parts.get("N") or "", target).replace("*", parts.get("end", ""))
    return None


def _pattern(row: str) -> re.Pattern[str]:
    text = re.escape(row).replace(r"\.N\.", r"\.(?P<N>\d+)\.")
    return re.compile(text.replace(r"\*", "(?P<end>weight|bias)"))
