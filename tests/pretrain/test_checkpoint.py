"""Checkpoints on disk: whole or absent, checked before they are believed, never executed."""

import hashlib
import json
import os
import pickle
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from training_parts import SMALL, small_encoder

from etude.data.files import file_sha256
from etude.models.encoder import Encoder
from etude.models.weights import load_encoder
from etude.pretrain.checkpoint import Checkpoints, find_damage
from etude.pretrain.config import Config
from etude.pretrain.config_file import load_config
from etude.pretrain.distributed import World
from etude.pretrain.engine import Write
from etude.pretrain.engine_ddp import DdpEngine
from etude.pretrain.errors import CheckpointError, StorageError

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    values = {
        "run": {"dir": "run"},
        "data": {"corpus": "corpus"},
        "model": SMALL,
        "objective": {"targets": {"cqt": {"kind": "cqt"}}},
        "train": {"max_steps": 100, "global_batch": 1, "precision": "fp32"},
        "optim": {"lr": 1e-3, "warmup_steps": 1},
    }
    path.write_text(yaml.safe_dump(values))
    return load_config(path)


class Trained:
    """An encoder, what drives it, and a place for its checkpoints."""

    def __init__(self, folder: Path, config: Config, *, keep: int = 9, seed: int = 0) -> None:
        self.encoder: Encoder = small_encoder(seed=seed)
        self.engine = DdpEngine(self.encoder, config, ALONE, micro_batches=1)
        self.checkpoints = Checkpoints(folder, keep=keep, world=ALONE)

    def save(self, step: int) -> Path:
        with torch.no_grad():
            self.encoder.mask_embedding.fill_(step)
        return self.checkpoints.save(
            step, engine=self.engine, encoder=self.encoder, state={"corpus": "abc"}
        )

    def newest(self) -> Path:
        found = self.checkpoints.newest_valid()
        assert found is not None
        return found[0]


@pytest.fixture
def trained(tmp_path: Path, config: Config) -> Trained:
    return Trained(tmp_path / "checkpoints", config)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_where_nothing_was_saved_there_is_no_checkpoint_and_no_error(trained: Trained) -> None:
    assert trained.checkpoints.newest_valid() is None


def test_a_checkpoint_gives_back_weights_and_state(trained: Trained, config: Config) -> None:
    path = trained.save(20)
    assert path.name == "step-00000020" and names(path.parent) == ["latest", path.name]
    assert (path.parent / "latest").read_text() == "step-00000020\n"
    assert trained.checkpoints.newest_valid() == (path, {"step": 20, "corpus": "abc"})

    other = Trained(path.parent, config, seed=1)
    other.checkpoints.load_engine(path, other.engine)
    alone = load_encoder(path)
    for name, value in trained.encoder.state_dict().items():
        assert torch.equal(other.encoder.state_dict()[name], value), name
        assert torch.equal(alone.state_dict()[name], value), name


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def empty(file: Path) -> None:
    os.truncate(file, 0)


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, empty, Path.unlink])
def test_whatever_file_is_damaged_the_one_before_is_taken(
    trained: Trained, damage: Callable[[Path], None]
) -> None:
    before, newest = trained.save(10), trained.save(20)
    files = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    assert {file.name for file in files} > {"engine.pt", "encoder.safetensors", "trainer.json"}
    for file in files:
        kept = (newest / file).read_bytes()
        damage(newest / file)
        assert str(file) in (find_damage(newest) or ""), file
        assert trained.newest() == before, file
        (newest / file).write_bytes(kept)
    assert trained.newest() == newest


def test_if_all_are_damaged_training_does_not_start_anew(trained: Trained) -> None:
    for step in (10, 20):
        flip_a_byte(trained.save(step) / "engine" / "engine.pt")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints") as caught:
        trained.checkpoints.newest_valid()
    assert caught.value.exit_status == 5


def test_a_file_that_does_not_belong_to_it_is_damage(trained: Trained) -> None:
    before, newest = trained.save(10), trained.save(20)
    (newest / "engine" / "rank-7.pt").write_bytes(b"of another run")
    assert find_damage(newest) == "engine/rank-7.pt does not belong to it"
    assert trained.newest() == before


@pytest.mark.parametrize("content", ["step-00000010", "step-00000030", "", "../elsewhere"])
def test_latest_is_not_trusted(trained: Trained, content: str) -> None:
    trained.save(10)
    newest = trained.save(20)
    (newest.parent / "latest").write_text(content)
    assert trained.newest() == newest
    (newest.parent / "latest").unlink()
    assert trained.newest() == newest


class _FullDisk(DdpEngine):
    """Writes its file, then fails as on a full disk."""

    def snapshot(self) -> Write:
        write = super().snapshot()

        def fail(folder: Path) -> None:
            write(folder)
            raise OSError(28, "No space left on device")

        return fail


