import mir_eval
import numpy as np
import numpy.typing as npt
import pytest

from etude.data.demo.harmony import ALL_KEYS
from etude.probes.beats import beat_targets, pick_beats, regular_pulse
from etude.probes.metrics import METRICS, evaluate, evidence
from etude.probes.results import TaskResult
from etude.probes.splits import Split
from etude.probes.task_types import WHOLE_CLIP, AnswerKind, Clip, Example, ProbeTask

GRID = tuple((step * 0.05, step * 0.05 + 0.05) for step in range(100))


def task(
    answer: AnswerKind,
    outputs: tuple[str, ...],
    truths: list[int] | list[tuple[float, ...]],
    metric: str,
    *,
    per_track: int = 1,
    mean_over_track: bool = False,
) -> ProbeTask:
    spans = GRID if answer == "beats" else WHOLE_CLIP
    split: Split = "test"
    examples = tuple(
        Example(Clip("x", number // per_track, float(number % per_track), 5.0), spans, truth, split)
        for number, truth in enumerate(truths)
    )
    return ProbeTask("t", answer, outputs, examples, (metric,), mean_over_track)


def one_hot(answers: list[int], outputs: int) -> npt.NDArray[np.float32]:
    return np.eye(outputs, dtype=np.float32)[answers]


@pytest.mark.parametrize(
    ("answer", "score"),
    [("C major", 1.0), ("G major", 0.5), ("F major", 0.0), ("A minor", 0.3), ("C minor", 0.2)],
)
def test_a_key_counts_as_mirex_counts_it(answer: str, score: float) -> None:
    names = tuple(key.name for key in ALL_KEYS)
    asked = task("classes", names, [names.index("C major")], "key_score")
    outputs = one_hot([names.index(answer)], 24)
    found = evaluate(METRICS["key_score"], outputs, asked, asked.rows("test"))
    # MIREX gives half for a fifth in one direction alone: mir_eval decides which.
    assert found == mir_eval.key.weighted_score("C major", answer) == pytest.approx(score)


def test_every_key_of_the_demo_has_a_name_that_mir_eval_reads() -> None:
    for key in ALL_KEYS:
        assert mir_eval.key.weighted_score(key.name, key.name) == 1.0


def test_beats_come_back_from_their_own_targets() -> None:
    times = (0.01, 0.52, 1.03, 1.49, 2.0, 4.97)
    example = Example(Clip("x", 0, 0.0, 5.0), GRID, times, "test")
    found = pick_beats(beat_targets(example), GRID)
    np.testing.assert_allclose(found, times, atol=0.026)
    asked = task("beats", ("beat",), [times], "f_measure")
    outputs = beat_targets(example)[:, None]
    assert evaluate(METRICS["f_measure"], outputs, asked, asked.rows("test")) == 1.0


def test_beats_a_tenth_of_a_second_late_are_no_beats() -> None:
    times = tuple(np.arange(0.3, 4.5, 0.5).tolist())
    late = Example(Clip("x", 0, 0.0, 5.0), GRID, tuple(t + 0.1 for t in times), "test")
    asked = task("beats", ("beat",), [times], "f_measure")
    outputs = beat_targets(late)[:, None]
    assert evaluate(METRICS["f_measure"], outputs, asked, asked.rows("test")) == 0.0


def test_a_flat_activation_holds_no_beat() -> None:
    assert len(pick_beats(np.full(100, 0.3, dtype=np.float32), GRID)) <= 1


def test_the_constant_answer_to_beats_has_the_median_period() -> None:
    times = [(0.1, 0.6, 1.1), (0.0, 0.5, 1.0), (0.0, 1.0, 2.0)]
    examples = task("beats", ("beat",), list(times), "f_measure").examples
    np.testing.assert_allclose(np.diff(regular_pulse(examples)), 0.5)


def test_chance_is_what_a_guess_scores_by_the_tasks_own_metric() -> None:
    names = tuple(key.name for key in ALL_KEYS)

    def chance(metric: str) -> float | None:
        return TaskResult(task("classes", names, list(range(24)), metric), {}).chance

    assert chance("accuracy") == pytest.approx(1 / 24)
    # Of 24 answers one is right, one a fifth off, one relative, one parallel.
    assert chance("key_score") == pytest.approx((1 + 0.5 + 0.3 + 0.2) / 24)


def test_answers_to_the_windows_of_a_track_are_averaged_before_they_are_scored() -> None:
    outputs = np.array([[3.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    metric = METRICS["accuracy"]
    single = task("classes", ("a", "b"), [0, 0, 1, 1], "accuracy", per_track=2)
    merged = task(
        "classes", ("a", "b"), [0, 0, 1, 1], "accuracy", per_track=2, mean_over_track=True
    )
    assert evaluate(metric, outputs, single, single.rows("test")) == 0.75
    assert evaluate(metric, outputs, merged, merged.rows("test")) == 1.0


def test_areas_and_explained_variance_know_the_ends_of_their_scales() -> None:
    truths = [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)]
    right = np.array(truths, dtype=np.float32)
    constant = np.tile(right.mean(axis=0), (4, 1))
    for name, answer, least in (
        ("roc_auc", "multilabel", 0.5),
        ("average_precision", "multilabel", 0.5),
        ("r2", "regression", 0.0),
    ):
        asked = task(answer, ("a", "b"), truths, name)  # type: ignore[arg-type]
        rows = asked.rows("test")
        assert evaluate(METRICS[name], right, asked, rows) == 1.0
        assert evaluate(METRICS[name], constant, asked, rows) == least


def test_the_interval_of_an_area_covers_the_truth_and_narrows_with_tracks() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for tracks in (200, 3200):
        truths = rng.integers(2, size=(tracks, 1)).astype(np.float32)
        outputs = truths + rng.standard_normal((tracks, 1)).astype(np.float32)
        asked = task("multilabel", ("a",), [tuple(row) for row in truths.tolist()], "roc_auc")
        rows = asked.rows("test")
        interval = evidence(METRICS["roc_auc"], outputs[None], asked, rows, seed=0).interval
        # Two normal distributions one deviation apart.
        assert interval.low <= 0.760 <= interval.high
        widths.append(interval.high - interval.low)
    assert widths[1] < widths[0] / 2
