"""Hooks that can be judged alone."""

import logging
from typing import cast

import pytest

from etude.pretrain.hooks import WarnOfWaiting
from etude.pretrain.trainer import Trainer


def warnings(caplog: pytest.LogCaptureFixture, *waits: float | None) -> list[str]:
    hook = WarnOfWaiting(0.02)
    with caplog.at_level(logging.WARNING):
        for wait in waits:
            values = {"loss": 1.0} | ({} if wait is None else {"perf/data_wait": wait})
            hook.logged(cast(Trainer, None), values)
    return [record.getMessage() for record in caplog.records]


def test_waiting_for_data_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    (said,) = warnings(caplog, 0.0, 0.01, 0.35, 0.5)
    assert "35 % of the time" in said and "data.workers" in said


@pytest.mark.parametrize("waits", [(0.9, 0.01, 0.02), (0.0, None, 0.0)])
def test_a_start_and_a_little_waiting_are_not(
    caplog: pytest.LogCaptureFixture, waits: tuple[float | None, ...]
) -> None:
    assert warnings(caplog, *waits) == []
