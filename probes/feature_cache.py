"""Pooled features on disk, so that a model is encoded once however often it is asked.

    CACHE/features/KEY.safetensors      KEY: what the features follow from

The key is a digest of the model's weights, of the clips and spans, of the tracks' own identity, and
of the code between them; a change of any of these is another entry, never a stale one. Entries say
in their header which key they are for and what their content hashes to. One that does not match is
made anew and counted. What was not used for longest goes when the folder is over its limit.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from etude import models
from etude.data.files import write_bytes
from etude.probes import features as features_module
from etude.probes.features import FrozenModel, PooledFeatures, extract
from etude.probes.task_types import AudioSource, FeatureRow

FOLDER_NAME = "features"

LIMIT_BYTES = 8 * 2**30
"""Of all entries together: some dozens of encoders of 95M on the default tasks."""

_NAME = "features"
_LIBRARIES = ("torch", "torchaudio", "fairseq2", "transformers")


@dataclass
class CacheCounts:
    """What a probe got from where, in lists of rows."""

    taken: int = 0
    encoded: int = 0
    damaged: int = 0
    """Entries that were there, but were not what they should have been; encoded anew."""

    def __str__(self) -> str:
        damaged = f", {self.damaged} of them for a damaged entry" if self.damaged else ""
        return f"{self.taken} from the cache, {self.encoded} encoded{damaged}"


@final
class FeatureCache:
    """Features of models, from the folder where they are in it.

    :param folder: of the cache; entries are in ``FOLDER_NAME`` below.
    :param sources: where clips come from, by name.
    :param device: where models run.
    :param limit_bytes: of all entries together.
    """

    def __init__(
        self,
        folder: Path,
        sources: Mapping[str, AudioSource],
        *,
        device: torch.device,
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        self.counts = CacheCounts()
        self._device = device.type
        self._folder = folder / FOLDER_NAME
        self._sources = sources
        self._limit_bytes = limit_bytes

    def features(
        self,
        model: FrozenModel,
        wanted: Sequence[tuple[FeatureRow, ...]],
        *,
        also: Sequence[tuple[FeatureRow, ...]] = (),
    ) -> list[PooledFeatures]:
        """Features of each list of rows.

        :param also: further lists, stored if their tracks have to be encoded anyway: what the next
            probe may ask for.
        """
        found: dict[tuple[FeatureRow, ...], PooledFeatures] = {}
        missing: list[tuple[FeatureRow, ...]] = []
        for rows in dict.fromkeys(wanted):
            taken = self._read(model, rows)
            if taken is None:
                missing.append(rows)
            else:
                found[rows] = taken
        self.counts.taken += len(found)
        self.counts.encoded += len(missing)
        if missing:
            heard = {row.clip.source for rows in missing for row in rows}
            further = [
                rows
                for rows in dict.fromkeys(also)
                if rows not in found
                and rows not in missing
                and {row.clip.source for row in rows} <= heard
                and not self._path(model, rows).exists()
            ]
            asked = [*missing, *further]
            for rows, pooled in zip(asked, extract(model, asked, self._sources), strict=True):
                found[rows] = pooled
                self._write(model, rows, pooled)
            self._shrink()
        return [found[rows] for rows in wanted]

    def _path(self, model: FrozenModel, rows: tuple[FeatureRow, ...]) -> Path:
        return self._folder / f"{self._key(model, rows)}.safetensors"

    def _key(self, model: FrozenModel, rows: tuple[FeatureRow, ...]) -> str:
        sources = {row.clip.source for row in rows}
        parts = {
            "model": model.identity,
            "rate": model.grid.sample_rate,
            "sources": {name: self._sources[name].identity for name in sorted(sources)},
            "rows": rows,
            "code": _code_version(),
            # The same sums in another order are not the same features to the last bit.
            "device": self._device,
        }
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _read(self, model: FrozenModel, rows: tuple[FeatureRow, ...]) -> PooledFeatures | None:
        path = self._path(model, rows)
        try:
            with safe_open(path, framework="numpy") as file:
                header = file.metadata() or {}
                pooled: PooledFeatures = file.get_tensor(_NAME)
            sound = (
                header.get("key") == path.stem
                and header.get("sha256") == _digest(pooled)
                and pooled.ndim == 3
                and pooled.shape[1] == len(rows)
            )
            if sound:
                os.utime(path)
                return pooled
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError, TypeError):
            pass  # counted below: a damaged file raises whatever its bytes happen to say
        self.counts.damaged += 1
        return None

    def _write(
        self, model: FrozenModel, rows: tuple[FeatureRow, ...], pooled: PooledFeatures
    ) -> None:
        path = self._path(model, rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = {"key": path.stem, "sha256": _digest(pooled), "model": model.name}
        # Under a name of its own first: another probe may be storing the same entry.
        own = path.with_name(f"{path.stem}-{secrets.token_hex(4)}.safetensors")
        write_bytes(own, save({_NAME: np.ascontiguousarray(pooled)}, metadata=header))
        own.replace(path)

    def _shrink(self) -> None:
        """Deletes what was not used for longest, until the rest is below the limit."""
        entries = []
        # With what killed probes left behind, which ends in .part.
        for path in self._folder.glob("*.safetensors*"):
            try:
                entries.append((path.stat().st_mtime, path.stat().st_size, path))
            except FileNotFoundError:  # another probe shrinks the same folder
                continue
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._limit_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size


def _digest(pooled: PooledFeatures) -> str:
    return hashlib.sha256(np.ascontiguousarray(pooled).data).hexdigest()


@cache
def _code_version() -> str:
    """Of everything between a waveform and pooled features: models, libraries, the averaging."""
    digest = hashlib.sha256(" ".join(map(version, _LIBRARIES)).encode())
    here = Path(features_module.__file__).parent
    paths = [here / name for name in ("features.py", "frozen.py", "spectra.py")]
    for folder in models.__path__:
        paths += sorted(Path(folder).rglob("*.py"))
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
