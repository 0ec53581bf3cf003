"""PSDS against its definition, threshold by threshold and event by event, and against sed_scores_eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_ssl.evaluation.metrics.detection import Event
from speech_ssl.evaluation.metrics.psds import CONFUSION, REACTION, Scenario, TimedScores, psds

LABELS = ("a", "b", "c")
HOP_S = 0.5


def runs(active: Sequence[bool]) -> list[tuple[int, int]]:
    """Start and stop of the runs of what is active."""
    edges = np.flatnonzero(np.diff([False, *active, False]))
    return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def timed(scores_TK: np.ndarray) -> TimedScores:
    edges_s = HOP_S * np.arange(len(scores_TK) + 1)
    return TimedScores(scores_TK, edges_s, float(edges_s[-1]))


def detected(scores: TimedScores, threshold: float) -> list[Event]:
    return [
        Event(label, HOP_S * start, HOP_S * stop)
        for k, label in enumerate(LABELS)
        for start, stop in runs(np.asarray(scores.scores_TK)[:, k] >= threshold)
    ]


def overlap(event: Event, others: Sequence[Event], label: str) -> float:
    return sum(max(0, min(event.end, o.end) - max(event.start, o.start)) for o in others if o.label == label)


def seconds(events: dict[str, list[Event]], label: str) -> float:
    return sum(e.end - e.start for own in events.values() for e in own if e.label == label)


def point(references, scores, label: str, threshold: float, asked: Scenario) -> tuple[float, float]:
    """False alarms an hour, cross triggers among them, and the rate of references found, as in the paper."""
    others = [o for o in LABELS if o != label and seconds(references, o)]
    found = alarms = total = 0
    triggers = dict.fromkeys(others, 0)
    for file, true in references.items():
        told = [e for e in detected(scores[file], threshold) if e.label == label]
        counts = [e for e in told if overlap(e, true, label) >= asked.within * (e.end - e.start) - 1e-6]
        for event in (e for e in true if e.label == label):
            total += 1
            found += overlap(event, counts, label) >= asked.covered * (event.end - event.start) - 1e-6
        for event in (e for e in told if e not in counts):
            alarms += 1
            for other in others:
                length = event.end - event.start
                triggers[other] += overlap(event, true, other) >= asked.cross * length - 1e-6
    rate = alarms / (sum(s.duration_s for s in scores.values()) / 3600)
    crossed = [triggers[other] / (seconds(references, other) / 3600) for other in others]
    return rate + asked.cross_weight * (sum(crossed) / len(crossed) if crossed else 0), found / total


def by_definition(references, scores, asked: Scenario, thresholds: Sequence[float]) -> float:
    """The area, in steps from one number of false alarms to the next."""
    used = [label for label in LABELS if seconds(references, label)]
    points = {label: [point(references, scores, label, t, asked) for t in thresholds] for label in used}
    corners = sorted({0.0, asked.most_per_hour, *(x for own in points.values() for x, _ in own)})
    area = 0.0
    for left, right in zip(corners, corners[1:], strict=False):
        best = [max([rate for x, rate in points[label] if x <= left], default=0.0) for label in used]
        height = max(float(np.mean(best) - asked.spread_weight * np.std(best)), 0.0)
        area += height * (min(right, asked.most_per_hour) - min(left, asked.most_per_hour))
    return area / asked.most_per_hour


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, list[Event]], dict[str, TimedScores]]:
    """Some files with scores full of ties, and references whose times need not be those of frames."""
    references, scores = {}, {}
    for number in range(draw(st.integers(1, 3))):
        frames = draw(st.integers(1, 7))
        levels = draw(st.lists(st.integers(0, 3), min_size=3 * frames, max_size=3 * frames))
        scores[f"file {number}"] = timed(np.reshape(levels, (frames, 3)).astype(float))
        events = []
        for label in LABELS:
            active = draw(st.lists(st.booleans(), min_size=frames, max_size=frames))
            shift = draw(st.sampled_from((0.0, 0.2)))
            events += [Event(label, HOP_S * start + shift, HOP_S * stop) for start, stop in runs(active)]
        references[f"file {number}"] = events
    return references, scores


SCENARIOS = st.builds(
    Scenario,
    within=st.sampled_from((0.1, 0.5, 0.7, 1.0)),
    covered=st.sampled_from((0.1, 0.5, 0.7, 1.0)),
    cross=st.sampled_from((0.3, 0.5, 1.0)),
    cross_weight=st.sampled_from((0.0, 0.5, 1.0)),
    spread_weight=st.sampled_from((0.0, 0.5, 1.0)),
    most_per_hour=st.sampled_from((100.0, 1000.0, 5000.0)),
)


CASES = cases().filter(lambda case: any(case[0].values()))


@settings(deadline=None, max_examples=150)
@given(CASES, SCENARIOS, st.sampled_from([None, (0.5,), (3.0, 1.0), (9.0,)]))
def test_all_thresholds_at_once_is_one_after_the_other(case, asked: Scenario, thresholds) -> None:
    references, scores = case
    found = psds(references, scores, LABELS, asked, thresholds=thresholds)
    expected = by_definition(references, scores, asked, thresholds or (0.0, 1.0, 2.0, 3.0))
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert found.left_out == tuple(label for label in LABELS if not seconds(references, label))
    assert found.per_label.keys() == set(LABELS) - set(found.left_out)


@settings(deadline=None, max_examples=30)
@given(CASES, SCENARIOS, st.permutations(range(3)))
def test_orders_and_rising_functions_change_nothing(case, asked: Scenario, order: list[int]) -> None:
    references, scores = case
    turned = {
        file: own._replace(scores_TK=np.exp(np.asarray(own.scores_TK)[:, order]))
        for file, own in reversed(scores.items())
    }
    reordered = {file: events[::-1] for file, events in references.items()}
    found = psds(reordered, turned, [LABELS[k] for k in order], asked)
    expected = psds(references, scores, LABELS, asked)
    assert found.value == pytest.approx(expected.value, abs=1e-9)
    assert found.per_label == pytest.approx(expected.per_label, abs=1e-9)


def made() -> tuple[dict[str, list[Event]], dict[str, TimedScores]]:
    """Four files of 12 s by a formula: scores of integers that are higher in the references, mostly."""
    references: dict[str, list[Event]] = {}
    scores = {}
    for number in range(4):
        t, column = np.mgrid[:24, :3]
        values = ((7 * t + 3 * t * t + 5 * column + number * t) % 23).astype(float)
        events = []
        for k, label in enumerate(LABELS):
            for tenths in (10 + 10 * k + 3 * number, 80 + 5 * k - 4 * number):
                end = tenths + 15 + 6 * k
                events.append(Event(label, tenths / 10, end / 10))
                values[tenths // 5 : end // 5, k] += 14
                values[tenths // 5 : end // 5, (k + 1) % 3] += 5
        references[f"file {number}"] = events
        scores[f"file {number}"] = timed(values)
    return references, scores


MIDDLE = Scenario(within=0.5, covered=0.5)


@pytest.mark.parametrize(
    ("asked", "value", "per_label"),
    [
        (REACTION, 0.0, (0.15625, 0.0, 0.0)),
        (replace(REACTION, most_per_hour=2000), 0.5034922186903027, (0.484375, 0.65625, 0.734375)),
        (CONFUSION, 1.0, (1.0, 1.0, 1.0)),
        (
            replace(MIDDLE, cross_weight=0.5, most_per_hour=1000),
            0.3458730165446158,
            (0.3992559523809524, 0.5375, 0.7174107142857142),
        ),
        (
            replace(MIDDLE, cross_weight=1, spread_weight=0, most_per_hour=1000),
            0.4522321428571429,
            (0.375, 0.415625, 0.5660714285714287),
        ),
    ],
)
def test_the_values_of_sed_scores_eval(asked: Scenario, value: float, per_label: tuple[float, ...]) -> None:
    """Computed with sed_scores_eval 0.0.4, intersection_based.psds, and pandas 2."""
    found = psds(*made(), LABELS, asked)
    assert found.value == pytest.approx(value, abs=1e-12)
    assert found.per_label == pytest.approx(dict(zip(LABELS, per_label, strict=True)), abs=1e-12)


def an_hour(*scores: tuple[float, float]) -> TimedScores:
    """Scores of a and b at 0-10, 100-110, 200-210 and 300-310 s of an hour; the time between has 0."""
    edges_s = [0, 10, 100, 110, 200, 210, 300, 310, 3600]
    frames = np.zeros((8, 2))
    frames[::2] = scores
    return TimedScores(frames, edges_s, 3600.0)


def test_false_alarms_by_hand() -> None:
    scores = {"f": an_hour((2, 0), (3, 0), (1, 0), (1, 0))}
    references = {"f": [Event("a", 0, 10)]}
    asked = Scenario(within=0.7, covered=0.7)
    assert psds(references, scores, ("a", "b"), asked).value == pytest.approx(0.99)  # one alarm comes first
    for threshold, value in ((3, 0.0), (2.5, 0.0), (2, 0.99), (1, 0.97), (0.5, 0.97), (0, 0.0)):
        found = psds(references, scores, ("a", "b"), asked, thresholds=[threshold])
        assert found.value == pytest.approx(value)
    assert found.left_out == ("b",)
    found = psds(references, scores, ("a", "b"), asked, thresholds=[-1, 1, 2, 4])
    assert found.value == pytest.approx(0.99)


def test_cross_triggers_and_spread_by_hand() -> None:
    """The alarm of a before its reference is on the only 10 s of b: 1 + 0.5 * 360 an hour."""
    scores = {"f": an_hour((2, 0), (3, 1), (0, 0), (0, 0))}
    references = {"f": [Event("a", 0, 10), Event("b", 100, 110)]}
    asked = Scenario(within=0.7, covered=0.7, cross_weight=0.5, spread_weight=0.0, most_per_hour=1000)
    found = psds(references, scores, ("a", "b"), asked)
    assert found.per_label == pytest.approx({"a": 0.819, "b": 1.0})
    assert found.value == pytest.approx((0.5 * 181 + 819) / 1000)
    assert psds(references, scores, ("a", "b"), replace(asked, spread_weight=1.0)).value == pytest.approx(
        0.819
    )


def test_scores_that_are_the_truth_are_perfect_and_flat_ones_are_worthless() -> None:
    references, scores = made()
    truth = {}
    for file, own in scores.items():
        edges_s = np.arange(121) / 10
        middles = edges_s[:-1] + 0.05
        active = np.array(
            [
                [any(e.label == x and e.start < m < e.end for e in references[file]) for x in LABELS]
                for m in middles
            ],
            dtype=float,
        )
        truth[file] = TimedScores(active, edges_s, own.duration_s)
    flat = {file: own._replace(scores_TK=np.zeros((24, 3))) for file, own in scores.items()}
    for asked in (REACTION, CONFUSION):
        assert psds(references, truth, LABELS, asked).value == pytest.approx(1.0)
    assert psds(references, flat, LABELS, REACTION).value == 0.0


FINE = TimedScores(np.zeros((2, 2)), [0.0, 1.0, 2.0], 2.0)


@pytest.mark.parametrize(
    ("events", "scores", "reason"),
    [
        ([], {"f": FINE}, "there is no reference event"),
        ([Event("x", 0, 1)], {"f": FINE}, "unknown label x in f"),
        ([Event("a", 1, 0)], {"f": FINE}, "f has an event from 1 to 0 s"),
        ([Event("a", 0, 1), Event("a", 0.5, 2)], {"f": FINE}, "references of a in f overlap"),
        ([Event("a", 0, 1)], {}, "f has only one of references and scores"),
        ([Event("a", 0, 1)], {"f": FINE, "g": FINE}, "g has only one of references and scores"),
        ([Event("a", 0, 1)], {"f": FINE._replace(scores_TK=np.zeros((2, 3)))}, r"shape \(2, 3\): 2 labels"),
        ([Event("a", 0, 1)], {"f": FINE._replace(edges_s=[0.0, 1.0])}, "2 edges"),
        ([Event("a", 0, 1)], {"f": FINE._replace(edges_s=[0.0, 1.0, 1.0])}, "edges must rise"),
        ([Event("a", 0, 1)], {"f": FINE._replace(edges_s=[0.0, 1.0, np.inf])}, "finite"),
        ([Event("a", 0, 1)], {"f": FINE._replace(scores_TK=[[0, np.nan], [0, 0]])}, "finite"),
        ([Event("a", 0, 1)], {"f": FINE._replace(duration_s=0.0)}, "the duration of f must be above 0 s"),
    ],
)
def test_refusals(events: list[Event], scores: dict[str, TimedScores], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refusal:
        psds({"f": events}, scores, ("a", "b"), REACTION)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("thresholds", [[[0.5]], [float("nan")], 0.5])
def test_thresholds_are_a_list_of_numbers(thresholds) -> None:
    with pytest.raises(ValueError, match="thresholds"):
        psds({"f": [Event("a", 0, 1)]}, {"f": FINE}, ("a", "b"), REACTION, thresholds=thresholds)


@pytest.mark.parametrize(
    "change",
    [
        {"within": 0},
        {"covered": 1.1},
        {"cross": -1},
        {"cross_weight": -1},
        {"spread_weight": float("nan")},
        {"most_per_hour": 0},
    ],
)
def test_what_is_no_scenario(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        replace(CONFUSION, **change)
