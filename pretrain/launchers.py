"""The death of whatever launched this process is a request to stop, as SIGTERM is.

The `deepspeed` command dies of SIGTERM without telling its ranks, which would train on unseen. So
each rank watches the chain of launchers above it. No torch here: the watch begins before anything
slow is imported, while the chain is still whole.
"""

import logging
import os
import signal
import threading
import time
from pathlib import Path

_log = logging.getLogger(__name__)

_LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed", "srun")
_WATCH_SECONDS = 1.0
_VARIABLES = (b"TORCHELASTIC_RUN_ID=", b"CROSS_RANK=")
"""What torchrun and deepspeed.launcher.launch leave in the environment of all that they start."""


def follow_launchers() -> None:
    """Sends this process SIGTERM once a launcher above it is gone."""
    launchers = _launchers_above()
    if _lacks_its_command(launchers[-1][0]) if launchers else _is_orphan():
        os.kill(os.getpid(), signal.SIGTERM)
    elif launchers:
        threading.Thread(target=_watch, args=(launchers,), daemon=True).start()


def _watch(launchers: list[tuple[int, str]]) -> None:
    while True:
        for pid, started in launchers:
            if start_time(pid) != started:
                _log.warning("the launcher (process %d) is gone: stopping", pid)
                os.kill(os.getpid(), signal.SIGTERM)
                return
        time.sleep(_WATCH_SECONDS)


def _is_orphan() -> bool:
    """Whether a launcher began this process and was gone before it could be looked for.

    Who then stands in its place has neither its name nor, as a script between would, its variables.
    """
    command = _command_line(os.getppid())
    try:
        variables = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:  # another user's: nothing that our launcher began
        variables = b""
    ours = any(name.decode()[:-1] in os.environ for name in _VARIABLES)
    theirs = any(word.startswith(_VARIABLES) for word in variables.split(b"\0"))
    return ours and not theirs and not any(name in command for name in _LAUNCHERS)


def _lacks_its_command(topmost: int) -> bool:
    """Whether the topmost launcher is one that a `deepspeed` command began which is gone.

    On one node the command begins ``deepspeed.launcher.launch`` itself, always with the same
    options; on several, ssh does, and names the node.
    """
    words = _command_line(topmost).split("\0")
    names = {word.partition("=")[0] for word in words}
    begun_by_command = "deepspeed.launcher.launch" in words and "--enable_each_rank_log" in names
    return begun_by_command and "--node_rank" not in names


def _launchers_above() -> list[tuple[int, str]]:
    """Launcher processes among our ancestors, as (pid, start time): a pid alone can be reused."""
    found = []
    pid = os.getppid()
    while pid > 1:
        command = _command_line(pid)
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        if not any(name in command for name in _LAUNCHERS):
            break
        started = start_time(pid)
        if started is not None:
            found.append((pid, started))
        pid = parent
    return found


def _command_line(pid: int) -> str:
    """A process's words, each ended by a zero byte; none if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def start_time(pid: int) -> str | None:
    """When a process of this machine began, as the kernel has it; ``None`` if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # A zombie is gone as well: its parent merely has not asked yet.
    return None if stat[0] == "Z" else stat[19]
