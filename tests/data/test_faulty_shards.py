"""The campaign tests/campaigns/faulty_shards.py, in part; and what it found, each as a test."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from campaigns import faulty_shards as campaign

from etude.data.blocks import BLOCK_BYTES
from etude.data.errors import DataError
from etude.data.shards import Split, open_corpus
from etude.data.tokens import open_tokens

Truths = Sequence[campaign.Truth]


@pytest.fixture(scope="module")
def truths(tmp_path_factory: pytest.TempPathFactory) -> Truths:
    return campaign.make_truths(tmp_path_factory.mktemp("truths"), minutes=1.0)


@pytest.fixture
def copied(truths: Truths, tmp_path: Path) -> Path:
    return truths[0].copy(tmp_path / "corpus")


def judged(cases: Sequence[campaign.Case], truths: Truths, folder: Path) -> list[campaign.Verdict]:
    return [
        verdict
        for number, case in enumerate(cases)
        for verdict in campaign.in_child(case, truths, folder, f"short/{number}")
    ]


def test_every_clip_of_a_damaged_corpus_is_accounted_for(truths: Truths, tmp_path: Path) -> None:
    verdicts = judged(campaign.draw(150, seed=1, per_pass=15), truths, tmp_path)
    assert [verdict for verdict in verdicts if verdict.outcome in campaign.BAD] == []
    assert len(verdicts) == 150 and sum(verdict.epochs for verdict in verdicts) > 30
    assert {verdict.outcome for verdict in verdicts} == set(campaign.GOOD)


def test_the_campaign_itself_sees_a_reader_that_checks_nothing(
    truths: Truths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unchecked(split: Split, clip: int, part: str) -> bytes:
        row = split.members[clip]
        return split._pread(clip, int(row[f"{part}_offset"]), int(row[f"{part}_size"]), part)

    def unchecked_blocks(split: Split, clip: int) -> Callable[[int, int], bytes]:
        whole = unchecked(split, clip, "audio")
        return lambda first, last: whole[first * BLOCK_BYTES : last * BLOCK_BYTES]

    monkeypatch.setattr(Split, "_read", unchecked)
    monkeypatch.setattr(Split, "_block_reader", unchecked_blocks)
    cases = [case for case in campaign.draw(120, seed=2, per_pass=15) if len(case.kinds) > 1]
    outcomes = {
        verdict.kind: verdict.outcome
        for verdict in judged(cases, truths, tmp_path)
        if verdict.outcome in campaign.BAD
    }
    assert outcomes["audio: a whole FLAC of other samples"] == "used wrongly"
    assert outcomes["json: another number"] == "used wrongly"


def test_tokens_that_are_another_clip_s_are_refused(copied: Path) -> None:
    """Each row has the checksum of what it leads to: exchanged, two would exchange their tokens."""
    path = copied / "targets" / campaign.NAME / "members.npy"
    rows = np.load(path)
    rows[[3, 4]] = rows[[4, 3]]
    np.save(path, rows)
    with pytest.raises(DataError, match="not the one that was made with members.npy"):
        open_tokens(open_corpus(copied), campaign.NAME)


def test_a_number_of_a_token_index_that_was_changed_is_noticed(copied: Path) -> None:
    path = copied / "targets" / campaign.NAME / "index.json"
    path.write_text(path.read_text().replace('"codebook_size": 1024', '"codebook_size": 1025'))
    with pytest.raises(DataError, match="not the one that was made with members.npy"):
        open_tokens(open_corpus(copied), campaign.NAME)


@pytest.mark.parametrize("head", [b"{'descr': [[(", b"{'descr': ,}", b" \n  1\n 2"])
def test_an_array_whose_head_is_no_python_is_a_data_error(copied: Path, head: bytes) -> None:
    """numpy reads it by Python's own tokenizer, which has errors of its own."""
    for name in ("members.npy", f"targets/{campaign.NAME}/members.npy"):
        path = copied / name
        whole = path.read_bytes()
        path.write_bytes(whole[:10] + head + whole[10 + len(head) :])
        with pytest.raises(DataError, match=r"members\.npy: cannot be read"):
            open_tokens(open_corpus(copied), campaign.NAME)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("a shard at a URL, for ever: stall", "found"),
        ("a shard at a URL, for ever: no answer", "found"),
        ("a shard at a URL, at times: stall", "no matter"),
        ("a shard at a URL, for ever: slow", "no matter"),
    ],
)
def test_a_store_that_stalls_is_not_waited_for_and_a_slow_one_is(
    truths: Truths, tmp_path: Path, kind: str, outcome: str
) -> None:
    """By default a file has five minutes in all: too long for the one, too short for the other."""
    case = campaign.Case((kind,), partial(campaign.remote_fault, kind))
    (verdict,) = judged([case], truths, tmp_path)
    assert (verdict.outcome, verdict.note) == (outcome, "")
