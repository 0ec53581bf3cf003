"""The collapse watch counts log lines in a row, and tells each fall once."""

from __future__ import annotations

from speech_ssl.objectives.base import Floor
from speech_ssl.training.health import watch

FLOORS = {"codes": Floor(10.0, "raise diversity_weight"), "rank": Floor(2.0, "lower peak_lr")}


def told(codes: list[float], patience: int, below: dict[str, int] | None = None) -> list[list[str]]:
    counts: dict[str, int] = {} if below is None else below
    return [watch("train", {"codes": value, "rank": 5.0}, FLOORS, counts, patience) for value in codes]


def test_it_waits_for_patience_and_says_what_to_do() -> None:
    first, second, third = told([9.0, 9.0, 3.14159], patience=3)
    assert first == second == []
    assert third == ["codes has been below 10 for 3 log lines (train: 3.14): raise diversity_weight."]


def test_a_recovery_begins_the_count_anew() -> None:
    assert not any(told([9.0, 9.0, 11.0, 9.0, 9.0, 10.0, 9.0], patience=3))  # the floor itself is no fall


def test_each_fall_is_told_once() -> None:
    warnings = told([1.0] * 6 + [20.0] + [1.0] * 6, patience=2)
    assert [len(w) for w in warnings] == [0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]


def test_numbers_are_counted_each_by_itself_and_counts_survive() -> None:
    below: dict[str, int] = {}
    assert watch("train", {"codes": 1.0, "rank": 1.0}, FLOORS, below, 2) == []
    assert watch("train", {"codes": 1.0, "rank": 3.0}, FLOORS, below, 2) != []
    assert below == {"train codes": 2, "train rank": 0}
    assert watch("train", {"codes": 1.0, "rank": 1.0}, FLOORS, dict(below), 2) == []


def test_kinds_of_lines_are_counted_apart() -> None:
    below: dict[str, int] = {}
    low = {"codes": 1.0, "rank": 5.0}
    assert watch("train", low, FLOORS, below, 2) == []
    assert watch("valid", low, FLOORS, below, 1) == [
        "codes has been below 10 (valid: 1): raise diversity_weight."
    ]
    assert len(watch("train", low, FLOORS, below, 2)) == 1
