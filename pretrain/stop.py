"""Being asked to stop by a signal.

SIGTERM, SIGINT and SIGUSR1 (Slurm's warning) raise a flag; the trainer looks at it between
updates, all ranks agree, one checkpoint is published.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

import torch
from torch import distributed as dist

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_MEETING_SECONDS = 10.0
"""How long a rank that was asked to stop still waits for others that have not come; launchers kill
after 30."""


class StopRequest:
    """Collects reasons to stop while it is open.

    :param device: where the ranks' agreement is computed.
    :param leave: ends the process if it is asked to stop while it waits for ranks that do not come:
        one that was stopped earlier in its start has nothing to agree on and is gone.
    :param is_last: whether nothing that follows is to be interrupted.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        leave: Callable[[], None] | None = None,
        is_last: bool = False,
    ) -> None:
        self.reason: str | None = None
        self._device = device
        self._leave = leave
        self._is_last = is_last
        self._met = threading.Event()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._on_signal)
        if self._leave is not None:
            self._wake, wakes = os.pipe()
            os.set_blocking(wakes, False)
            # The main thread waits for other ranks in C, where no handler of Python's runs.
            signal.set_wakeup_fd(wakes)
            threading.Thread(target=self._leave_in_time, daemon=True).start()
        return self

    def met(self) -> None:
        """All ranks are there: from here on they agree."""
        self._met.set()
        signal.set_wakeup_fd(-1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.met()
        if error is not None or self._is_last:
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

    def _leave_in_time(self) -> None:
        while os.read(self._wake, 1)[0] not in _SIGNALS:
            continue
        if not self._met.wait(_MEETING_SECONDS):
            assert self._leave is not None
            self._leave()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or f"received {signal.Signals(number).name}"


def ignore_signals() -> None:
    """For a process that is ending anyway and still has to say how."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
