import dataclasses

import pytest
from prepare_parts import SETTINGS, collection, content

from etude.data.errors import DataError
from etude.data.prepare import prepare


def quiet(message):
    pass


def test_shards_are_read_back_by_workers_to_the_same_index(tmp_path, monkeypatch):
    collection(tmp_path / "in")
    prepare([tmp_path / "in"], tmp_path / "alone", SETTINGS, workers=1, say=quiet)
    monkeypatch.setitem(prepare.__globals__, "_SHARDS_FOR_A_POOL", 1)
    prepare([tmp_path / "in"], tmp_path / "pool", SETTINGS, workers=2, say=quiet)
    assert "train-000001.tar" in content(tmp_path / "pool")
    assert content(tmp_path / "pool") == content(tmp_path / "alone")


def test_a_shard_that_the_disk_damaged_is_named_by_whichever_process_reads_it_back(
    tmp_path, monkeypatch
):
    collection(tmp_path / "in")
    out = tmp_path / "out"
    write_shard = prepare.__globals__["write_shard"]

    def damaging(plan, root, work):
        write_shard(plan, root, work)
        if plan.file == "train-000001.tar":
            (root / plan.file).write_bytes((root / plan.file).read_bytes()[:-20000])

    monkeypatch.setitem(prepare.__globals__, "write_shard", damaging)
    for least in (1, 100):
        monkeypatch.setitem(prepare.__globals__, "_SHARDS_FOR_A_POOL", least)
        with pytest.raises(DataError, match=r"train-000001\.tar"):
            prepare([tmp_path / "in"], out, SETTINGS, workers=1, say=quiet)
        assert not (out / "index.json").exists()


def test_a_shard_that_lost_whole_clips_is_found_although_it_reads_well(tmp_path, monkeypatch):
    collection(tmp_path / "in")
    write_shard = prepare.__globals__["write_shard"]

    def shortened(plan, root, work):
        write_shard(dataclasses.replace(plan, clips=plan.clips[:-1]), root, work)

    monkeypatch.setitem(prepare.__globals__, "write_shard", shortened)
    with pytest.raises(DataError, match=r"train-000000\.tar: \d+ clips, but \d+ were written"):
        prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, workers=0, say=quiet)
