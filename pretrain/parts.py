"""The parts of an update, and which call belongs to which: what profiles and counts are told by.

Nothing here runs in training. Whoever looks at a step (:mod:`etude.pretrain.profiling`) has its own
context entered around each part's calls for as long as it looks; afterwards everything is as it
was, so that a step that nobody looks at pays nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import Any

from torch import nn

from etude.pretrain.masked_prediction import MaskedPrediction

FRONT_END, POSITIONS, TRANSFORMER = "front end", "positions", "transformer"
HEADS, TARGETS, OPTIMIZER, DATA, OTHER = "heads", "targets", "optimizer", "data", "other"

PARTS = (FRONT_END, POSITIONS, TRANSFORMER, HEADS, TARGETS, OPTIMIZER, DATA, OTHER)
"""In the order in which they are reported. A call inside another belongs to the inner one's part:
``positions`` are not ``transformer``, and a teacher's layers are ``targets``."""

Enter = Callable[[str], AbstractContextManager[object]]
"""Makes the context of a part's call."""


@contextmanager
def watched(objective: MaskedPrediction, enter: Enter) -> Iterator[None]:
    """Enters ``enter(part)`` around every call of a part of ``objective`` that is made inside."""
    encoder = objective.encoder
    calls: list[tuple[Any, str, str]] = [
        (encoder.frontend, _call_of(encoder.frontend), FRONT_END),
        (encoder, "context", TRANSFORMER),
        (objective, "after_step", TARGETS),
    ]
    if encoder.positions is not None:
        # And the stack's, where padding is masked between them.
        stacked = getattr(encoder.positions, "layers", ())
        calls += [(each, _call_of(each), POSITIONS) for each in (encoder.positions, *stacked)]
    for target in objective.targets.values():
        calls += [(target, "compute", TARGETS), (target, "loss", HEADS)]
    if objective.decoder is not None:
        calls.append((objective.decoder, _call_of(objective.decoder), HEADS))
    with ExitStack() as stack:
        for owner, name, part in calls:
            stack.enter_context(watched_call(owner, name, part, enter))
        yield


@contextmanager
def watched_call(owner: Any, name: str, part: str, enter: Enter) -> Iterator[None]:
    """The same for one method: while inside, ``owner`` has one of its own before its class's."""
    method = getattr(owner, name)
    own = vars(owner).get(name)

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with enter(part):
            return method(*args, **kwargs)

    setattr(owner, name, call)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _call_of(module: nn.Module) -> str:
    """What a call of a module goes through; once it is compiled, that is no longer ``forward``.

    A compiler that met another ``forward`` would compile it, and leave out the context.
    """
    return "forward" if module._compiled_call_impl is None else "_compiled_call_impl"
