"""The linear head beside a plain scikit-learn pipeline on the same features and the same split."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from etude.models.frames import FrameGrid
from etude.probes import linear
from etude.probes.convex import fit_convex
from etude.probes.corpus import DemoTracks
from etude.probes.features import extract
from etude.probes.linear import REGULARISATION
from etude.probes.problem import Problem, make_problem
from etude.probes.spectra import ChromaModel, LogMelModel, MfccModel
from etude.probes.tasks import build_task

GRID = FrameGrid(16_000, (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))

# scikit-learn's, of many pitches in few notes.
pytestmark = pytest.mark.filterwarnings("ignore:The number of unique classes")

Rows = tuple[npt.NDArray[np.int64], ...]
Asked = Literal["pitch", "chord", "instrument", "style"]


def reference_accuracy(
    features_ND: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], rows: Rows
) -> float:
    """StandardScaler and LogisticRegression, C by validation: nothing of ours but the split."""
    train, valid, test = rows
    fold = np.concatenate([np.full(len(train), -1), np.zeros(len(valid), dtype=int)])
    both = np.concatenate([train, valid])
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        {"logisticregression__C": list(REGULARISATION)},
        cv=PredefinedSplit(fold),
        refit=False,
    ).fit(features_ND[both], labels[both])
    chosen = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=search.best_params_["logisticregression__C"], max_iter=2000),
    ).fit(features_ND[train], labels[train])
    return float(chosen.score(features_ND[test], labels[test]))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["pitch", "chord", "instrument", "style"])
def test_the_linear_head_scores_what_scikit_learns_own_pipeline_scores(
    name: Asked, seed: int, solos: DemoTracks, mixes: DemoTracks
) -> None:
    source = solos if name in ("pitch", "instrument") else mixes
    task = build_task(name, source.labels, seconds=5.0, seed=seed)
    model = {0: LogMelModel(GRID), 1: ChromaModel(GRID), 2: MfccModel(GRID)}[seed]
    (features_LND,) = extract(model, [task.feature_rows], {source.name: source})
    check(make_problem(task, features_LND))


@pytest.mark.parametrize("seed", range(4))
def test_it_does_so_on_a_thousand_test_examples(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=1800)
    centres = rng.standard_normal((10, 32))
    scales = rng.uniform(0.1, 50.0, size=32)
    features_ND = (0.35 * centres[labels] + rng.standard_normal((1800, 32))) * scales + 3.0
    rows = (np.arange(0, 500), np.arange(500, 800), np.arange(800, 1800))

    def score(outputs: npt.NDArray[np.float32]) -> float:
        return float((outputs.argmax(axis=1) == labels[rows[1]]).mean())

    features_LND = features_ND.astype(np.float32)[None]
    check(Problem(features_LND, labels, "categorical", 10, *rows, valid_score=score))


def check(problem: Problem) -> None:
    features_LND, labels = problem.features_LND, problem.truth
    rows = (problem.train, problem.valid, problem.test)
    wanted = reference_accuracy(features_LND[0], labels, rows)
    (ours,) = linear.fit_layers(problem)
    by_torch = fit_convex(problem, features_LND, REGULARISATION, linear.MAX_ITERATIONS)
    # One answer more or less is more than 1 % where the test is small.
    tolerance = max(0.01, 1.01 / len(problem.test))
    for fit in (ours, by_torch):
        accuracy = (fit.outputs_SNC[0].argmax(axis=1) == labels[problem.test]).mean()
        assert accuracy == pytest.approx(wanted, abs=tolerance)
