"""Windows of a clip into one: the same as joined at the end, without being held twice."""

from __future__ import annotations

import tracemalloc
from typing import get_args

import numpy as np
import pytest
import torch

from speech_ssl.inference.answers import Choice, Clock, classify
from speech_ssl.inference.chunking import Window
from speech_ssl.inference.outputs import NO_FRAMES, Stitcher, WindowOutput
from speech_ssl.inference.units import TopUnits, dense
from speech_ssl.inference.windows import WindowedPass, pieces
from speech_ssl.model.heads.head import clip_logits
from speech_ssl.model.heads.specs import EventPooling, EventsSpec
from speech_ssl.types import Pooling, Waveform

RANDOM = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return RANDOM.random(shape, dtype=np.float32)


def part(frames: int, *, width: int = 0) -> WindowOutput:
    log_probs_TK = -np.sort(numbers(frames, 4), axis=1) - 3
    units_TK = RANDOM.integers(0, 1000, (frames, 4))
    top = TopUnits.of(units_TK, log_probs_TK, log_probs_TK[:, 3], 1000)
    x_TD = numbers(frames, width) if width else NO_FRAMES
    return WindowOutput(x_TD, {"top": top, "all": numbers(frames, 3)}, numbers(frames, 4))


def of_all(part: WindowOutput, start: int = 0) -> Window:
    """All of it counts."""
    return Window(start, start + 320, 0, len(part.loudness))


@pytest.mark.parametrize("counts", [(7,), (3, 5, 1)])
@pytest.mark.parametrize("width", [0, 6])
def test_it_is_what_joining_at_the_end_gives(counts: tuple[int, ...], width: int) -> None:
    parts = [part(count, width=width) for count in counts]
    stitcher = Stitcher(frames=sum(counts))
    for each in parts:
        stitcher.add(of_all(each), each)
    found, expected = stitcher.output, WindowOutput.joined(parts)
    assert np.array_equal(found.frames, expected.frames)
    assert np.array_equal(found.loudness, expected.loudness)
    for name in ("top", "all"):
        assert np.array_equal(dense(found.heads[name]), dense(expected.heads[name]))


def test_nothing_of_any_frame() -> None:
    stitcher = Stitcher(frames=9)
    stitcher.add(Window(0, 3_200, 0, 9), WindowOutput(NO_FRAMES, {}))
    assert stitcher.output == WindowOutput(NO_FRAMES, {})


def test_no_more_is_held_than_the_result() -> None:
    tracemalloc.start()
    try:
        stitcher = Stitcher(frames=40 * 800)
        for at in range(40):
            window = Window(at, at + 1, 100, 800)
            stitcher.add(window, WindowOutput(NO_FRAMES, {"a": numbers(1000, 100)}))
        size = stitcher.output.nbytes
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1.1 * size


def test_windows_may_come_in_any_order_and_again() -> None:
    """The last of a window counts, and only what counts of it."""
    parts = [part(count, width=6) for count in (5, 4, 7)]
    windows = [Window(start, start + 320, 1, len(each.frames) - 2) for start, each in enumerate(parts)]
    stitcher = Stitcher()
    stitcher.add(windows[1], part(4, width=6))
    for number in (2, 0, 1):
        kept = stitcher.add(windows[number], parts[number])
        assert np.array_equal(kept.frames, parts[number].frames[1:-1])
        assert all(rows.base is None for rows in kept.rows), "all of the window is held"
    expected = WindowOutput.joined([each.kept(1, len(each.frames) - 2) for each in parts])
    for found, rows in zip(stitcher.output.rows, expected.rows, strict=True):
        assert np.array_equal(found, rows)
    assert stitcher.clip().duration_s == 322 / 16_000


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("frames", [None, 8])
def test_pooled_frames_are_not_held(how: Pooling, frames: int | None) -> None:
    """Of several layers too, beside the outputs of heads."""
    parts = [part(5, width=6), part(3, width=6)]
    several = [each._replace(frames=np.stack([each.frames, 2 * each.frames], axis=1)) for each in parts]
    stitcher = Stitcher(how, frames=frames)
    for start, each in enumerate(several):
        stitcher.add(of_all(each, start), each)
    x_TD = np.concatenate([each.frames for each in parts])
    expected_D = x_TD.mean(0) if how == "mean" else x_TD.max(0)
    np.testing.assert_allclose(stitcher.vectors, [expected_D, 2 * expected_D], rtol=1e-6)
    assert not stitcher.output.frames.size and len(stitcher.output.heads["all"]) == 8
    assert (stitcher.windows, stitcher.frames) == (2, 8)


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


def spans(waves: list[Waveform], layers: object, heads: object, *_: object) -> list[WindowOutput]:
    """A model whose frames are the samples: one a frame."""
    assert heads == ["top"] and set(layers) == {3}  # type: ignore[call-overload]
    return [WindowOutput(wave[:, None].copy(), {}) for wave in waves]


def test_a_clip_comes_in_its_order_whatever_the_batches() -> None:
    """The longest windows are run first, and these are not those at the beginning."""
    wave = np.arange(100, dtype=np.float32)
    bounds = [(0, 20, 0, 15), (10, 45, 5, 25), (35, 60, 5, 20), (50, 100, 10, 40)]
    windows = [Window(*bound) for bound in bounds]
    cut = [(window, wave[window.start : window.stop]) for window in windows]
    windowed = WindowedPass(spans, 3, ["top"], batch_s=0.005, lookahead_s=1.0)
    assert [piece.index for piece, _ in windowed.over(pieces([cut]))] == [3, 1, 2, 0]
    parts = list(windowed.in_order(cut))
    assert np.array_equal(np.concatenate([each.frames[:, 0] for each in parts]), wave)
    whole, reverse = windowed.stitched([cut, cut[::-1]])
    for stitcher in (whole, reverse):
        assert np.array_equal(stitcher.output.frames[:, 0], wave) and stitcher.frames == 100
    (pooled,) = windowed.stitched([cut], "max")
    assert pooled.vectors == [99]
