"""Batches: everything once, within the budget, little padding."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from speech_ssl.inference.chunking import Window
from speech_ssl.inference.windows import Piece, batches

seconds = st.lists(st.integers(1, 400).map(lambda tenths: tenths / 10), max_size=60)


def piece(number: int, duration_s: float) -> Piece:
    samples = round(duration_s * 16000)
    return Piece(number, 0, Window(0, samples, 0, 1), np.zeros(samples, dtype=np.float32))


@given(seconds, st.sampled_from([5.0, 20.0, 100.0]), st.sampled_from([1.0, 50.0, 1000.0]))
def test_all_pieces_within_the_budget(durations: list[float], budget_s: float, lookahead_s: float):
    pieces = [piece(number, duration) for number, duration in enumerate(durations)]
    made = list(batches(iter(pieces), budget_s=budget_s, lookahead_s=lookahead_s))
    assert sorted(p.clip for batch in made for p in batch) == list(range(len(durations)))
    for batch in made:
        longest = max(p.window.seconds for p in batch)
        assert longest * len(batch) <= budget_s + 1e-9 or len(batch) == 1


def test_no_more_than_the_lookahead_is_held():
    """An endless stream of pieces gets its batches."""
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield piece(taken, 1.0)

    next(batches(endless(), budget_s=10.0, lookahead_s=80.0))
    assert taken == 80


def test_neighbours_are_of_like_length():
    rng = np.random.default_rng(0)
    pieces = [piece(number, duration) for number, duration in enumerate(rng.uniform(1, 20, 400))]
    padded = real = 0.0
    for batch in batches(iter(pieces), budget_s=160.0, lookahead_s=1280.0):
        padded += max(p.window.seconds for p in batch) * len(batch)
        real += sum(p.window.seconds for p in batch)
    assert padded / real < 1.12
