"""What a sweep would do: its runs, what differs, which are done, and the time that is left."""

from collections.abc import Iterator, Sequence
from typing import Any

from etude.data.text import aligned
from etude.pretrain.config_file import as_values
from etude.pretrain.sweeps.question import Question
from etude.pretrain.sweeps.runs import SweepRun

_OURS = ("run.dir", "seed")
_ABSENT = "nothing"


def describe_sweep(question: Question, runs: Sequence[SweepRun]) -> Iterator[str]:
    """Lines of the plan."""
    yield question.text
    yield ""
    yield f"what differs from {question.reference}"
    reference = as_values(question.config(question.reference, question.seeds[0]))
    for variant in dict.fromkeys(run.variant for run in runs):
        if variant != question.reference:
            values = as_values(question.config(variant, question.seeds[0]))
            for key, old, new in _differences(reference, values):
                yield f"  {variant}: {key} = {new} (there {old})"
    yield ""
    rows = [["run", "state", "updates", "time left"]]
    seconds = [_seconds_left(run, runs) for run in runs]
    for run, left in zip(runs, seconds, strict=True):
        updates = f"{run.step} of {run.config.train.max_steps}"
        rows.append([str(run.folder), run.state, updates, _time(left)])
    yield aligned(rows)
    yield ""
    known = [left for left in seconds if left is not None]
    if known:
        yield f"training left: {_time(sum(known))}, at the speed that runs of the same variant had"
    if len(known) < len(runs):
        yield (
            f"training left in {len(runs) - len(known)} of {len(runs)} runs: unknown, as none of "
            "their variant has trained yet"
        )
    yield "dry run: every config was checked, nothing was trained"


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Keys with both values; a section that one of them lacks is one difference."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if old != new:
            yield key, _short(old), _short(new)
        return
    for name in {**old, **new}:
        path = f"{key}.{name}" if key else name
        if path not in _OURS:
            yield from _differences(old.get(name, _ABSENT), new.get(name, _ABSENT), path)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {each}" for key, each in value.items()) + "}"
    return str(value)


def _seconds_left(run: SweepRun, runs: Sequence[SweepRun]) -> float | None:
    """At its own speed, or that of another seed."""
    if run.state == "done":
        return 0.0
    same = [run, *(other for other in runs if other.variant == run.variant)]
    speed = next((found for each in same if (found := each.speed)), None)
    if speed is None:
        return None
    train = run.config.train
    return max(0, train.max_steps - run.step) * train.global_batch / speed


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes else f"{seconds:.0f} s"