def test_a_save_that_fails_publishes_nothing_and_the_next_one_replaces_it(
    trained: Trained, config: Config
) -> None:
    before = trained.save(10)
    whole = trained.engine
    trained.engine = _FullDisk(trained.encoder, config, ALONE, micro_batches=1)
    with pytest.raises(
        StorageError, match=r"No space left on device\. .*step-00000010 is the n"
    ) as e:
        trained.save(20)
    assert e.value.exit_status == 77
    assert names(before.parent) == ["latest", before.name]
    assert trained.newest() == before
    draft = before.parent / "step-00000020.tmp"
    draft.mkdir()
    (draft / "left over").write_text("of a run that was killed")

    trained.engine = whole
    published = trained.save(20)
    assert names(before.parent) == ["latest", before.name, published.name]
    assert trained.newest() == published and "left over" not in names(published)


class _SlowDisk(DdpEngine):
    """Writes its file once it is told that the disk is there."""

    def snapshot(self) -> Write:
        write = super().snapshot()
        self.there = threading.Event()

        def wait(folder: Path) -> None:
            assert self.there.wait(60)
            write(folder)

        return wait


def test_training_goes_on_while_a_checkpoint_is_written(trained: Trained, config: Config) -> None:
    engine = _SlowDisk(trained.encoder, config, ALONE, micro_batches=1)
    checkpoints = trained.checkpoints
    before = trained.save(10)
    checkpoints.begin(20, engine=engine, encoder=trained.encoder, state={"corpus": "abc"})
    assert checkpoints.advance() is None and checkpoints.newest == before
    with torch.no_grad():
        trained.encoder.mask_embedding.fill_(99)  # training goes on
    assert trained.newest() == before and names(before.parent)[-1] == "step-00000020.tmp"
    engine.there.set()
    published = checkpoints.advance(wait=True)
    assert published == checkpoints.newest == trained.newest() != before
    assert checkpoints.advance(wait=True) is None
    # What it holds is what was there when it began.
    assert load_encoder(published).mask_embedding.unique().tolist() == [10]
    trained.engine.load(published / "engine")
    assert trained.encoder.mask_embedding.unique().tolist() == [10]


def test_a_save_waits_for_the_one_before(trained: Trained, config: Config) -> None:
    engine = _SlowDisk(trained.encoder, config, ALONE, micro_batches=1)
    checkpoints = trained.checkpoints
    checkpoints.begin(10, engine=engine, encoder=trained.encoder, state={"corpus": "abc"})
    threading.Timer(0.3, engine.there.set).start()
    newest = trained.save(20)
    assert names(newest.parent) == ["latest", "step-00000010", "step-00000020"]
    assert all(find_damage(newest.parent / name) is None for name in names(newest.parent)[1:])


def test_a_save_that_fails_in_the_background_is_told_when_ranks_next_agree(
    trained: Trained, config: Config
) -> None:
    engine = _FullDisk(trained.encoder, config, ALONE, micro_batches=1)
    checkpoints = trained.checkpoints
    checkpoints.begin(10, engine=engine, encoder=trained.encoder, state={"corpus": "abc"})
    with pytest.raises(StorageError, match="No space left on device. there is no checkpoint yet"):
        checkpoints.advance(wait=True)
    assert names(checkpoints.folder) == []
    assert checkpoints.advance(wait=True) is None  # told once


def test_what_is_no_fault_of_the_disk_is_not_told_as_one(trained: Trained, config: Config) -> None:
    class Broken(DdpEngine):
        def snapshot(self) -> Write:
            return lambda folder: [][0]

    engine = Broken(trained.encoder, config, ALONE, micro_batches=1)
    with pytest.raises(IndexError):
        trained.checkpoints.save(
            10, engine=engine, encoder=trained.encoder, state={"corpus": "abc"}
        )


def test_saving_a_step_again_replaces_a_damaged_checkpoint(trained: Trained) -> None:
    path = trained.save(20)
    flip_a_byte(path / "encoder.safetensors")
    assert trained.save(20) == path and find_damage(path) is None


def test_only_the_newest_are_kept(tmp_path: Path, config: Config) -> None:
    trained = Trained(tmp_path / "checkpoints", config, keep=2)
    for step in (9, 10, 99, 100):
        newest = trained.save(step)
    assert names(newest.parent) == ["latest", "step-00000099", "step-00000100"]
    assert trained.newest() == newest


class _Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._folder),)


def _plain_pickle(payload: object, file: Path) -> None:
    file.write_bytes(pickle.dumps(payload, protocol=2))


@pytest.mark.parametrize("write", [torch.save, _plain_pickle])
def test_nothing_in_a_checkpoint_is_executed(
    trained: Trained, tmp_path: Path, write: Callable[[object, Path], None]
) -> None:
    path = trained.save(10)
    file = path / "engine" / "engine.pt"
    write({"module": _Payload(tmp_path / "executed"), "optimizer": {}}, file)
    # Whoever can write the file can write its hash as well.
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["engine/engine.pt"] = {
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "manifest.sha256").write_text(file_sha256(path / "manifest.json") + "\n")
    assert trained.newest() == path
    with pytest.raises(CheckpointError):
        trained.checkpoints.load_engine(path, trained.engine)
    assert not (tmp_path / "executed").exists()

    # The payload does work where a reader trusts its file.
    with suppress(RuntimeError):  # a plain pickle runs first, and is found to be none of torch's
        torch.load(file, weights_only=False)
    assert (tmp_path / "executed").is_dir()
