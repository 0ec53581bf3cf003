"""Windows of a clip into one: the same as joined at the end, without being held twice."""

from __future__ import annotations

import tracemalloc
from typing import get_args

import numpy as np
import pytest
import torch

from speech_ssl.inference.answers import Choice, Clock, classify
from speech_ssl.inference.joining import Joining
from speech_ssl.inference.units import TopUnits, dense
from speech_ssl.inference.window_output import NO_FRAMES, WindowOutput
from speech_ssl.model.heads import clip_logits
from speech_ssl.model.specs import EventPooling, EventsSpec

RANDOM = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return RANDOM.random(shape, dtype=np.float32)


def part(frames: int, *, width: int = 0) -> WindowOutput:
    log_probs_TK = -np.sort(numbers(frames, 4), axis=1) - 3
    units_TK = RANDOM.integers(0, 1000, (frames, 4))
    top = TopUnits.of(units_TK, log_probs_TK, log_probs_TK[:, 3], 1000)
    x_TD = numbers(frames, width) if width else NO_FRAMES
    return WindowOutput(x_TD, {"top": top, "all": numbers(frames, 3)}, numbers(frames, 4))


@pytest.mark.parametrize("counts", [(7,), (3, 5, 1)])
@pytest.mark.parametrize("width", [0, 6])
def test_it_is_what_joining_at_the_end_gives(counts: tuple[int, ...], width: int) -> None:
    parts = [part(count, width=width) for count in counts]
    joining = Joining(sum(counts))
    for each in parts:
        joining.add(each)
    found, expected = joining.result(), WindowOutput.joined(parts)
    assert np.array_equal(found.frames, expected.frames)
    assert np.array_equal(found.loudness, expected.loudness)
    for name in ("top", "all"):
        assert np.array_equal(dense(found.heads[name]), dense(expected.heads[name]))


def test_nothing_of_any_frame() -> None:
    joining = Joining(9)
    joining.add(WindowOutput(NO_FRAMES, {}))
    assert joining.result() == WindowOutput(NO_FRAMES, {})


def test_no_more_is_held_than_the_result() -> None:
    tracemalloc.start()
    try:
        joining = Joining(40 * 800)
        for _ in range(40):
            joining.add(WindowOutput(NO_FRAMES, {"a": numbers(1000, 100)}).kept(100, 800))
        size = joining.result().nbytes
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1.1 * size


@pytest.mark.parametrize("pooling", get_args(EventPooling))
@pytest.mark.parametrize("exclusive", [True, False])
def test_many_labels_are_the_same_some_at_a_time(pooling: EventPooling, exclusive: bool) -> None:
    labels = tuple(f"label {number}" for number in range(40))
    spec = EventsSpec(labels=labels, pooling=pooling, exclusive=exclusive, hidden=0)
    outputs_TO = 4 * numbers(300, 80 if pooling == "attentive" else 40) - 2
    found = classify(outputs_TO, spec, Clock(0.02, 0.025, 6.0), Choice())
    valid_1T = torch.ones((1, 300), dtype=torch.bool)
    logits_K = clip_logits(torch.from_numpy(outputs_TO)[None], valid_1T, spec)[0]
    expected = logits_K.softmax(0) if exclusive else logits_K.sigmoid()
    told = {label.label: label.score for label in found.labels}
    assert [told[label] for label in labels] == pytest.approx(expected.tolist(), abs=1e-6)
    assert {event.label for event in found.events} <= set(labels)


@pytest.mark.parametrize("exclusive", [True, False])
def test_an_hour_of_many_labels_takes_little_more_than_their_probabilities(exclusive: bool) -> None:
    spec = EventsSpec(labels=tuple(map(str, range(200))), exclusive=exclusive, hidden=0)
    outputs_TO = numbers(10_000, 400)
    tracemalloc.start()
    try:
        classify(outputs_TO, spec, Clock(0.02, 0.025, 200.0), Choice(threshold=1.0))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 0.8 * outputs_TO.nbytes  # of two numbers for each label and frame, one comes back
