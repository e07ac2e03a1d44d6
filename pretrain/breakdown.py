"""What torch's profiler recorded, as the time that each part of an update takes.

    ranges      entered around the calls of a part (:mod:`etude.pretrain.parts`): its forward
    nodes       of autograd's graph, while backward runs; a node carries the number of the operation
                that made it in forward, and so belongs to that one's part

At each moment the range or node that was entered last is what the host is at, so that parts add up
to the whole. What has no number of its own (adding up a parameter's gradient, reducing it over
ranks) belongs to the node before it. On a GPU a kernel belongs to what launched it.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch._C._autograd import DeviceType

from etude.pretrain.parts import OTHER, PARTS

PREFIX = "etude/"
UPDATE = f"{PREFIX}update"
"""Name of the range around each update, which a range of any part has before its own name."""

_NODE = "autograd::engine::evaluate_function: "


@dataclass
class Spent:
    """Seconds of one part in all recorded updates."""

    forward: float = 0.0
    backward: float = 0.0
    device_forward: float = 0.0
    """Of a GPU's kernels."""
    device_backward: float = 0.0


@dataclass
class Breakdown:
    """Seconds of all recorded updates, by part."""

    updates: int = 0
    seconds: float = 0.0
    """On the host, first to last moment of each update."""
    parts: dict[str, Spent] = field(default_factory=lambda: {part: Spent() for part in PARTS})
    nodes: dict[str, set[str]] = field(default_factory=dict)
    """Names of autograd's nodes by part."""

    @property
    def device_seconds(self) -> float:
        """Of all kernels; 0 where there is no GPU."""
        return sum(s.device_forward + s.device_backward for s in self.parts.values())

    def share(self, part: str) -> float:
        """Of the host's time, or of a GPU's busy time where there is one."""
        spent = self.parts[part]
        if self.device_seconds:
            return (spent.device_forward + spent.device_backward) / self.device_seconds
        return (spent.forward + spent.backward) / self.seconds

    def as_json(self) -> bytes:
        """The same for programs."""
        content = {
            "updates": self.updates,
            "seconds": self.seconds,
            "device_seconds": self.device_seconds,
            "parts": {
                part: {**vars(spent), "share": self.share(part)}
                for part, spent in self.parts.items()
            },
        }
        return json.dumps(content, indent=2).encode() + b"\n"

    def lines(self) -> Iterator[str]:
        """A table, in milliseconds per update."""
        kinds = {"host": ("forward", "backward")}
        if self.device_seconds:
            kinds["GPU"] = ("device_forward", "device_backward")
        yield (
            f"{'ms per update':<14}"
            + "".join(f"{f'{kind} forward':>16}{f'{kind} backward':>16}" for kind in kinds)
            + f"{'share':>9}"
        )
        columns = [name for pair in kinds.values() for name in pair]
        scale = 1e3 / self.updates
        for part, spent in self.parts.items():
            numbers = "".join(f"{scale * getattr(spent, name):>16.2f}" for name in columns)
            yield f"{part:<14}{numbers}{100 * self.share(part):>7.1f} %"
        whole = (sum(getattr(s, name) for s in self.parts.values()) for name in columns)
        yield f"{'whole':<14}" + "".join(f"{scale * value:>16.2f}" for value in whole)
        if self.device_seconds:
            idle = 1.0 - min(1.0, self.device_seconds / self.seconds)
            yield f"the GPU did nothing for {100 * idle:.1f} % of the time; shares are of the rest"


@dataclass(frozen=True)
class _Interval:
    start: float
    end: float
    part: str
    backward: bool


def break_down(events: Sequence[Any]) -> Breakdown:
    """Sorts the events of a profile (``torch.profiler.profile.events()``) into parts."""
    found = Breakdown()
    on_host = sorted(
        (event for event in events if event.device_type == DeviceType.CPU),
        key=lambda event: event.time_range.start,
    )
    owners = _Owners(on_host)
    updates, intervals = [], []
    for event in on_host:
        start, end = event.time_range.start, event.time_range.end
        if event.name == UPDATE:
            updates.append((start, end))
            intervals.append(_Interval(start, end, OTHER, backward=False))
        elif event.name.startswith(PREFIX):
            part = event.name.removeprefix(PREFIX)
            intervals.append(_Interval(start, end, part, backward=False))
        elif event.name.startswith(_NODE):
            part = owners.of_node(event)
            found.nodes.setdefault(part, set()).add(event.name.removeprefix(_NODE))
            intervals.append(_Interval(start, end, part, backward=True))
    found.updates = len(updates)
    found.seconds = sum(end - start for start, end in updates) / 1e6
    inside = [one for one in intervals if _within(one.start, updates)]
    for interval, microseconds in _innermost(inside):
        spent = found.parts[interval.part]
        if interval.backward:
            spent.backward += microseconds / 1e6
        else:
            spent.forward += microseconds / 1e6
    for event in on_host:
        seconds = sum(kernel.duration for kernel in event.kernels) / 1e6
        if seconds and _within(event.time_range.start, updates):
            part, backward = owners.of(event)
            spent = found.parts[part]
            if backward:
                spent.device_backward += seconds
            else:
                spent.device_forward += seconds
    return found


class _Owners:
    """Which part an event belongs to."""

    def __init__(self, on_host: Iterable[Any]) -> None:
        self._of_node: dict[int, str] = {}
        by_number: dict[int, str] = {}
        before: dict[int, str] = {}
        for event in on_host:
            if event.name.startswith(_NODE):
                # A number is -1 where there was no forward: gradients that are added up.
                part = by_number.get(event.sequence_nr, before.get(event.thread, OTHER))
                self._of_node[id(event)] = before[event.thread] = part
            elif event.sequence_nr >= 0:
                # The next operation that makes a node takes the number: the last one that has it.
                part, backward = self.of(event)
                if not backward:
                    by_number[event.sequence_nr] = part

    def of_node(self, event: Any) -> str:
        """Part of the forward that a node belongs to."""
        return self._of_node[id(event)]

    def of(self, event: Any) -> tuple[str, bool]:
        """Part of the innermost range or node around an event, and whether it is a node."""
        while event is not None:
            if event.name == UPDATE:
                return OTHER, False
            if event.name.startswith(PREFIX):
                return event.name.removeprefix(PREFIX), False
            if event.name.startswith(_NODE):
                return self._of_node[id(event)], True
            event = event.cpu_parent
        return OTHER, False


def _within(moment: float, spans: Sequence[tuple[float, float]]) -> bool:
    return any(start <= moment <= end for start, end in spans)


def _innermost(intervals: Sequence[_Interval]) -> Iterator[tuple[_Interval, float]]:
    """Pieces of time with the interval that was entered last."""
    ordered = sorted(intervals, key=lambda one: (one.start, -one.end))
    stack: list[_Interval] = []
    now = 0.0

    def leave(until: float) -> Iterator[tuple[_Interval, float]]:
        nonlocal now
        while stack and stack[-1].end <= until:
            inner = stack.pop()
            if inner.end > now:
                yield inner, inner.end - now
                now = inner.end
        if stack and until > now:
            yield stack[-1], until - now
        now = max(now, until)

    for one in ordered:
        yield from leave(one.start)
        stack.append(one)
    yield from leave(max((one.end for one in ordered), default=0.0))
