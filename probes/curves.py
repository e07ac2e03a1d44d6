"""Areas under ROC and precision-recall curves, of many draws of the examples at once.

The values are scikit-learn's (``roc_auc_score`` and ``average_precision_score`` with how often an
example was drawn as its weight). A bootstrap wants hundreds of them of the same answers: here each
label's answers are sorted once for all draws.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Draws = npt.NDArray[np.float64]
"""How often each example was drawn, (draws, examples)."""

Floats = npt.NDArray[np.float32]

_Area = Callable[[npt.NDArray[np.float64], npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def roc_auc(truth_NC: Floats, outputs_NC: Floats, times_RN: Draws) -> npt.NDArray[np.float64]:
    """Area under the ROC curve, mean over labels, of each draw.

    :param truth_NC: 0 or 1.
    :return: (draws,); ``nan`` where no label has both truths.
    """
    return _mean_area(truth_NC, outputs_NC, times_RN, _roc_area)


def average_precision(
    truth_NC: Floats, outputs_NC: Floats, times_RN: Draws
) -> npt.NDArray[np.float64]:
    """Average precision, mean over the labels that have both truths, of each draw."""
    return _mean_area(truth_NC, outputs_NC, times_RN, _precision_area)


def _mean_area(
    truth_NC: Floats, outputs_NC: Floats, times_RN: Draws, area: _Area
) -> npt.NDArray[np.float64]:
    total_R, labels_R = np.zeros(len(times_RN)), np.zeros(len(times_RN))
    for truth_N, outputs_N in zip(truth_NC.T, outputs_NC.T, strict=True):
        order = np.argsort(-outputs_N, kind="stable")
        # A threshold takes all equal answers or none.
        ends = np.flatnonzero(np.append(np.diff(outputs_N[order]) != 0, True))
        sorted_RN = times_RN[:, order]
        positive_RK = np.cumsum(sorted_RN * truth_N[order], axis=1)[:, ends]
        negative_RK = np.cumsum(sorted_RN, axis=1)[:, ends] - positive_RK
        # A label that all have, or none, has no curve in this draw.
        decided_R = (positive_RK[:, -1] > 0) & (negative_RK[:, -1] > 0)
        total_R[decided_R] += area(positive_RK[decided_R], negative_RK[decided_R])
        labels_R += decided_R
    return np.where(labels_R > 0, total_R / np.maximum(labels_R, 1), np.nan)


def _roc_area(
    positive_RK: npt.NDArray[np.float64], negative_RK: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Of trapezoids between thresholds; counts are of what lies above each."""
    width_RK = np.diff(negative_RK, axis=1, prepend=0.0)
    height_RK = positive_RK - np.diff(positive_RK, axis=1, prepend=0.0) / 2
    area_R: npt.NDArray[np.float64] = (width_RK * height_RK).sum(axis=1)
    return area_R / (positive_RK[:, -1] * negative_RK[:, -1])


def _precision_area(
    positive_RK: npt.NDArray[np.float64], negative_RK: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Precision at each threshold, weighted by the recall that it adds."""
    above_RK = np.maximum(positive_RK + negative_RK, 1.0)
    gain_RK = np.diff(positive_RK, axis=1, prepend=0.0)
    area_R: npt.NDArray[np.float64] = (gain_RK * positive_RK / above_RK).sum(axis=1)
    return area_R / positive_RK[:, -1]
