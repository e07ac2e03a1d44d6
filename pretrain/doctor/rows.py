"""What a check found: a mark, a sentence, and what to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Mark = Literal["ok", "not checked", "warning", "failed"]

ENVIRONMENT, DATA, NUMERICS, LOST_RANK = 2, 3, 4, 76
"""The documented exit statuses of a check that failed."""

_LISTED = 8
"""Ranks that are named one by one."""


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    check: str
    mark: Mark
    found: str
    advice: str = ""
    """What to do."""
    status: int = ENVIRONMENT
    """The exit status, where this failed."""


def ok(check: str, found: str) -> Row:
    """All is as it should be."""
    return Row(check, "ok", found)


def unchecked(check: str, why: str) -> Row:
    """Nothing was looked at."""
    return Row(check, "not checked", why)


def warning(check: str, found: str, advice: str) -> Row:
    """Training would run, but worse than it could, or not for long."""
    return Row(check, "warning", found, advice)


def failed(check: str, found: str, advice: str, *, status: int = ENVIRONMENT) -> Row:
    """Training would fail."""
    return Row(check, "failed", found, advice, status)


def lines_of(row: Row) -> list[str]:
    """The row as it is printed."""
    lines = [f"{row.mark:<13}{row.check:<16}{row.found}"]
    if row.advice:
        lines.append(f"{'':<13}{'':<16}-> {row.advice}")
    return lines


def verdict(rows: Sequence[Row]) -> str:
    """The one line at the end."""
    bad, odd = (
        list(dict.fromkeys(row.check for row in rows if row.mark == mark))
        for mark in ("failed", "warning")
    )
    warned = f"warnings: {', '.join(odd)}" if odd else "no warnings"
    if bad:
        return f"verdict: not ready. Failed: {', '.join(bad)}; {warned}"
    return f"verdict: ready, {warned}"


def exit_status(rows: Sequence[Row]) -> int:
    """0 if nothing failed, else the status of what failed first."""
    return next((row.status for row in rows if row.mark == "failed"), 0)


def merged(rows: Mapping[int, Sequence[Row]], hosts: Mapping[int, str]) -> list[Row]:
    """One report from those of several ranks.

    A check that went well everywhere is told once, in the words of the first rank; anything else
    once per finding, with the ranks that found it.
    """
    report: list[Row] = []
    checks = dict.fromkeys(row.check for own in rows.values() for row in own)
    for check in checks:
        found: dict[Row, list[int]] = {}
        for rank, own in rows.items():
            for row in own:
                if row.check == check:
                    found.setdefault(row, []).append(rank)
        bad = {row: ranks for row, ranks in found.items() if row.mark != "ok"}
        everyone = len({rank for ranks in found.values() for rank in ranks})
        report += [
            row
            if len(ranks) == everyone
            else replace(row, found=f"{name_ranks(ranks, hosts)}: {row.found}")
            for row, ranks in bad.items()
        ] or [next(iter(found))]
    return report


def name_ranks(ranks: Sequence[int], hosts: Mapping[int, str]) -> str:
    """``ranks 3, 5 (node2)``."""
    listed = ", ".join(map(str, ranks[:_LISTED]))
    more = f" and {len(ranks) - _LISTED} more" if len(ranks) > _LISTED else ""
    places = list(dict.fromkeys(hosts[rank] for rank in ranks[:_LISTED] if rank in hosts))
    where = f" ({', '.join(places)})" if places else ""
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {listed}{more}{where}"
