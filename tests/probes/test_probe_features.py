import numpy as np
import pytest
import torch
from torch import Tensor

from etude.models.frames import FrameGrid
from etude.probes.corpus import Corpus
from etude.probes.features import extract, pool, span_frames
from etude.probes.frozen import LogMelModel
from etude.probes.linear import SplitRows, probe_layers
from etude.probes.tasks import build_task

GRID = FrameGrid(16_000, (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
NUM_FRAMES = GRID.num_frames(80_000)


def tone_burst(start: float, end: float) -> Tensor:
    """Five seconds of silence but for an A4 from ``start`` to ``end``."""
    time = torch.arange(80_000) / 16_000
    return 0.5 * torch.sin(2 * torch.pi * 440 * time) * ((time >= start) & (time < end))


def test_a_span_holds_the_frames_whose_centres_lie_in_it() -> None:
    times = np.array(GRID.frame_times(NUM_FRAMES))
    for span in ((0.0, 5.0), (1.0, 1.25), (0.0, 0.1), (4.8, 5.0), (2.3456, 3.21)):
        first, end = span_frames(GRID, NUM_FRAMES, span)
        inside = np.flatnonzero((times >= span[0]) & (times < span[1]))
        assert (first, end) == (inside[0], inside[-1] + 1)


@pytest.mark.parametrize("span", [(0.0, 0.001), (2.0005, 2.001), (4.999, 5.0)])
def test_a_span_between_two_frames_gets_the_nearest(span: tuple[float, float]) -> None:
    first, end = span_frames(GRID, NUM_FRAMES, span)
    times = np.array(GRID.frame_times(NUM_FRAMES))
    assert end == first + 1
    assert first == np.abs(times - sum(span) / 2).argmin()


def test_pooling_over_a_burst_hears_the_burst_and_over_silence_silence() -> None:
    model = LogMelModel(GRID)
    layers = [layer[0] for layer in model.layers(tone_burst(2.0, 2.5)[None])]
    # Half a window (64 ms) around each edge belongs to both.
    spans = [(2.07, 2.43), (1.0, 1.93), (2.57, 4.0), (2.0, 2.5), None]
    burst, before, after, edges, whole = pool(layers, model.grid, spans)[0].amax(dim=-1)
    floor = float(np.log(1e-5))
    assert burst > 0
    assert before == pytest.approx(floor) and after == pytest.approx(floor)
    assert before < whole < edges < burst


def test_pooling_is_the_mean_over_the_frames_of_each_layer() -> None:
    layers = [torch.randn(NUM_FRAMES, 4), torch.randn(NUM_FRAMES, 4)]
    span = (1.0, 2.0)
    first, end = span_frames(GRID, NUM_FRAMES, span)
    pooled = pool(layers, GRID, [None, span])
    for number, layer in enumerate(layers):
        torch.testing.assert_close(pooled[number, 0], layer.mean(dim=0))
        torch.testing.assert_close(pooled[number, 1], layer[first:end].mean(dim=0))


def test_log_mel_tells_pitches_far_above_chance(solos: Corpus) -> None:
    task = build_task("pitch", solos.labels, seconds=5.0, seed=0)
    features = extract(LogMelModel(GRID), [task], {"solo": solos})["pitch"]
    assert features.shape == (1, len(task.examples), 128)
    rows = SplitRows(task.rows("train"), task.rows("valid"), task.rows("test"))
    assert probe_layers(features, task.labels, rows).chosen.test_accuracy > 0.5


def test_tasks_encoded_together_get_what_they_get_alone(solos: Corpus) -> None:
    model = LogMelModel(GRID)
    tasks = [
        build_task(name, solos.labels, seconds=5.0, seed=0) for name in ("instrument", "pitch")
    ]
    together = extract(model, tasks, {"solo": solos})
    for task in tasks:
        alone = extract(model, [task], {"solo": solos})[task.name]
        np.testing.assert_allclose(together[task.name], alone, rtol=1e-5, atol=1e-5)
        assert not np.isnan(alone).any()
