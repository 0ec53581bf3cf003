"""Verification errors against all thresholds tried one by one, in exact fractions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_ssl.evaluation.metrics.verification import cosine_scores, equal_error_rate, min_dcf

TRIALS = st.lists(st.tuples(st.integers(-3, 3).map(float), st.booleans()), min_size=2, max_size=12).filter(
    lambda trials: len({same for _, same in trials}) == 2
)


def rates(trials: Sequence[tuple[float, bool]]) -> list[tuple[Fraction, Fraction, float]]:
    """P_miss, P_fa and the threshold, for each threshold that differs from the one above."""
    targets = [score for score, same in trials if same]
    others = [score for score, same in trials if not same]
    found = []
    for threshold in [float("inf"), *sorted({score for score, _ in trials}, reverse=True)]:
        missed = sum(score < threshold for score in targets)
        accepted = sum(score >= threshold for score in others)
        found.append((Fraction(missed, len(targets)), Fraction(accepted, len(others)), threshold))
    return found


def crossing(trials: Sequence[tuple[float, bool]]) -> Fraction:
    """Where the straight lines from point to point meet P_miss = P_fa."""
    points = rates(trials)
    for (miss, alarm, _), (next_miss, next_alarm, _) in zip(points, points[1:], strict=False):
        if miss >= alarm and next_miss <= next_alarm:
            part = (miss - alarm) / ((miss - alarm) - (next_miss - next_alarm))
            return miss + part * (next_miss - miss)
    raise AssertionError("the curve ends below the diagonal")


@settings(deadline=None)
@given(TRIALS)
def test_the_equal_error_rate_is_the_crossing(trials: list[tuple[float, bool]]) -> None:
    found = equal_error_rate(*zip(*trials, strict=True))
    assert found.rate == pytest.approx(float(crossing(trials)), abs=1e-12)
    gaps = {threshold: abs(miss - alarm) for miss, alarm, threshold in rates(trials)}
    del gaps[float("inf")]
    assert float(gaps[found.threshold]) == pytest.approx(float(min(gaps.values())), abs=1e-12)


@settings(deadline=None)
@given(TRIALS, st.sampled_from(["0.01", "0.05", "0.5", "0.9"]), st.integers(1, 10), st.integers(1, 10))
def test_the_least_cost_of_all_thresholds(trials, prior: str, c_miss: int, c_fa: int) -> None:
    p = Fraction(prior)
    least = min(c_miss * p * miss + c_fa * (1 - p) * alarm for miss, alarm, _ in rates(trials))
    expected = least / min(c_miss * p, c_fa * (1 - p))
    scores, same = zip(*trials, strict=True)
    assert min_dcf(scores, same, float(p), c_miss=c_miss, c_fa=c_fa) == pytest.approx(float(expected))
    assert 0 <= expected <= 1


@settings(deadline=None, max_examples=40)
@given(TRIALS, st.randoms(use_true_random=False))
def test_order_scale_and_offset_change_nothing(trials: list[tuple[float, bool]], random) -> None:
    scores, same = (np.array(part) for part in zip(*trials, strict=True))
    order = random.sample(range(len(scores)), len(scores))
    moved = 4 * scores[order] - 1
    assert equal_error_rate(moved, same[order]).rate == equal_error_rate(scores, same).rate
    assert min_dcf(moved, same[order], 0.05) == min_dcf(scores, same, 0.05)


@settings(deadline=None, max_examples=40)
@given(TRIALS)
def test_turned_round_the_two_kinds_change_places(trials: list[tuple[float, bool]]) -> None:
    scores, same = (np.array(part) for part in zip(*trials, strict=True))
    turned = equal_error_rate(-scores, ~same)
    assert turned.rate == pytest.approx(equal_error_rate(scores, same).rate, abs=1e-12)


def test_closed_forms() -> None:
    same = [0, 0, 0, 1, 1]
    assert equal_error_rate([1, 2, 3, 4, 5], same) == (0.0, 4.0)
    assert min_dcf([1, 2, 3, 4, 5], same, 0.01) == 0.0
    assert equal_error_rate([5, 4, 3, 2, 1], same).rate == 1.0
    assert min_dcf([5, 4, 3, 2, 1], same, 0.01) == 1.0  # accepting none is always there
    assert equal_error_rate([7, 7, 7, 7, 7], same) == (0.5, 7.0)  # all tied: no better than guessing
    assert min_dcf([7, 7, 7, 7, 7], same, 0.99) == 1.0


def test_by_hand() -> None:
    """Targets 0.9, 0.6, 0.4; others 0.7, 0.3, 0.2, 0.1."""
    scores, same = [0.9, 0.6, 0.4, 0.7, 0.3, 0.2, 0.1], [1, 1, 1, 0, 0, 0, 0]
    # from (1/3 missed, 1/4 accepted) at 0.6 on to (0, 1/4) at 0.4
    assert equal_error_rate(scores, same) == (pytest.approx(0.25), 0.6)
    assert min_dcf(scores, same, 0.05) == pytest.approx(2 / 3)  # accept 0.9 only
    assert min_dcf(scores, same, 0.5) == pytest.approx(1 / 4)  # miss none, accept one of four


def test_random_scores_are_near_one_half() -> None:
    random = np.random.default_rng(0)
    scores, same = random.normal(size=4000), random.random(4000) < 0.5
    assert equal_error_rate(scores, same).rate == pytest.approx(0.5, abs=0.03)
    assert min_dcf(scores, same, 0.05) > 0.98


def test_two_gaussians_have_the_rate_of_theory() -> None:
    """Unit variances, means 2 apart: the equal error rate is Phi(-1) = 0.1587."""
    random = np.random.default_rng(0)
    scores = np.concatenate((random.normal(0, 1, 20000), random.normal(2, 1, 20000)))
    assert equal_error_rate(scores, np.arange(40000) >= 20000).rate == pytest.approx(0.1587, abs=0.005)


@pytest.mark.parametrize(
    ("scores", "same", "reason"),
    [
        ([1.0, 2.0], [1], "of one shape"),
        ([[1.0, 2.0]], [[0, 1]], "of one shape"),
        ([1.0, float("nan")], [0, 1], "finite"),
        ([1.0, float("inf")], [0, 1], "finite"),
        ([1.0, 2.0], [0, 2], "true or false"),
        ([1.0, 2.0], ["same", "other"], "true or false"),
        ([1.0, 2.0], [1, 1], "trials of the same speaker and trials of different"),
        ([1.0, 2.0], [0, 0], "trials of the same speaker and trials of different"),
        ([], [], "trials of the same speaker and trials of different"),
    ],
)
def test_refusals(scores, same, reason: str) -> None:
    for call in (equal_error_rate, lambda *trials: min_dcf(*trials, 0.05)):
        with pytest.raises(ValueError, match=reason) as refusal:
            call(scores, same)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("prior", [0.0, 1.0, -1.0, float("nan")])
def test_priors_are_between_0_and_1(prior: float) -> None:
    with pytest.raises(ValueError, match="p_target"):
        min_dcf([1, 2], [0, 1], prior)


@pytest.mark.parametrize("costs", [{"c_miss": 0}, {"c_fa": -1}, {"c_fa": float("nan")}])
def test_costs_are_positive(costs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="costs"):
        min_dcf([1, 2], [0, 1], 0.5, **costs)


def test_cosines() -> None:
    left = [[1, 0], [3, 4], [1e-300, 0], [1e300, 1e300], [2, 0]]
    right = [[0, 2], [3, 4], [5, 0], [1, 1], [-1, 0]]
    assert cosine_scores(left, right) == pytest.approx([0, 1, 1, 1, -1])
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 50, 16)).astype(np.float32)
    angles = [float(x @ y) / float(np.linalg.norm(x) * np.linalg.norm(y)) for x, y in zip(a, b, strict=True)]
    assert cosine_scores(a, b) == pytest.approx(angles, abs=1e-6)
    assert cosine_scores(8 * a, b) == pytest.approx(cosine_scores(b, a))


@pytest.mark.parametrize(
    ("left", "right", "reason"),
    [
        ([[1.0, 0.0]], [[1.0]], "of one shape"),
        ([1.0], [1.0], "of one shape"),
        ([[0.0, 0.0]], [[1.0, 0.0]], "zeros"),
        ([[1.0, float("nan")]], [[1.0, 0.0]], "finite"),
        ([[1.0, 0.0]], [[float("inf"), 0.0]], "finite"),
    ],
)
def test_cosine_refusals(left, right, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        cosine_scores(left, right)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(ModuleNotFoundError, match=r"verification needs sklearn.metrics: install the `eval`"):
        equal_error_rate([1, 2], [0, 1])
