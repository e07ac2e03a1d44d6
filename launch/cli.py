"""What every command shares: one readable paragraph for an error, and the documented exit status.

An exception that is meant for the user carries ``exit_status`` (``etude.data.errors``,
``etude.pretrain.errors``). Anything else is a bug of ours and keeps its traceback.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from etude.data.interrupts import forget_interrupts, interrupt, raise_lost_interrupt

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What asks a command to stop: Ctrl-C, a launcher or scheduler, Slurm's warning."""

_INTERRUPTED = "interrupted; run the same command again to continue."
_PATIENCE_SECONDS = 10.0
"""How long a failed rank waits for local rank 0 to fail too."""


def print_error(message: str) -> None:
    """Prints ``error: …`` on stderr, once per node: under a launcher only local rank 0 speaks."""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        print(f"error: {message}", file=sys.stderr, flush=True)


def end_on(*signals: signal.Signals) -> None:
    """Makes these signals end the command at once, with a word, and status 75.

    For the time of imports, in which a KeyboardInterrupt may vanish or turn into another error:
    torch, for one, goes on without numpy whatever is raised while it imports it.
    """
    for number in signals:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def interrupt_on(*signals: signal.Signals) -> None:
    """Makes these signals end the command as Ctrl-C does: with a word, and status 75."""
    for number in signals:
        signal.signal(number, interrupt)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command's ``main`` and ends the process with its documented exit status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        interrupt_on(signal.SIGINT)
    try:
        status: int | None = _interruptible(main)
    except KeyboardInterrupt:
        # A second one would kill an interpreter that is ending, and the status would be its own.
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)
        forget_interrupts()
        print_error(_INTERRUPTED)
        status = 75
    except Exception as error:  # noqa: BLE001 - re-raised unless it is addressed to the user
        status = getattr(error, "exit_status", None)
        if status is None:
            raise
        print_error(str(error))
        if status != 75:
            _wait_for_local_rank_0()
    sys.exit(status)


def _interruptible(main: Callable[[], int | None]) -> int:
    """Whatever came of ``main``, a command that was interrupted does not end as if it were not."""
    try:
        return main() or 0
    finally:
        raise_lost_interrupt()  # dropped at the last moment, or turned into another error


def _wait_for_local_rank_0() -> None:
    # A launcher ends all ranks as soon as one has failed. If that was another than local rank 0,
    # which may only just be coming to the same error, nobody would have told the user.
    if int(os.environ.get("LOCAL_RANK", "0")) != 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_PATIENCE_SECONDS)


def _end(number: int, frame: FrameType | None) -> None:
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        os.write(2, f"error: {_INTERRUPTED}\n".encode())  # stderr itself may be in use
    os._exit(75)
