"""Being asked to stop: by a signal to this rank, or by the death of whatever launched it.

SIGTERM, SIGINT and SIGUSR1 (Slurm's warning) raise a flag; the trainer looks at it between
updates, all ranks agree, one checkpoint is published. The `deepspeed` command dies of SIGTERM
without telling its ranks, so each rank also watches the chain of processes above it.
"""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType

import torch
from torch import distributed as dist

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed", "srun")
_WATCH_SECONDS = 1.0


class StopRequest:
    """Collects reasons to stop while it is open.

    :param device: where the ranks' agreement is computed.
    """

    def __init__(self, device: torch.device) -> None:
        self.reason: str | None = None
        self._device = device
        self._previous: dict[int, object] = {}
        self._closed = threading.Event()

    def __enter__(self) -> "StopRequest":
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._on_signal)
        launchers = _launchers_above()
        if launchers:
            watch = threading.Thread(target=self._watch, args=(launchers,), daemon=True)
            watch.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def agreed(self) -> bool:
        """Whether any rank was asked to stop; every rank calls it and gets the same answer."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            flag = torch.tensor(float(self.reason is not None), device=self._device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            if bool(flag) and self.reason is None:
                self.reason = "another rank was asked to stop"
        return self.reason is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or f"received {signal.Signals(number).name}"

    def _watch(self, launchers: list[tuple[int, str]]) -> None:
        while not self._closed.is_set():
            for pid, started in launchers:
                if _start_time(pid) != started and self.reason is None:
                    self.reason = f"the launcher (process {pid}) is gone"
                    return
            time.sleep(_WATCH_SECONDS)


def _launchers_above() -> list[tuple[int, str]]:
    """Launcher processes among our ancestors, as (pid, start time): a pid alone can be reused."""
    found = []
    pid = os.getppid()
    while pid > 1:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        if not any(name in command for name in _LAUNCHERS):
            break
        started = _start_time(pid)
        if started is not None:
            found.append((pid, started))
        pid = parent
    return found


def _start_time(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # A zombie is gone as well: its parent merely has not asked yet.
    return None if stat[0] == "Z" else stat[19]
