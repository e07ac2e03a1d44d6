"""Runs a command beside training: behind it in every queue, and no longer than it lives.

    python -I guard.py PARENT CORES COMMAND...

The guard is the head of a process group that holds all the command starts, so that one signal ends
everything. Where the process PARENT is gone, however it went, the guard sends that signal itself.

A script of its own that imports nothing of ours: it starts in a moment. A ``preexec_fn`` would run
in a fork of a process full of threads, and the kernel's own signal on a parent's death would reach
the command alone and not what it has started.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_LOOK_SECONDS = 0.5


def main(parent: int, cores: int, command: Sequence[str]) -> int:
    """Runs the command; returns its exit status as a shell has it."""
    os.nice(19)
    # Whoever counts cores, such as the pool that renders, counts these.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
    # Where memory runs out, the kernel is to end the probe and not the training.
    Path("/proc/self/oom_score_adj").write_text("1000")
    child = subprocess.Popen(command)
    while True:
        try:
            status = child.wait(timeout=_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            if os.getppid() != parent:
                os.killpg(0, signal.SIGKILL)
        else:
            return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
