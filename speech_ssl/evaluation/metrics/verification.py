"""Speaker verification: are two clips of the same speaker? Needs the `eval` extra.

A trial is a pair of clips with a score, higher for more similar, and the truth: `same` or not. At a
threshold, trials with score >= threshold are accepted; equal scores are accepted or rejected together. P_miss
is the share of same-speaker trials that are rejected, P_fa the share of the others that are accepted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speech_ssl.evaluation.extras import eval_extra


class EqualError(NamedTuple):
    """rate: at P_miss = P_fa. threshold: where the two are closest."""

    rate: float
    threshold: float


class _Rates(NamedTuple):
    """One point per threshold, from above all scores down to the lowest."""

    miss: NDArray[np.float64]
    false_alarm: NDArray[np.float64]
    thresholds: NDArray[np.float64]


def cosine_scores(left_ND: ArrayLike, right_ND: ArrayLike) -> NDArray[np.float64]:
    """Cosine similarity of the embeddings of each trial, shape (N,): row i of `left_ND` and row i of
    `right_ND`.

    Raises ValueError for different shapes, values that are not finite, and zero vectors.
    """
    left, right = (np.asarray(side, dtype=np.float64) for side in (left_ND, right_ND))
    if left.ndim != 2 or left.shape != right.shape:
        raise ValueError(
            f"both sides of the trials must be of one shape (N, D), not {left.shape} and {right.shape}"
        )
    return np.asarray((_unit(left) * _unit(right)).sum(axis=1))


def equal_error_rate(scores: ArrayLike, same: ArrayLike) -> EqualError:
    """The equal error rate of trials, both arguments of shape (N,).

    Rates are interpolated linearly between neighbouring thresholds, as is usual: the EER is where the ROC
    crosses P_miss = P_fa. Raises ValueError unless there are trials of both kinds and all scores are finite.
    """
    miss, false_alarm, thresholds = _rates(scores, same)
    gap = miss - false_alarm  # decreases strictly from 1 to -1
    after = int(np.argmax(gap <= 0))
    before = after - 1
    part = gap[before] / (gap[before] - gap[after])
    rate = miss[before] + part * (miss[after] - miss[before])
    nearest = after if -gap[after] <= gap[before] else before
    return EqualError(float(rate), float(thresholds[nearest]))


def min_dcf(
    scores: ArrayLike, same: ArrayLike, p_target: float, *, c_miss: float = 1.0, c_fa: float = 1.0
) -> float:
    """The minimum detection cost, c_miss p_target P_miss + c_fa (1 - p_target) P_fa, over all thresholds,
    divided by the cost of accepting all trials or none, whichever is lower (NIST SRE evaluation plans): from
    0 (perfect) to 1.

    p_target: 0.05 for VoxCeleb, 0.01 for SRE. Raises ValueError as `equal_error_rate` does, and for a prior
    outside (0, 1) or costs that are not positive.
    """
    if not 0 < p_target < 1:
        raise ValueError(f"p_target must be above 0 and below 1, not {p_target}")
    if not (0 < c_miss < np.inf and 0 < c_fa < np.inf):
        raise ValueError(f"costs must be positive, not {c_miss} and {c_fa}")
    miss, false_alarm, _ = _rates(scores, same)
    of_miss, of_false_alarm = c_miss * p_target, c_fa * (1 - p_target)
    return float((of_miss * miss + of_false_alarm * false_alarm).min() / min(of_miss, of_false_alarm))


def _unit(vectors_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(vectors_ND).all():
        raise ValueError("the embeddings must be finite numbers")
    largest = np.abs(vectors_ND).max(axis=1, keepdims=True, initial=0.0)
    if not (largest > 0).all():
        raise ValueError("an embedding of zeros has no direction: leave its trials out")
    scaled = vectors_ND / largest  # so that squares neither overflow nor vanish
    return np.asarray(scaled / np.linalg.norm(scaled, axis=1, keepdims=True))


def _rates(scores: ArrayLike, same: ArrayLike) -> _Rates:
    with eval_extra("verification"):
        from sklearn.metrics import roc_curve

    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(same)
    if values.ndim != 1 or values.shape != truth.shape:
        raise ValueError(f"scores and same must be of one shape (N,), not {values.shape} and {truth.shape}")
    if not np.isfinite(values).all():
        raise ValueError("the scores of trials must be finite numbers")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("same must be true or false (1 or 0) for each trial")
    if not 0 < np.count_nonzero(truth) < len(truth):
        raise ValueError("give trials of the same speaker and trials of different speakers")
    false_alarm, accepted, thresholds = roc_curve(truth.astype(bool), values, drop_intermediate=False)
    return _Rates(1 - accepted, false_alarm, thresholds)
