"""Checkpoints that are either whole or absent, written while training goes on.

    copies in memory -> step-00000020.tmp/: every rank's files -> all done?
    -> manifest with sha256, fsync -> rename

A folder counts as a checkpoint only if every file of its manifest is there with the right hash;
``latest`` is a convenience for people and is never trusted. Nothing that is loaded can execute.

    step-00000020/
        encoder.json, encoder.safetensors   what export and probe need, readable alone
        engine/                             what continuing exactly needs: weights and optimizer
        trainer.json                        the update, what the run knows of itself, the corpus
        manifest.json                       every file with its size and sha256
        manifest.sha256                     and that one's
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from etude.data.files import file_sha256
from etude.models.encoder import Encoder
from etude.models.weights import snapshot_encoder
from etude.pretrain.distributed import World, all_succeeded, barrier, sum_over_ranks
from etude.pretrain.engine import Engine, Write
from etude.pretrain.errors import CheckpointError, StorageError

_log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_MANIFEST_HASH = "manifest.sha256"
_TRAINER = "trainer.json"
_ENGINE = "engine"

_DISK_ERRORS = (OSError, RuntimeError, SafetensorError)
"""torch and safetensors say in their own ways what the disk said to them."""


@dataclass
class _Save:
    """A checkpoint on its way to the disk."""

    step: int
    draft: Path
    work: "futures.Future[None]"
    """This rank's part: writing its files; after that, on the main rank, publishing."""
    publishing: bool = False


