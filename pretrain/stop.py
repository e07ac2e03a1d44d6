"""Being asked to stop by a signal.

SIGTERM, SIGINT and SIGUSR1 (Slurm's warning) raise a flag; the trainer looks at it between
updates, all ranks agree, one checkpoint is published.
"""

import signal
from types import FrameType, TracebackType

import torch
from torch import distributed as dist

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Collects reasons to stop while it is open.

    :param device: where the ranks' agreement is computed.
    """

    def __init__(self, device: torch.device) -> None:
        self.reason: str | None = None
        self._device = device
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            # A launcher signals all ranks as soon as one of them fails: the failure is to be told.
            ignore_signals()
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def agreed(self) -> bool:
        """Whether any rank was asked to stop; every rank calls it and gets the same answer."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return self.reason is not None
        flag = torch.tensor(float(self.reason is not None), device=self._device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        # What the ranks said, not `reason`: a signal during the all-reduce has set that here alone,
        # and this rank would save while the others train on.
        asked = bool(flag)
        if asked and self.reason is None:
            self.reason = "another rank was asked to stop"
        return asked

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or f"received {signal.Signals(number).name}"


def ignore_signals() -> None:
    """For a process that is ending anyway and still has to say how."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
