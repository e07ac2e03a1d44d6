import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from etude.models.frames import FrameGrid
from etude.probes.corpus import CorpusSettings, DemoTracks
from etude.probes.feature_cache import FeatureCache
from etude.probes.features import PooledFeatures
from etude.probes.spectra import LogMelModel
from etude.probes.task_types import Clip, FeatureRow

GRID = FrameGrid(16_000, (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
WHOLE = tuple(FeatureRow(Clip("solo", track, 0.0, 1.0), None) for track in range(4))
PARTS = tuple(FeatureRow(Clip("solo", track, 0.0, 1.0), (0.2, 0.6)) for track in range(4))


class Counting:
    """Log-mel that counts what it heard, under any weights' name."""

    with_deviation = False
    name = "counting"
    grid = GRID

    def __init__(self, identity: str = "weights") -> None:
        self.identity = identity
        self.clips = 0
        self._model = LogMelModel(GRID)

    def layers(self, waveform: Tensor) -> list[Tensor]:
        self.clips += len(waveform)
        return self._model.layers(waveform)


@pytest.fixture(scope="module")
def tracks(tmp_path_factory: pytest.TempPathFactory) -> DemoTracks:
    settings = CorpusSettings("solo", 4, 16_000, seconds=2.0)
    return DemoTracks(settings, cache=tmp_path_factory.mktemp("tracks"))


def open_cache(folder: Path, tracks: DemoTracks, *, limit: int = 2**30) -> FeatureCache:
    return FeatureCache(folder, {"solo": tracks}, device=torch.device("cpu"), limit_bytes=limit)


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "features").iterdir())


def test_a_second_probe_encodes_nothing(tmp_path: Path, tracks: DemoTracks) -> None:
    model = Counting()
    (first,) = open_cache(tmp_path, tracks).features(model, [WHOLE])
    cache = open_cache(tmp_path, tracks)
    (again,) = cache.features(model, [WHOLE])
    assert model.clips == 4
    np.testing.assert_array_equal(first, again)
    assert str(cache.counts) == "1 from the cache, 0 encoded"


def test_what_the_next_probe_may_ask_is_stored_ahead(tmp_path: Path, tracks: DemoTracks) -> None:
    model = Counting()
    open_cache(tmp_path, tracks).features(model, [WHOLE], also=[PARTS])
    open_cache(tmp_path, tracks).features(model, [PARTS], also=[WHOLE])
    assert model.clips == 4


def test_equal_rows_of_two_tasks_are_one_entry(tmp_path: Path, tracks: DemoTracks) -> None:
    found = open_cache(tmp_path, tracks).features(Counting(), [WHOLE, PARTS, tuple(WHOLE)])
    assert len(entries(tmp_path)) == 2
    np.testing.assert_array_equal(found[0], found[2])


def test_other_weights_other_tracks_and_other_rows_are_other_entries(
    tmp_path: Path, tracks: DemoTracks
) -> None:
    other = DemoTracks(CorpusSettings("solo", 4, 16_000, seconds=2.0, seed=1), cache=tmp_path)
    changed = Counting("other weights")
    open_cache(tmp_path, tracks).features(Counting(), [WHOLE])
    open_cache(tmp_path, tracks).features(changed, [WHOLE])
    open_cache(tmp_path, other).features(Counting(), [WHOLE])
    open_cache(tmp_path, tracks).features(Counting(), [WHOLE[:3]])
    assert changed.clips == 4
    assert len(entries(tmp_path)) == 4


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "another's", "not ours"])
def test_a_damaged_entry_is_made_anew_and_counted(
    damage: str, tmp_path: Path, tracks: DemoTracks
) -> None:
    model = Counting()
    (sound,) = open_cache(tmp_path, tracks).features(model, [WHOLE])
    (path,) = entries(tmp_path)
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-10])
    elif damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "another's":
        open_cache(tmp_path, tracks).features(model, [PARTS])
        (other,) = set(entries(tmp_path)) - {path}
        path.write_bytes(other.read_bytes())
    else:
        save_file({"x": np.zeros(3)}, path)
    cache = open_cache(tmp_path, tracks)
    (found,) = cache.features(model, [WHOLE])
    np.testing.assert_array_equal(found, sound)
    assert cache.counts.damaged == 1 and "damaged" in str(cache.counts)
    np.testing.assert_array_equal(load_file(path)["features"], sound)


def test_probes_that_store_the_same_entry_at_once_do_not_disturb_each_other(
    tmp_path: Path, tracks: DemoTracks
) -> None:
    probes = 8
    encoded = Barrier(probes)

    class Together(Counting):
        def layers(self, waveform: Tensor) -> list[Tensor]:
            encoded.wait(timeout=60)
            return super().layers(waveform)

    def probe(_: int) -> PooledFeatures:
        return open_cache(tmp_path, tracks).features(Together(), [WHOLE])[0]

    with ThreadPoolExecutor(probes) as pool:
        found = list(pool.map(probe, range(probes)))
    cache = open_cache(tmp_path, tracks)
    (stored,) = cache.features(Counting(), [WHOLE])
    assert str(cache.counts) == "1 from the cache, 0 encoded"
    for each in found:
        np.testing.assert_array_equal(each, stored)
    assert len(entries(tmp_path)) == 1


def test_what_a_killed_probe_left_goes_with_the_oldest(tmp_path: Path, tracks: DemoTracks) -> None:
    open_cache(tmp_path, tracks).features(Counting(), [WHOLE])
    size = entries(tmp_path)[0].stat().st_size
    left = tmp_path / "features" / "of-a-killed-probe.safetensors.part"
    left.write_bytes(bytes(1000))
    os.utime(left, (1.0, 1.0))
    open_cache(tmp_path, tracks, limit=2 * size + 500).features(Counting(), [PARTS])
    assert len(entries(tmp_path)) == 2
    assert not left.exists()


def test_the_oldest_entry_goes_when_the_folder_is_full(tmp_path: Path, tracks: DemoTracks) -> None:
    model = Counting()
    open_cache(tmp_path, tracks).features(model, [WHOLE])
    size = entries(tmp_path)[0].stat().st_size
    cache = open_cache(tmp_path, tracks, limit=2 * size + 100)
    cache.features(model, [PARTS])
    for path in entries(tmp_path):
        os.utime(path, (1.0, 1.0))  # long ago: clocks of files are coarse
    cache.features(model, [WHOLE])  # used again: now the younger one
    cache.features(model, [WHOLE[:3]])
    assert len(entries(tmp_path)) == 2
    model.clips = 0
    cache.features(model, [WHOLE])
    assert model.clips == 0
    cache.features(model, [PARTS])
    assert model.clips == 4