class Checkpoints:
    """The checkpoints of one run.

    A save begins with copies in memory; a thread of each rank writes them while training goes on.
    Ranks agree on how far it has come where all of them call :meth:`advance`.

    :param folder: ``RUN/checkpoints``.
    :param keep: newest checkpoints that are kept.
    """

    def __init__(self, folder: Path, *, keep: int, world: World) -> None:
        self.folder = folder
        self.newest: Path | None = None
        """The newest that was published or continued from."""
        self._keep = keep
        self._world = world
        self._save: _Save | None = None
        self._writer = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")

    def save(
        self, step: int, *, engine: Engine, encoder: Encoder, state: Mapping[str, Any]
    ) -> Path:
        """Publishes a checkpoint; every rank calls it and returns when it is published.

        :raises StorageError: on every rank, if one of them could not write its part.
        """
        self.begin(step, engine=engine, encoder=encoder, state=state)
        self.advance(wait=True)
        return self._path(step)

    def begin(
        self, step: int, *, engine: Engine, encoder: Encoder, state: Mapping[str, Any]
    ) -> None:
        """Begins a save, after the one before is published; returns when copies are made.

        :raises StorageError: on every rank, if one of them could not write its part.
        """
        self.advance(wait=True)
        draft = self._path(step).with_suffix(".tmp")
        failure = None
        if self._world.is_main:
            try:
                if draft.exists():
                    shutil.rmtree(draft)  # of a run that was killed while saving
                (draft / _ENGINE).mkdir(parents=True)
            except OSError as error:
                failure = error
        if not all_succeeded(failure is None, self._world.device):
            self._give_up(draft, failure)
        parts: list[tuple[Write, Path]] = [(engine.snapshot(), draft / _ENGINE)]
        if self._world.is_main:
            parts.append((snapshot_encoder(encoder), draft))
            text = json.dumps({"step": step, **state}, indent=2)
            parts.append((lambda folder: _write_text(folder / _TRAINER, text), draft))
        self._save = _Save(step, draft, self._writer.submit(_write_all, parts))

    def advance(self, *, wait: bool = False) -> Path | None:
        """Takes a save that is under way further, if every rank has come so far.

        :param wait: until it is published.
        :returns: the checkpoint, if it has become one.
        :raises StorageError: on every rank, if one of them could not write its part.
        """
        while (save := self._save) is not None:
            if wait:
                futures.wait([save.work])
            working, failed = self._standing(save.work)
            if failed:
                self._save = None
                futures.wait([save.work])
                barrier()  # no rank writes into the draft any more
                self._give_up(save.draft, save.work.exception())
            if not working:
                if save.publishing:
                    self._save = None
                    self.newest = self._path(save.step)
                    return self.newest
                save.publishing = True
                if self._world.is_main:
                    save.work = self._writer.submit(self._publish, save.draft)
            if not wait:
                return None
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _standing(self, work: "futures.Future[None]") -> tuple[int, int]:
        """Ranks that are still working, and ranks that failed; the same answer on every rank."""
        done = work.done()
        failed = done and work.exception() is not None
        flags = torch.tensor([not done, failed], dtype=torch.float, device=self._world.device)
        working, failures = sum_over_ranks([flags])[0].tolist()
        return int(working), int(failures)

    def _publish(self, draft: Path) -> None:
        final = draft.with_suffix("")
        _write_manifest(draft)
        if final.exists():
            shutil.rmtree(final)  # the same step again, or a damaged one
        draft.rename(final)
        _sync(self.folder)
        # The checkpoint is there, whatever happens now.
        try:
            _write_durably(self.folder / "latest", final.name + "\n")
        except OSError as error:
            _log.warning("could not write %s: %s", self.folder / "latest", error)
        self._prune(final)

    def _give_up(self, draft: Path, failure: BaseException | None) -> None:
        """Ends a save that failed on this rank or, without a ``failure``, on another."""
        if failure is not None and not isinstance(failure, _DISK_ERRORS):
            raise failure
        if self._world.is_main:
            shutil.rmtree(draft, ignore_errors=True)  # room for others; it was never published
        newest = next(iter(published(self.folder)), None)
        kept = f"{newest} is the newest checkpoint" if newest else "there is no checkpoint yet"
        cause = "another rank could not write" if failure is None else str(failure)
        raise StorageError(
            f"{draft.with_suffix('')} could not be saved: {cause}. {kept}. Make room on the disk "
            f"of {self.folder} or mend it, and run the same command again."
        ) from failure

    def newest_valid(self, *, until: int | None = None) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is whole, with its state; ``None`` where there never was one.

        :param until: the last update to consider; any if not given.
        :raises CheckpointError: if there are checkpoints and none is whole.
        """
        candidates = [p for p in published(self.folder) if until is None or step_of(p) <= until]
        for path in candidates:
            damage = find_damage(path)
            if damage is None:
                try:
                    state: dict[str, Any] = json.loads((path / _TRAINER).read_text())
                    if state["step"] == step_of(path):
                        return path, state
                    damage = f"{_TRAINER} tells of step {state['step']!r}"
                except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                    damage = f"{_TRAINER} cannot be read: {error!r}"
            _log.warning("checkpoint %s is damaged (%s); trying the one before", path, damage)
        if candidates:
            raise CheckpointError(
                f"none of the {len(candidates)} checkpoints in {self.folder} is whole. Restore "
                "one, or choose another run.dir to start anew."
            )
        return None

    def newest_until(self, step: int) -> Path | None:
        """The newest published checkpoint of update ``step`` or before."""
        return next((path for path in published(self.folder) if step_of(path) <= step), None)

    def load_engine(self, path: Path, engine: Engine) -> None:
        """Restores weights and optimizer."""
        engine.load(path / _ENGINE)
        self.newest = path

    def drop_after(self, step: int) -> None:
        """Deletes checkpoints of a history that is given up; every rank calls it."""
        if self._world.is_main:
            for path in published(self.folder):
                if step_of(path) > step:
                    shutil.rmtree(path)
        barrier()

    def _prune(self, newest: Path) -> None:
        others = [path for path in published(self.folder) if path != newest]
        for path in others[self._keep - 1 :]:
            try:
                shutil.rmtree(path)
            except OSError as error:
                _log.warning("could not delete the old checkpoint %s: %s", path, error)


def published(folder: Path) -> list[Path]:
    """The checkpoints in ``RUN/checkpoints``, whole or not, the newest first."""
    return sorted(folder.glob("step-????????"), reverse=True)


def step_of(path: Path) -> int:
    """The update of a checkpoint folder."""
    return int(path.name.removeprefix("step-"))


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or ``None`` if it is whole."""
    inside = list(path.rglob("*"))
    for file in inside:
        if file.is_symlink():
            return f"{file.relative_to(path)} is a link"
    try:
        if (path / _MANIFEST_HASH).read_bytes() != _hash_line(path / _MANIFEST):
            return f"{_MANIFEST} and {_MANIFEST_HASH} do not belong together"
        content = json.loads((path / _MANIFEST).read_text())
        files = {n: (int(f["bytes"]), str(f["sha256"])) for n, f in dict(content["files"]).items()}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        return f"{_MANIFEST} cannot be read: {error}"
    known = {*files, _MANIFEST, _MANIFEST_HASH}
    found = {str(file.relative_to(path)) for file in inside if not file.is_dir()}
    if strange := sorted(found - known):
        return f"{strange[0]} does not belong to it"
    for name, (size, sha256) in files.items():
        file = path / name
        if name not in found or not file.is_file():  # nor is a file elsewhere looked at
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if file_sha256(file) != sha256:
            return f"{name} has other content than was saved"
    return None


def _write_manifest(folder: Path) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        _sync(path)
        files[str(path.relative_to(folder))] = {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
    _write_durably(folder / _MANIFEST, json.dumps({"format": 1, "files": files}, indent=1))
    _write_durably(folder / _MANIFEST_HASH, _hash_line(folder / _MANIFEST).decode())


def _write_all(parts: list[tuple[Write, Path]]) -> None:
    for write, folder in parts:
        write(folder)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)


def _hash_line(path: Path) -> bytes:
    return f"{file_sha256(path)}\n".encode()


def _write_durably(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text)
    _sync(draft)
    draft.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
