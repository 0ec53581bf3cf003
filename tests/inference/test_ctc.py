"""The best path, forced alignment, the times of words, and cuts in pauses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from speech_ssl.inference.ctc.best_path import PAUSE, align, greedy, split_at_blanks
from speech_ssl.inference.ctc.word_times import Word
from speech_ssl.text import BLANK, Vocabulary
from tests.inference.posteriors import (
    HOP_S,
    LETTERS,
    WORDS,
    Planted,
    on_path,
    path_log_prob,
    path_of,
    random_log_probs,
    text_of,
)

ABC = Vocabulary((BLANK, *"abc"))
SPACED = Vocabulary((BLANK, *" ab"))


def check_times(words: list[Word], frames: int) -> None:
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert all(word.start < word.end for word in words)
    assert not times or (times[0] >= 0 and times[-1] <= frames * HOP_S + 1e-9)
    assert all(0 <= word.score <= 1 for word in words)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("aab", "ab"),
        ("a-ab", "aab"),
        ("-a--", "a"),
        ("----", ""),
        ("", ""),
        ("ab--ba", "abba"),
        (" a  b", "a b"),
        ("a - - b- ", "a b"),
        ("  -  ", ""),
    ],
)
def test_the_best_path_collapses(path: str, text: str) -> None:
    log_probs_TV = on_path(path_of(path, SPACED), 4)
    found, words = greedy(log_probs_TV, SPACED, HOP_S)
    assert found == text
    assert [word.word for word in words] == text.split()
    check_times(words, len(path))


def test_without_a_space_in_the_vocabulary_all_is_one_word() -> None:
    text, words = greedy(on_path(path_of("-ab-c", ABC), 4), ABC, HOP_S)
    assert (text, [word.word for word in words]) == ("abc", ["abc"])


def test_a_score_is_the_geometric_mean_over_units() -> None:
    log_probs_TV = np.log(
        np.array([[0.1, 0.1, 0.8], [0.1, 0.1, 0.8], [0.3, 0.6, 0.1], [0.8, 0.1, 0.1]], np.float32)
    )
    _, words = greedy(log_probs_TV, Vocabulary((BLANK, *"ab")), HOP_S)
    assert words[0].score == pytest.approx(math.sqrt(0.8 * 0.6))


def test_units_that_hold_on_are_covered_whole() -> None:
    _, words = greedy(on_path(path_of("aaabbb  bbbaaa-", SPACED), 4), SPACED, 0.01)
    assert [time for word in words for time in (word.start, word.end)] == pytest.approx([0, 0.07, 0.07, 0.14])


def test_neighbours_meet_in_the_middle_of_the_space() -> None:
    _, words = greedy(on_path(path_of("a---b  a---b", SPACED), 4), SPACED, 0.01)
    assert words[0].end == words[1].start == pytest.approx(0.06)


def test_a_lone_spike_is_the_middle_of_its_unit() -> None:
    """Spikes are 4 frames apart, so that a unit is 2 frames to each side; far from there is silence."""
    _, words = greedy(
        on_path(path_of("-" * 10 + "a---b---a" + "-" * 5 + " " + "-" * 9 + "b---a", SPACED), 4), SPACED, 0.02
    )
    expected = [(0.17, 0.41), (0.65, 0.78)]
    for word, (start, end) in zip(words, expected, strict=True):
        assert (word.start, word.end) == pytest.approx((start, end))


def test_words_end_and_begin_where_it_is_loud() -> None:
    """A pause of 100 ms around the space, one of 60 ms before the first word, noise after the last."""
    log_probs_TV = on_path(path_of("----a-b---- ----a-b----", SPACED), 4)
    loudness_TE = np.ones((23, 4), dtype=np.float32)
    loudness_TE[:3] = loudness_TE[9, 2:] = loudness_TE[10:14] = loudness_TE[14, :2] = 1e-4
    first, second = greedy(log_probs_TV, SPACED, 0.02, loudness_TE)[1]
    assert (first.start, first.end) == pytest.approx((0.06, 0.19))
    assert (second.start, second.end) == pytest.approx((0.29, 0.39)), "half a step beyond the last spike"
    loudness_TE[10:13] = 1.0  # what is left is too short for a pause
    first, second = greedy(log_probs_TV, SPACED, 0.02, loudness_TE)[1]
    assert first.end == second.start == pytest.approx(0.27)


def test_a_pause_is_told_from_faint_noise_but_not_from_loud() -> None:
    """17 and 7 dB below the words: then they meet where it is quietest."""
    log_probs_TV = on_path(path_of("a-b----- ------a-b", SPACED), 4)
    for noise, end, start in ((0.02, 0.10, 0.24), (0.2, 0.17, 0.17)):
        loudness_TE = np.full((18, 4), noise, dtype=np.float32)
        loudness_TE[:5] = loudness_TE[12:] = 1.0
        first, second = greedy(log_probs_TV, SPACED, 0.02, loudness_TE)[1]
        assert (first.end, second.start) == pytest.approx((end, start))


def test_words_that_meet_part_where_it_is_quietest() -> None:
    """Between the spikes of "b" (frame 2) and "a" (frame 9); of equals, nearest to the space's middle."""
    log_probs_TV = on_path(path_of("a-b---  -a-b", SPACED), 4)
    even_TE = np.ones((12, 4), dtype=np.float32)
    (first, second) = greedy(log_probs_TV, SPACED, 0.01, even_TE)[1]
    middle = greedy(log_probs_TV, SPACED, 0.01)[1][0].end
    assert middle == pytest.approx(0.07) and first.end == second.start == pytest.approx(0.07, abs=0.0013)
    for frame, quarter in ((3, 0), (4, 2), (8, 3)):
        dip_TE = even_TE.copy()
        dip_TE[frame, quarter] = 0.01
        first, second = greedy(log_probs_TV, SPACED, 0.01, dip_TE)[1]
        assert first.end == second.start == pytest.approx(0.01 * (frame + (quarter + 0.5) / 4), abs=0.005)
        assert align(log_probs_TV, "ab ab", SPACED, 0.01, dip_TE)[0].end == first.end
    outside_TE = even_TE.copy()
    outside_TE[[0, 11]] = 0.0
    assert greedy(log_probs_TV, SPACED, 0.01, outside_TE)[1][0].end == pytest.approx(0.07, abs=0.0013)


