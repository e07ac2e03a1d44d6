"""What a sweep would do: its runs, what differs, which are done, and the time that is left."""

from collections.abc import Iterator, Sequence

from etude.data.text import aligned
from etude.pretrain.config_file import as_values, flatten
from etude.pretrain.sweeps.question import Question
from etude.pretrain.sweeps.runs import SweepRun

_OURS = ("run.dir", "seed")


def describe_sweep(question: Question, runs: Sequence[SweepRun]) -> Iterator[str]:
    """Lines of the plan."""
    yield question.text
    yield ""
    yield f"what differs from {question.reference}"
    flat = {run.variant: dict(flatten(as_values(run.config))) for run in runs}
    reference = dict(flatten(as_values(question.config(question.reference, question.seeds[0]))))
    for variant, values in flat.items():
        if variant == question.reference:
            continue
        keys = (key for key in {**reference, **values} if key not in _OURS)
        for key in keys:
            old, new = reference.get(key, "-"), values.get(key, "-")
            if old != new:
                yield f"  {variant}: {key} = {new} (there {old})"
    yield ""
    rows = [["run", "state", "updates", "time left"]]
    seconds = [_seconds_left(run, runs) for run in runs]
    for run, left in zip(runs, seconds, strict=True):
        updates = f"{run.step} of {run.config.train.max_steps}"
        rows.append([str(run.folder), run.state, updates, _time(left)])
    yield aligned(rows)
    known = sum(left for left in seconds if left is not None)
    unknown = seconds.count(None)
    yield ""
    yield (
        f"time left: {_time(known)} of training, at the speed that runs of the same variant had"
        + (
            f"; {unknown} of {len(runs)} runs unknown, none of their variant has trained yet"
            * (unknown > 0)
        )
    )
    yield "dry run: every config was checked, nothing was trained"


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
