"""Windows cover every frame of every length once, and know enough around each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech_ssl.audio import AudioError
from speech_ssl.inference.chunking import Chunker, Window
from speech_ssl.model import presets
from speech_ssl.model.config import Convolutions
from speech_ssl.model.frontends.wave import Frontend

OTHER = Convolutions(channels=(4,) * 3, kernels=(9, 4, 3), strides=(4, 3, 1))
PARTS = {"tiny": presets.tiny().frontend, "other": OTHER}
frontends = {name: Frontend(part, "gelu", "published") for name, part in PARTS.items()}


@st.composite
def chunkers(draw, multiples: tuple[int, ...] = (1, 2, 8)) -> Chunker:
    frontend = frontends[draw(st.sampled_from(sorted(frontends)))]
    multiple = draw(st.sampled_from(multiples))
    context = draw(st.integers(0, 30 // multiple))
    window = draw(st.integers(2 * context + 1, 2 * context + 60 // multiple))
    context, window = context * multiple, window * multiple
    return Chunker(frontend.hop, frontend.receptive_field, window, context, multiple)


samples = st.integers(0, 150_000)


@given(st.sampled_from(sorted(frontends)), samples)
def test_frame_count_is_that_of_the_convolutions(name: str, length: int):
    frontend = frontends[name]
    chunker = Chunker(frontend.hop, frontend.receptive_field, 10, 2)
    assert chunker.frame_count(length) == frontend.frame_count(length)


def kept(chunker: Chunker, window: Window) -> range:
    first = window.start // chunker.hop + window.skip
    return range(first, first + window.keep)


@given(chunkers(), samples)
def test_windows_keep_each_frame_once_with_context(chunker: Chunker, length: int):
    total = chunker.frame_count(length)
    if not total:
        with pytest.raises(AudioError) as caught:
            chunker.plan(length)
        assert caught.value.code == "too_short"
        return
    plan = chunker.plan(length)
    assert [frame for window in plan for frame in kept(chunker, window)] == list(range(total))
    for window in plan:
        frames = chunker.frame_count(window.stop - window.start)
        assert window.start % chunker.hop == 0 and 0 <= window.start < window.stop <= length
        assert window.keep > 0 and window.skip + window.keep <= frames <= chunker.window
        # Context on both sides, but at the ends of the clip.
        assert window.skip >= chunker.context or window.start == 0
        assert frames - window.skip - window.keep >= chunker.context or window.stop == length
        assert window.seconds <= chunker.window_s
        if len(plan) > 1:
            assert frames > chunker.window // 2 - chunker.multiple  # none is tiny
        assert window.start // chunker.hop % chunker.multiple == window.skip % chunker.multiple == 0
        assert window.keep % chunker.multiple == 0 or window is plan[-1]
    assert (len(plan) == 1) == (total <= chunker.window)


@given(chunkers(multiples=(1,)), samples)
def test_the_last_two_share_equally(chunker: Chunker, length: int):
    if chunker.frame_count(length) > chunker.window:
        *_, one, other = chunker.plan(length)
        left = one.keep + one.skip + other.keep
        assert (one.keep + one.skip, other.keep) == (left // 2, left - left // 2)


@given(chunkers(), samples, st.data())
def test_a_stream_is_cut_as_the_whole(chunker: Chunker, length: int, data: st.DataObject):
    wave = np.arange(length, dtype=np.float32)
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=6)))
    blocks = [block for block in np.split(wave, cuts) if len(block)]
    if length < chunker.receptive_field:
        with pytest.raises(AudioError):
            list(chunker.cut(blocks))
        return
    pairs = list(chunker.cut(blocks))
    assert [window for window, _ in pairs] == chunker.plan(length)
    for window, piece in pairs:
        assert np.array_equal(piece, wave[window.start : window.stop])


def test_a_stream_holds_two_windows_at_most():
    chunker = Chunker(320, 400, 100, 10)
    read = 0

    def blocks():
        nonlocal read
        for _ in range(400):
            read += 4000
            yield np.zeros(4000, dtype=np.float32)

    most = 0
    for window, _ in chunker.cut(blocks()):
        most = max(most, read - window.start)
    assert most <= (2 * chunker.window + 1) * 320 + 400 + 4000


def test_seconds_become_frames():
    chunker = Chunker.of_seconds(320, 400, window_s=20.0, context_s=2.0)
    assert (chunker.window, chunker.context) == (999, 100)
    assert len(chunker.plan(20 * 16000)) == 1 and len(chunker.plan(21 * 16000)) == 2
    with pytest.raises(ValueError, match="more than twice"):
        Chunker.of_seconds(320, 400, window_s=3.0, context_s=2.0)


@pytest.mark.parametrize(("multiple", "expected"), [(1, (999, 100)), (2, (998, 100)), (8, (992, 104))])
def test_seconds_become_multiples_of_frames(multiple: int, expected: tuple[int, int]):
    chunker = Chunker.of_seconds(320, 400, window_s=20.0, context_s=2.0, multiple=multiple)
    assert (chunker.window, chunker.context, chunker.multiple) == (*expected, multiple)


@pytest.mark.parametrize(("window", "context", "multiple"), [(99, 10, 2), (100, 9, 2), (100, 10, 0)])
def test_sizes_that_are_no_multiples_are_refused(window: int, context: int, multiple: int):
    with pytest.raises(ValueError, match=f"must be multiples of {multiple}"):
        Chunker(320, 400, window, context, multiple)


def test_the_error_of_a_short_clip_says_what_is_needed():
    with pytest.raises(AudioError, match=r"0.01 s is too short: .*0.025 s \(400 samples"):
        Chunker(320, 400, 100, 10).plan(160)
