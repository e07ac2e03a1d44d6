import numpy as np
import pytest
import torch
from torch import Tensor

from etude.models.frames import FrameGrid
from etude.probes.corpus import DemoTracks
from etude.probes.features import extract, pool, span_frames
from etude.probes.heads import HeadOptions, fit_head
from etude.probes.problem import make_problem
from etude.probes.spectra import ChromaModel, LogMelModel, MfccModel
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


def test_deviations_follow_the_means() -> None:
    layer = torch.randn(NUM_FRAMES, 4)
    first, end = span_frames(GRID, NUM_FRAMES, (1.0, 2.0))
    pooled = pool([layer], GRID, [(1.0, 2.0)], with_deviation=True)[0, 0]
    torch.testing.assert_close(pooled[:4], layer[first:end].mean(dim=0))
    torch.testing.assert_close(pooled[4:], layer[first:end].std(dim=0, correction=0))


def test_chroma_hears_the_pitch_class_and_mfcc_the_change() -> None:
    tone = tone_burst(0.0, 2.5)[None]
    chroma = ChromaModel(GRID).layers(tone)[0]
    assert chroma.shape == (1, NUM_FRAMES, 12)
    assert chroma[0, 50].argmax() == 9  # A
    mfcc = MfccModel(GRID).layers(tone)[0]
    assert mfcc.shape == (1, NUM_FRAMES, 60)
    # The first difference of the first coefficient is largest where the tone ends.
    assert abs(int(mfcc[0, :, 20].abs().argmax()) - NUM_FRAMES // 2) <= 3


def test_log_mel_tells_pitches_far_above_chance(solos: DemoTracks) -> None:
    task = build_task("pitch", solos.labels, seconds=5.0, seed=0)
    (features,) = extract(LogMelModel(GRID), [task.feature_rows], {"solo": solos})
    assert features.shape == (1, len(task.examples), 128)
    problem = make_problem(task, features)
    score = fit_head("linear", problem, task, HeadOptions(), seed=0, device=torch.device("cpu"))
    assert score.chosen.test > 0.5


def test_tasks_encoded_together_get_what_they_get_alone(solos: DemoTracks) -> None:
    model = LogMelModel(GRID)
    tasks = [
        build_task(name, solos.labels, seconds=5.0, seed=0) for name in ("instrument", "pitch")
    ]
    together = extract(model, [task.feature_rows for task in tasks], {"solo": solos})
    for task, features in zip(tasks, together, strict=True):
        (alone,) = extract(model, [task.feature_rows], {"solo": solos})
        np.testing.assert_allclose(features, alone, rtol=1e-5, atol=1e-5)
        assert not np.isnan(alone).any()
