"""Readers of files under mutation: the campaign's short version."""

import random
from pathlib import Path

import pytest
from campaigns.fuzz import fuzz, make_cases

pytestmark = pytest.mark.usefixtures("process_group")


def test_every_reader_answers_or_refuses_in_its_own_words(tmp_path: Path) -> None:
    cases = make_cases(tmp_path)
    tally = fuzz(cases, 5.0, random.Random(1))
    assert tally.mistakes == []
    assert {case.name for case in cases} >= {"configuration", "shard", "manifest.json"}
    assert tally.refused.total() > 20
