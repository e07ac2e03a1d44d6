"""A signal that ends the command wherever it is, as Ctrl-C does, and is not lost on the way.

Python drops what is raised in ``__del__``, in a weakref's callback, and where C code calls back:
libsndfile reads that way, and then takes the file for one that is cut. So what was dropped is
raised again, and whoever called a decoder asks before it believes what came back.
"""

import signal
import threading
from types import FrameType
from typing import NoReturn, final
from weakref import WeakSet

_AGAIN_SECONDS = 0.1


@final
class Interrupt(KeyboardInterrupt):
    """Under way as long as anybody holds it: who unwinds, cleans up or raises something from it."""

    def __init__(self) -> None:
        super().__init__()
        _under_way.add(self)


_under_way: WeakSet[Interrupt] = WeakSet()
_asked: set[int] = set()
"""Signals that have not ended the command yet."""


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """The handler of such a signal."""
    _asked.add(number)
    # A timer, not a thread: starting one takes locks that the interrupted code may hold. Processes
    # that this one starts do not inherit it.
    signal.signal(signal.SIGALRM, _insist)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS, _AGAIN_SECONDS)
    raise Interrupt  # without a name: its traceback holds this frame, which would hold it for good


def raise_lost_interrupt() -> None:
    """Raises an interrupt that was asked for, where the code that follows must not be reached."""
    if _asked and threading.current_thread() is threading.main_thread():  # no other can lose one
        _send_again()


def forget_interrupts() -> None:
    """For who has caught one, and ends the command."""
    _asked.clear()
    signal.setitimer(signal.ITIMER_REAL, 0.0)


def _insist(number: int, frame: FrameType | None) -> None:
    # One that is under way is left alone, however long the cleaning up takes. One that was dropped,
    # by whomever, is held by nobody.
    if not _under_way:
        _send_again()


def _send_again() -> None:
    for number in sorted(_asked):
        if signal.getsignal(number) is not interrupt:
            _asked.discard(number)  # somebody else's by now, and told once
        signal.raise_signal(number)
    if not _asked:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