@settings(max_examples=40)
@given(words=WORDS, seed=st.integers(0, 1000))
def test_planted_words_are_found_within_40_ms(words: list[str], seed: int) -> None:
    planted = Planted(words, seed)
    text, found = greedy(planted.log_probs_TV, LETTERS, HOP_S)
    assert text == planted.text
    for word, (start, end) in zip(found, planted.times, strict=True):
        assert word.start == pytest.approx(start, abs=0.04)
        assert word.end == pytest.approx(end, abs=0.04)
    assert align(planted.log_probs_TV, text, LETTERS, HOP_S) == [
        Word(word.word, word.start, word.end, pytest.approx(word.score)) for word in found
    ]


@given(seed=st.integers(0, 10_000), frames=st.integers(0, 40), sharpness=st.sampled_from([0.5, 3.0, 10.0]))
def test_words_are_in_order_and_within_the_recording(seed: int, frames: int, sharpness: float) -> None:
    log_probs_TV = random_log_probs(frames, 4, seed, sharpness)
    rng = np.random.default_rng(seed)
    loud_T = rng.random(frames) < np.repeat(rng.random(frames // 5 + 1), 5)[:frames].round()  # in stretches
    loudness_TE = np.where(loud_T[:, None], rng.random((frames, 4)), 1e-5).astype(np.float32)
    heard = loudness_TE if seed % 3 else None
    text, words = greedy(log_probs_TV, SPACED, HOP_S, heard)
    assert [word.word for word in words] == text.split()
    check_times(words, frames)
    aligned = align(log_probs_TV, text, SPACED, HOP_S, heard)
    assert [word.word for word in aligned] == text.split()
    check_times(aligned, frames)


@given(seed=st.integers(0, 10_000), frames=st.integers(1, 6), text=st.text("ab ", max_size=4))
def test_alignment_is_the_best_path_of_its_text(seed: int, frames: int, text: str) -> None:
    text = " ".join(text.split())
    assume(text)
    log_probs_TV = random_log_probs(frames, 4, seed)
    spelled = SPACED.encode(text)
    paths = [
        path
        for path in itertools.product(range(4), repeat=frames)
        if [unit for unit, _ in itertools.groupby(path) if unit] == spelled
    ]
    if not paths:
        with pytest.raises(ValueError, match=f"need at least .* frames, and there are {frames}"):
            align(log_probs_TV, text, SPACED, HOP_S)
        return
    best = max(paths, key=lambda path: path_log_prob(log_probs_TV, path))
    assert text_of(best, SPACED) == text
    expected = greedy(on_path(best, 4), SPACED, HOP_S)[1]
    found = align(log_probs_TV, text, SPACED, HOP_S)
    assert [(w.word, w.start, w.end) for w in found] == [(w.word, w.start, w.end) for w in expected]


def test_alignment_goes_by_its_text_not_by_the_best_path() -> None:
    log_probs_TV = on_path(path_of("-a-a--b-", SPACED), 4)
    found = align(log_probs_TV, " a\n b ", SPACED, HOP_S)
    assert [word.word for word in found] == ["a", "b"]
    assert found[0].score > 0.5 and found[1].score > 0.5
    assert align(log_probs_TV, "  ", SPACED, HOP_S) == []


def test_what_never_happens_is_aligned_with_a_score_of_0() -> None:
    log_probs_TV = np.full((4, 4), -np.inf, np.float32)
    log_probs_TV[:, 0] = 0
    (word,) = align(log_probs_TV, "ab", SPACED, HOP_S)
    assert word.score == pytest.approx(0, abs=1e-30)


@given(
    seed=st.integers(0, 10_000),
    frames=st.integers(0, 300),
    most=st.integers(1, 120),
    blanks=st.sampled_from([0.0, 4.0, 9.0]),
)
def test_parts_cover_every_frame_once(seed: int, frames: int, most: int, blanks: float) -> None:
    logits_TV = np.array(random_log_probs(frames, 4, seed, 2.0), dtype=np.float64)
    logits_TV[:, 0] += blanks
    parts = split_at_blanks((logits_TV - logits_TV.max(initial=0) - 1).astype(np.float32), most)
    assert [frame for part in parts for frame in range(part.start, part.stop)] == list(range(frames))
    assert all(0 < part.stop - part.start <= most for part in parts)


@given(seed=st.integers(0, 10_000), words=st.integers(1, 40))
def test_cuts_are_never_in_a_word_when_there_are_pauses(seed: int, words: int) -> None:
    rng = np.random.default_rng(seed)
    path: list[int] = []
    within = []
    for _ in range(words):
        path += [0] * int(rng.integers(14, 60))
        within.append(range(len(path) + 1, len(path) + 21))
        path += ([1, 0, 0, 0, 0] * 4) + [1]
    parts = split_at_blanks(on_path(path, 3, 0.95), 100)
    assert not [part for part in parts for word in within if part.start in word]
    assert len(parts) <= 2 * len(path) / 50 + 1


def test_a_long_silence_is_cut_before_what_follows_it() -> None:
    path = [0] * 95 + [1, 2] * 20 + [0] * 40
    parts = split_at_blanks(on_path(path, 3, 0.95), 100)
    assert [part.start for part in parts] == [0, 95 - PAUSE]


@pytest.mark.parametrize(("spoken", "silent", "first"), [(60, 24, 72), (0, 120, 100)])
def test_the_rest_of_a_pause_is_not_a_part_of_its_own(spoken: int, silent: int, first: int) -> None:
    """After the first cut only speech without pauses is left: a cut in it, but not a part of a few frames."""
    path = [1, 2] * (spoken // 2) + [0] * silent + [1, 2] * 150
    parts = split_at_blanks(on_path(path, 3, 0.95), 100)
    assert parts[0].stop == first
    assert parts[1].stop - parts[1].start >= 50


def test_the_latest_of_long_pauses_and_the_middle_of_the_longest_of_short_ones() -> None:
    def cut_of(*pauses: int) -> int:
        path = [step for pause in pauses for step in ([1, 2] * 10 + [0] * pause)] + [1, 2] * 50
        return split_at_blanks(on_path(path, 3, 0.95), 130)[1].start

    assert cut_of(40, 34) == 20 + 40 + 20 + 34 - PAUSE
    assert cut_of(12, 8) == 20 + 6


def test_without_a_pause_the_cut_is_where_a_blank_is_most_probable() -> None:
    log_probs_TV = on_path([1] * 100, 3, 0.9)
    log_probs_TV[[10, 47], 0] = np.log(0.3)
    log_probs_TV[10, 0] = np.log(0.5)  # too early to be worth it
    assert split_at_blanks(log_probs_TV, 60) == [slice(0, 47), slice(47, 100)]


def test_parts_hear_the_same_words_at_the_same_times() -> None:
    planted = Planted(["abc", "de", "fgh", "hag", "bed"] * 20, seed=3)
    parts = split_at_blanks(planted.log_probs_TV, 200)
    assert len(parts) > 10
    words = [
        (word.word, word.start + part.start * HOP_S, word.end + part.start * HOP_S)
        for part in parts
        for word in greedy(planted.log_probs_TV[part], LETTERS, HOP_S)[1]
    ]
    assert [word for word, _, _ in words] == planted.text.split()
    for (_, start, end), (true_start, true_end) in zip(words, planted.times, strict=True):
        assert (start, end) == pytest.approx((true_start, true_end), abs=0.04)


def test_what_cannot_be_decoded() -> None:
    log_probs_TV = on_path([1, 2, 0], 4)
    with pytest.raises(ValueError, match="the vocabulary has no 'x', as in 'a x'"):
        align(log_probs_TV, "a x", SPACED, HOP_S)
    with pytest.raises(ValueError, match="2 characters need at least 3 frames, and there are 2"):
        align(log_probs_TV[:2], "aa", SPACED, HOP_S)
    with pytest.raises(ValueError, match=r"shape \(frames, 4\), not \(3, 3\)"):
        greedy(log_probs_TV[:, :3], SPACED, HOP_S)
    with pytest.raises(ValueError, match=r"not \(4,\)"):
        greedy(log_probs_TV[0], SPACED, HOP_S)
    with pytest.raises(ValueError, match="NaN"):
        greedy(np.full((3, 4), np.nan, np.float32), SPACED, HOP_S)
    with pytest.raises(ValueError, match="most_frames must be at least 1, not 0"):
        split_at_blanks(log_probs_TV, 0)
