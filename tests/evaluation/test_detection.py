"""Measures of clip labels and of timed events, against their definitions and numbers worked out by hand."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_ssl.evaluation.metrics.detection import (
    Event,
    EventCounts,
    classification,
    event_based_f1,
    expected_calibration_error,
    lwlrap,
    mean_average_precision,
)

ABC = ("a", "b", "c")
PREDICTIONS = st.lists(st.tuples(st.sampled_from(ABC), st.sampled_from(ABC)), min_size=1, max_size=12)


def tags(most_labels: int = 4) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    """Truth and scores of some clips and labels, with many ties and at least one true label."""

    def matrices(shape: tuple[int, int]) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
        size = shape[0] * shape[1]
        truth = st.lists(st.booleans(), min_size=size, max_size=size).filter(any)
        scores = st.lists(st.integers(0, 4).map(float), min_size=size, max_size=size)
        return st.tuples(truth, scores).map(lambda pair: tuple(np.reshape(part, shape) for part in pair))

    return st.tuples(st.integers(1, 6), st.integers(1, most_labels)).flatmap(matrices)


@settings(deadline=None)
@given(PREDICTIONS)
def test_accuracy_and_recall_by_counting(pairs: list[tuple[str, str]]) -> None:
    truth, predicted = zip(*pairs, strict=True)
    found = classification(truth, predicted, ABC)
    for i, true in enumerate(ABC):
        for j, told in enumerate(ABC):
            assert found.confusion_KK[i, j] == pairs.count((true, told))
    recalls = {x: pairs.count((x, x)) / truth.count(x) for x in ABC if x in truth}
    assert found.recalls == recalls and found.left_out == tuple(x for x in ABC if x not in truth)
    assert found.accuracy == pytest.approx(sum(true == told for true, told in pairs) / len(pairs))
    assert found.balanced_accuracy == pytest.approx(sum(recalls.values()) / len(recalls))


def test_the_majority_fools_accuracy_only() -> None:
    found = classification(["a"] * 98 + ["b", "c"], ["a"] * 100, ABC)
    assert found.accuracy == 0.98 and found.balanced_accuracy == pytest.approx(1 / 3)
    assert classification(ABC, ABC, ABC).balanced_accuracy == 1.0


@pytest.mark.parametrize(
    ("truth", "predicted", "labels", "reason"),
    [
        (["a"], ["a", "b"], ABC, "1 true labels and 2 predicted"),
        ([], [], ABC, "0 true labels"),
        (["a"], ["x"], ABC, "unknown labels x: the labels are a, b, c"),
        (["z"], ["a"], ABC, "unknown labels z"),
        (["a"], ["a"], ("a", "a"), "each once"),
        (["a"], ["a"], (), "at least one label"),
        (["a"], ["a"], "abc", "must be a list"),
    ],
)
def test_classification_refusals(truth, predicted, labels, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refusal:
        classification(truth, predicted, labels)
    assert "\n" not in str(refusal.value)


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Precision times the step in recall, threshold by threshold."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        accepted = scores >= threshold
        recall = truth[accepted].sum() / truth.sum()
        total += truth[accepted].mean() * (recall - before)
        before = recall
    return total


def test_calibration_error_by_hand() -> None:
    """One of the three scores below a half, which sum to 0.9, is right, and so is that of 0.9."""
    right, scores = [True, False, False, True], [0.2, 0.4, 0.3, 0.9]
    found = expected_calibration_error(right, scores, bins=2)
    assert found == pytest.approx((abs(1 - 0.9) + abs(1 - 0.9)) / 4)
    assert expected_calibration_error([True, True], [1.0, 1.0]) == 0
    assert expected_calibration_error([False, False], [1.0, 1.0]) == 1


def test_scores_that_are_shares_are_calibrated() -> None:
    generator = np.random.default_rng(0)
    scores = generator.uniform(0.2, 1, 100_000)
    right = generator.uniform(size=100_000) < scores
    assert expected_calibration_error(right, scores) < 0.01
    assert expected_calibration_error(right, scores**0.5) == pytest.approx(
        np.mean(scores**0.5 - scores), abs=0.01
    )


@pytest.mark.parametrize(
    ("right", "scores", "reason"),
    [([], [], "one of each"), ([True], [0.1, 0.2], "one of each"), ([True], [1.5], "between 0 and 1")],
)
def test_calibration_error_refusals(right, scores, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        expected_calibration_error(right, scores)


@settings(deadline=None, max_examples=50)
@given(tags())
def test_average_precision_by_its_definition(case: tuple[np.ndarray, np.ndarray]) -> None:
    truth, scores = case
    names = [f"label {k}" for k in range(truth.shape[1])]
    found = mean_average_precision(truth, scores, names)
    expected = {
        name: average_precision(truth[:, k], scores[:, k])
        for k, name in enumerate(names)
        if truth[:, k].any()
    }
    assert found.per_label == pytest.approx(expected)
    assert found.mean == pytest.approx(sum(expected.values()) / len(expected))
    assert found.left_out == tuple(name for name in names if name not in expected)


@settings(deadline=None, max_examples=50)
@given(tags(), st.randoms(use_true_random=False))
def test_the_order_of_clips_changes_nothing(case: tuple[np.ndarray, np.ndarray], random) -> None:
    truth, scores = case
    names = [str(k) for k in range(truth.shape[1])]
    order = random.sample(range(len(truth)), len(truth))
    found, again = (mean_average_precision(truth[o], scores[o], names) for o in (slice(None), order))
    assert again.per_label == pytest.approx(found.per_label)
    assert lwlrap(truth[order], scores[order]) == pytest.approx(lwlrap(truth, scores))


def test_average_precision_by_hand() -> None:
    truth = [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]]
    scores = [[0.9, 0.1, 0.5], [0.8, 0.2, 0.5], [0.7, 0.3, 0.5], [0.6, 0.0, 0.5]]
    found = mean_average_precision(truth, scores, ABC)
    assert found.per_label == pytest.approx({"a": (1 + 2 / 3) / 2, "b": 1.0})
    assert found.mean == pytest.approx((5 / 6 + 1) / 2) and found.left_out == ("c",)


def test_random_scores_have_the_share_of_positives() -> None:
    random = np.random.default_rng(0)
    truth = random.random((5000, 2)) < [0.1, 0.5]
    found = mean_average_precision(truth, random.random((5000, 2)), ["few", "half"])
    assert found.per_label == pytest.approx({"few": 0.1, "half": 0.5}, abs=0.03)


def lwlrap_of_the_paper(truth: np.ndarray, scores: np.ndarray) -> float:
    """Fonseca et al. 2019: Prec(s, c) is the share of true labels among the first Rank(s, c) of the ranked
    list of clip s, and lwlrap the mean of Prec over all clips s and true labels c of them. No ties."""
    precisions = []
    for true, values in zip(truth, scores, strict=True):
        ranked = list(np.argsort(-values))
        for label in np.flatnonzero(true):
            rank = ranked.index(label) + 1
            precisions.append(sum(true[other] for other in ranked[:rank]) / rank)
    return float(np.mean(precisions))


@settings(deadline=None, max_examples=50)
@given(tags(), st.integers(0, 2**32 - 1))
def test_lwlrap_by_its_definition(case: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    truth, scores = case
    untied = scores + np.random.default_rng(seed).uniform(0, 0.5, scores.shape)
    assert lwlrap(truth, untied) == pytest.approx(lwlrap_of_the_paper(truth, untied))


def test_lwlrap_by_hand() -> None:
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]])
    assert lwlrap(truth, [[3, 2, 1], [3, 2, 1], [1, 2, 3]]) == 1.0
    # the first clip: 1/3; the second: 1/2 and 2/3; the third has no label
    assert lwlrap(truth, [[1, 2, 3], [1, 2, 3], [1, 2, 3]]) == pytest.approx((1 / 3 + 1 / 2 + 2 / 3) / 3)
    assert lwlrap([[1, 0, 0, 0]], [[7, 7, 7, 7]]) == 0.25  # ties count against it


@pytest.mark.parametrize(
    ("truth", "scores", "reason"),
    [
        ([[1, 0]], [[0.5]], "of one shape"),
        ([1, 0], [0.5, 0.1], "of one shape"),
        ([[1, 2]], [[0.5, 0.1]], "true or false"),
        ([[1, 0]], [[0.5, float("nan")]], "finite"),
        ([[1, 0]], [[0.5, float("-inf")]], "finite"),
        ([[0, 0]], [[0.5, 0.1]], "no clip has a label"),
    ],
)
def test_tag_refusals(truth, scores, reason: str) -> None:
    for call in (lwlrap, lambda *tags: mean_average_precision(*tags, ["a", "b"])):
        with pytest.raises(ValueError, match=reason) as refusal:
            call(truth, scores)
        assert "\n" not in str(refusal.value)


def test_a_column_for_each_label() -> None:
    with pytest.raises(ValueError, match="there are 3 labels but 2 columns"):
        mean_average_precision([[1, 0]], [[0.5, 0.1]], ABC)


GRID = st.integers(0, 12).map(lambda n: n / 10)
EVENTS = st.lists(
    st.builds(
        lambda label, start, length: Event(label, start, start + length),
        st.sampled_from(("a", "b")),
        GRID,
        st.sampled_from((0.1, 0.5, 1.0, 2.0)),
    ),
    max_size=5,
)


def most_pairs(references: list[Event], detections: list[Event]) -> int:
    """Every way to pair the events off, tried."""

    def fit(true: Event, told: Event) -> bool:
        within = max(0.2, 0.2 * (true.end - true.start)) + 1e-6
        return (
            true.label == told.label
            and abs(true.start - told.start) < 0.2 + 1e-6
            and abs(true.end - told.end) < within
        )

    short, long = sorted((references, detections), key=len)
    turned = short is not references

    def pairs(chosen: tuple[Event, ...]) -> int:
        both = zip(short, chosen, strict=True)
        return sum(fit(there, here) if turned else fit(here, there) for here, there in both)

    return max(map(pairs, permutations(long, len(short))))


@settings(deadline=None)
@given(EVENTS.filter(bool), EVENTS)
def test_as_many_events_are_matched_as_can_be(references: list[Event], detections: list[Event]) -> None:
    found = event_based_f1({"file": references}, {"file": detections}, ABC)
    for label in ("a", "b"):
        true, told = ([e for e in events if e.label == label] for events in (references, detections))
        if true or told:
            assert found.per_label[label] == EventCounts(most_pairs(true, told), len(true), len(told))
        else:
            assert label in found.left_out and label not in found.per_label
    counts = found.per_label.values()
    each = [2 * c.hits / (c.references + c.detections) for c in counts]
    assert found.macro_f1 == pytest.approx(sum(each) / len(each))
    hits = sum(c.hits for c in counts)
    assert found.micro_f1 == pytest.approx(2 * hits / (len(references) + len(detections)))


def one(reference: tuple[float, float], detection: tuple[float, float]) -> float:
    return event_based_f1({"f": [Event("a", *reference)]}, {"f": [Event("a", *detection)]}, ["a"]).macro_f1


def test_collars() -> None:
    assert one((0.7, 1.0), (0.9, 1.2)) == 1.0  # 0.9 - 0.7 > 0.2 in floating point
    assert one((0.7, 1.0), (0.901, 1.0)) == 0.0
    assert one((0.7, 1.0), (0.7, 1.201)) == 0.0
    assert one((0.0, 10.0), (0.0, 12.0)) == one((0.0, 10.0), (0.0, 8.0)) == 1.0  # 20 % of the reference
    assert one((0.0, 10.0), (0.0, 12.1)) == one((0.0, 10.0), (0.3, 10.0)) == 0.0
    assert one((0.0, 1.0), (0.0, 1.22)) == 0.0  # the length is that of the reference, not of the detection


def test_events_by_hand() -> None:
    x = [Event("a", 0, 1), Event("a", 0.1, 1.1), Event("b", 5, 6)]
    references = {"x": x, "y": [], "z": [Event("b", 1, 2)]}
    detections = {"x": [Event("a", 0.1, 1), Event("b", 5, 6)], "y": [Event("c", 0, 1)]}
    found = event_based_f1(references, detections, ("a", "b", "c", "d"))
    assert found.per_label == {
        "a": EventCounts(1, 2, 1),  # one detection is one hit
        "b": EventCounts(1, 2, 1),  # none in z
        "c": EventCounts(0, 0, 1),
    }
    assert found.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 0) / 3) and found.micro_f1 == pytest.approx(4 / 7)
    assert found.left_out == ("d",)
    perfect = event_based_f1(references, references, ("a", "b"))
    assert perfect.macro_f1 == perfect.micro_f1 == 1.0
    elsewhere = event_based_f1({"x": [Event("a", 0, 1)], "y": []}, {"y": [Event("a", 0, 1)]}, ["a"])
    assert elsewhere.macro_f1 == 0.0
    assert event_based_f1({"x": [Event("a", 0, 1)]}, {}, ["a"]).micro_f1 == 0.0


@pytest.mark.parametrize(
    ("references", "detections", "reason"),
    [
        ({"f": [Event("x", 0, 1)]}, {}, "unknown label x in f: the labels are a, b, c"),
        ({"f": [Event("a", 0, 1)]}, {"f": [Event("x", 0, 1)]}, "unknown label x in f"),
        ({"f": [Event("a", 1, 1)]}, {}, "f has an event from 1 to 1 s"),
        ({"f": [Event("a", -1, 1)]}, {}, "f has an event from -1 to 1 s"),
        ({"f": [Event("a", 0, 1)]}, {"f": [Event("a", 0, float("nan"))]}, "f has an event from 0 to nan s"),
        ({"f": [Event("a", 0, float("inf"))]}, {}, "f has an event"),
        ({"f": [Event("a", 0, 1)]}, {"g": []}, "no references for g: give it an empty list"),
        ({"f": []}, {"f": [Event("a", 0, 1)]}, "there is no reference event"),
    ],
)
def test_event_refusals(references, detections, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refusal:
        event_based_f1(references, detections, ABC)
    assert "\n" not in str(refusal.value)
