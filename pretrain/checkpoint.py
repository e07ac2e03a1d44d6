"""Checkpoints that are either whole or absent.

    step-00000020.tmp/ -> every rank's files -> barrier -> manifest with sha256, fsync -> rename

A folder counts as a checkpoint only if every file of its manifest is there with the right hash;
``latest`` is a convenience for people and is never trusted. Nothing that is loaded can execute.

    step-00000020/
        encoder.json, encoder.safetensors   what export and probe need, readable alone
        engine/                             what continuing exactly needs: weights and optimizer
        trainer.json                        the update and the corpus' fingerprint
        manifest.json                       every file with its size and sha256
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etude.data.files import file_sha256
from etude.models.encoder import Encoder
from etude.models.weights import save_encoder
from etude.pretrain.distributed import World, barrier
from etude.pretrain.engine import Engine
from etude.pretrain.errors import CheckpointError

_log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_TRAINER = "trainer.json"
_ENGINE = "engine"


class Checkpoints:
    """The checkpoints of one run.

    :param folder: ``RUN/checkpoints``.
    :param keep: newest checkpoints that are kept.
    """

    def __init__(self, folder: Path, *, keep: int, world: World) -> None:
        self.folder = folder
        self._keep = keep
        self._world = world

    def save(
        self, step: int, *, engine: Engine, encoder: Encoder, state: Mapping[str, Any]
    ) -> Path:
        """Publishes a checkpoint; every rank calls it and returns when it is published."""
        final = self.folder / f"step-{step:08d}"
        draft = final.with_suffix(".tmp")
        if self._world.is_main:
            if draft.exists():
                shutil.rmtree(draft)  # of a run that was killed while saving
            (draft / _ENGINE).mkdir(parents=True)
        barrier()
        engine.save(draft / _ENGINE)
        barrier()
        if self._world.is_main:
            save_encoder(encoder, draft)
            (draft / _TRAINER).write_text(json.dumps({"step": step, **state}, indent=2))
            _write_manifest(draft)
            if final.exists():
                shutil.rmtree(final)  # the same step again, or a damaged one
            draft.rename(final)
            _sync(self.folder)
            _write_durably(self.folder / "latest", final.name + "\n")
            self._prune(final)
        barrier()
        return final

    def newest_valid(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is whole, with its state; ``None`` where there never was one.

        :raises CheckpointError: if there are checkpoints and none is whole.
        """
        candidates = sorted(self.folder.glob("step-????????"), reverse=True)
        for path in candidates:
            damage = find_damage(path)
            if damage is None:
                state: dict[str, Any] = json.loads((path / _TRAINER).read_text())
                return path, state
            _log.warning("checkpoint %s is damaged (%s); trying the one before", path, damage)
        if candidates:
            raise CheckpointError(
                f"none of the {len(candidates)} checkpoints in {self.folder} is whole. Restore "
                "one, or choose another run.dir to start anew."
            )
        return None

    def newest_until(self, step: int) -> Path | None:
        """The newest published checkpoint of update ``step`` or before."""
        found = [path for path in self.folder.glob("step-????????") if step_of(path) <= step]
        return max(found, default=None)

    def load_engine(self, path: Path, engine: Engine) -> None:
        """Restores weights and optimizer."""
        engine.load(path / _ENGINE)

    def _prune(self, newest: Path) -> None:
        others = [path for path in self.folder.glob("step-????????") if path != newest]
        for path in sorted(others, reverse=True)[self._keep - 1 :]:
            try:
                shutil.rmtree(path)
            except OSError as error:
                _log.warning("could not delete the old checkpoint %s: %s", path, error)


def step_of(path: Path) -> int:
    """The update of a checkpoint folder."""
    return int(path.name.removeprefix("step-"))


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or ``None`` if it is whole."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        files: dict[str, dict[str, Any]] = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{_MANIFEST} cannot be read: {error}"
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
        if file_sha256(file) != expected["sha256"]:
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
