"""From frame outputs to labels, events and words: closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speech_ssl.inference import answers
from speech_ssl.inference.answers import (
    Choice,
    Clock,
    classify,
    frame_scores,
    settled,
    transcribe,
)
from speech_ssl.inference.card import check_tasks
from speech_ssl.inference.outputs import WindowOutput
from speech_ssl.inference.units import dense
from speech_ssl.model.heads import head
from speech_ssl.model.heads.specs import CTCSpec, EventPooling, EventsSpec

HOP_S, FIELD_S = 0.02, 0.025
TAGS = EventsSpec(labels=("dog", "rain"), exclusive=False, pooling="max")


def clock(frames: int) -> Clock:
    return Clock(HOP_S, FIELD_S, frames * HOP_S + 0.005)


def heard(*runs: tuple[int, int, int], frames: int = 100) -> np.ndarray:
    """Logits of +6 in runs of (label, first, last frame), -6 elsewhere."""
    logits_TK = np.full((frames, 2), -6.0, dtype=np.float32)
    for label, first, last in runs:
        logits_TK[first : last + 1, label] = 6.0
    return logits_TK


def told(outputs: np.ndarray, **choice) -> list[tuple[str, float, float]]:
    found = classify(outputs, TAGS, clock(len(outputs)), Choice(**choice))
    return [(e.label, round(e.start, 4), round(e.end, 4)) for e in found.events]


def test_events_span_their_frames() -> None:
    """Frame t is centred at 20 t + 12.5 ms, and reaches 10 ms to both sides."""
    assert told(heard((0, 20, 49), (1, 10, 30))) == [("rain", 0.2025, 0.6225), ("dog", 0.4025, 1.0025)]


def test_events_at_the_ends_reach_the_ends() -> None:
    assert told(heard((0, 0, 19), (0, 80, 99))) == [("dog", 0.0, 0.4025), ("dog", 1.6025, 2.005)]


def test_short_flickers_and_gaps_are_smoothed_away() -> None:
    outputs = heard((0, 20, 60), (0, 90, 92))
    outputs[40:43, 0] = -6.0
    assert told(outputs) == [("dog", 0.4025, 1.2225)]


@pytest.mark.parametrize("flicker", [(0, 0, 0), (0, 0, 1), (1, 99, 99), (1, 98, 99)])
def test_flickers_at_the_ends_are_smoothed_away_too(flicker: tuple[int, int, int]) -> None:
    assert told(heard(flicker, (0, 40, 60))) == [("dog", 0.8025, 1.2225)]


@pytest.mark.parametrize("cut", [10, 45, 50, 51, 69, 90])
def test_an_event_across_windows_is_one(cut: int) -> None:
    outputs = heard((0, 45, 69))
    windows = WindowOutput(outputs, {"tags": outputs}), WindowOutput(outputs, {"tags": outputs})
    whole = WindowOutput.joined([windows[0].kept(0, cut), windows[1].kept(cut, 100 - cut)])
    assert told(dense(whole.heads["tags"])) == [("dog", 0.9025, 1.4025)]


def test_labels_are_sorted_and_cut_and_the_threshold_holds_for_events() -> None:
    outputs = heard((1, 20, 60))
    outputs[:, 0] = -1.0
    found = classify(outputs, TAGS, clock(100), Choice(top_k=1))
    assert [label.label for label in found.labels] == ["rain"]
    assert found.labels[0].score == pytest.approx(1 / (1 + np.exp(-6)), rel=1e-5)
    assert {event.label for event in found.events} == {"rain"}
    assert {label for label, _, _ in told(outputs, threshold=0.2)} == {"rain", "dog"}
    assert found.events[0].score == pytest.approx(found.labels[0].score, rel=1e-5)


def test_a_label_that_the_clip_has_not_has_no_events() -> None:
    """With exclusive labels a frame must choose; the clip's own score decides what is told."""
    spec = EventsSpec(labels=("dog", "rain"), pooling="mean")
    outputs = heard((0, 0, 99), (1, 0, 29), (1, 30, 59))
    outputs[:30, 0] = -6.0
    found = classify(outputs, spec, clock(100), Choice())
    assert [label.label for label in found.labels] == ["dog", "rain"]
    assert {event.label for event in found.events} == {"dog"}
    assert sum(label.score for label in found.labels) == pytest.approx(1)


def test_an_event_that_is_short_in_its_clip_is_told() -> None:
    """114 of 499 frames leave the clip's mean logit far below the threshold. A head of another origin, of
    which nobody knows whether frames were taught, is believed; one taught by labels of clips is not."""
    outputs = heard((0, 200, 313), frames=499)
    spec = EventsSpec(labels=("dog", "rain"), exclusive=False, pooling="mean")
    for timed, expected in ((True, ["dog"]), (None, ["dog"]), (False, [])):
        found = classify(outputs, replace(spec, timed=timed), clock(499), Choice())
        assert [event.label for event in found.events] == expected
        assert found.labels[0].label == "dog" and found.labels[0].score < 0.1
    (event,) = classify(outputs, spec, clock(499), Choice()).events
    assert (event.start, event.end) == pytest.approx((4.0025, 6.2825))
    assert event.score == pytest.approx(1 / (1 + np.exp(-6)), rel=1e-5)


def test_frames_that_attention_passed_over_say_nothing() -> None:
    """Taught by clips: where the head does not listen, its frames are as they happen to be."""
    spec = EventsSpec(labels=("dog", "rain"), exclusive=False, pooling="attentive")
    outputs = np.concatenate([heard((0, 0, 59)), np.zeros((100, 2), np.float32)], axis=1)
    outputs[60:, 2] = 20.0
    assert classify(outputs, spec, clock(100), Choice()).events == []
    outputs[:60, 2] = 30.0
    assert [e.label for e in classify(outputs, spec, clock(100), Choice()).events] == ["dog"]


def test_frame_scores_and_edges() -> None:
    scores_TK, edges_s = frame_scores(heard((0, 2, 3), frames=5), TAGS, clock(5))
    assert (scores_TK > 0.5).tolist() == [[t in (2, 3), False] for t in range(5)]
    assert edges_s.tolist() == pytest.approx([0.0, 0.0225, 0.0425, 0.0625, 0.0825, 0.105])


@pytest.mark.parametrize("choice", [{"top_k": 0}, {"threshold": 0.0}, {"threshold": 1.5}])
def test_impossible_choices_are_refused(choice) -> None:
    with pytest.raises(ValueError, match="must be at least 1|a probability above 0"):
        Choice(**choice)


def test_tasks_are_checked() -> None:
    with pytest.raises(ValueError, match="'translation' is not known: choose from embedding"):
        check_tasks(["embedding", "translation"])
    with pytest.raises(ValueError, match="no task"):
        check_tasks([])


SPEECH = CTCSpec(vocabulary=("<blank>", " ", "a", "b", "c"))


def spoken(text: str, each: int = 4, lead: int = 10) -> np.ndarray:
    """A spike for each character, `each` frames apart."""
    frames = lead + each * len(text) + lead
    posteriors_TV = np.full((frames, 5), 1e-4, dtype=np.float32)
    posteriors_TV[:, 0] = 1.0
    for number, character in enumerate(text):
        t = lead + each * number
        posteriors_TV[t] = 1e-4
        posteriors_TV[t, SPEECH.vocabulary.index(character)] = 1.0
    return np.log(posteriors_TV / posteriors_TV.sum(1, keepdims=True))


class Spelled:
    """A decoder that says the same whatever it hears."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, log_probs_TV: np.ndarray) -> Spelled:
        return self


def test_best_path_and_decoder_agree_on_times() -> None:
    log_probs_TV = spoken("ab cab")
    best = transcribe(log_probs_TV, SPEECH, clock(len(log_probs_TV)), None)
    assert best.text == "ab cab" and [word.word for word in best.words] == ["ab", "cab"]
    decoded = transcribe(log_probs_TV, SPEECH, clock(len(log_probs_TV)), Spelled("ab cab"))
    assert decoded.text == best.text
    for one, other in zip(best.words, decoded.words, strict=True):
        assert (one.start, one.end) == pytest.approx((other.start, other.end), abs=0.021)
    assert best.words[0].start < 10 * HOP_S + FIELD_S / 2 < best.words[0].end <= best.words[1].start


def test_words_of_later_parts_are_moved_to_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    log_probs_TV = np.concatenate([spoken("ab", lead=40), spoken("ab", lead=40)])
    whole = transcribe(log_probs_TV, SPEECH, clock(len(log_probs_TV)), Spelled("ab"))
    assert [word.word for word in whole.words] == ["ab"]
    monkeypatch.setattr("speech_ssl.inference.answers.PART_S", len(log_probs_TV) * HOP_S * 0.6)
    parts = transcribe(log_probs_TV, SPEECH, clock(len(log_probs_TV)), Spelled("ab"))
    assert parts.text == "ab ab"
    half_s = len(log_probs_TV) / 2 * HOP_S
    first, second = parts.words
    assert second.start == pytest.approx(first.start + half_s, abs=1e-6)


class Parts(Spelled):
    """A decoder that goes on from what was said before."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.asked: list[tuple[str, bool]] = []

    def part(self, log_probs_TV: np.ndarray, *, before: str, last: bool) -> Spelled:
        self.asked.append((before, last))
        return self


def test_a_decoder_is_told_what_was_said_before_and_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    log_probs_TV = np.concatenate([spoken("ab", lead=40)] * 3)
    monkeypatch.setattr("speech_ssl.inference.answers.PART_S", len(log_probs_TV) * HOP_S * 0.4)
    decoder = Parts("ab")
    found = transcribe(log_probs_TV, SPEECH, clock(len(log_probs_TV)), decoder)
    assert found.text == "ab ab ab"
    assert decoder.asked == [("", False), ("ab", False), ("ab ab", True)]


def test_parts_of_a_language_without_spaces_are_joined_without(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = CTCSpec(vocabulary=("<blank>", "d", "a", "b", "c"))
    log_probs_TV = np.concatenate([spoken("ab", lead=40)] * 2)
    monkeypatch.setattr("speech_ssl.inference.answers.PART_S", len(log_probs_TV) * HOP_S * 0.6)
    found = transcribe(log_probs_TV, spec, clock(len(log_probs_TV)), Spelled("ab"))
    assert found.text == transcribe(log_probs_TV, spec, clock(len(log_probs_TV)), None).text == "abab"


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(0, 60))
def test_what_is_settled_is_not_changed_by_what_follows(seed: int, frames: int, more: int) -> None:
    generator = np.random.default_rng(seed)
    logits_TV = generator.normal(0, 3, (frames + more, len(SPEECH.vocabulary))).astype(np.float32)

    def text(part: slice) -> str:
        return transcribe(logits_TV[part], SPEECH, clock(frames), None).text

    cut = settled(logits_TV[:frames], SPEECH)
    first, rest = text(slice(0, cut)), text(slice(cut, None))
    assert " ".join(filter(None, (first, rest))) == text(slice(None))
    assert text(slice(0, frames)).startswith(first)


@pytest.mark.parametrize("pooling", ["mean", "max", "attentive"])
@pytest.mark.parametrize("exclusive", [True, False])
def test_answers_are_what_was_trained(pooling: EventPooling, exclusive: bool) -> None:
    """NumPy's logits of a clip and of its frames are those of `model.heads.head`."""
    spec = EventsSpec(labels=("dog", "rain", "bell"), pooling=pooling, exclusive=exclusive)
    outputs_TO = np.random.default_rng(0).normal(0, 20, (50, 6 if pooling == "attentive" else 3))
    outputs_TO = outputs_TO.astype(np.float32)
    outputs_1TO = torch.from_numpy(outputs_TO)[None]
    clip_1K = head.clip_logits(outputs_1TO, torch.ones(1, 50, dtype=torch.bool), spec)
    clip_K = answers.clip_logits(outputs_TO, spec)
    assert clip_K.dtype == np.float32
    np.testing.assert_allclose(clip_K, clip_1K[0].numpy(), rtol=1e-5, atol=1e-5)
    frames_TK = answers.frame_logits(outputs_TO, spec)
    np.testing.assert_array_equal(frames_TK, head.frame_logits(outputs_1TO, spec)[0].numpy())
    expected = torch.from_numpy(frames_TK)
    expected = expected.softmax(-1) if exclusive else expected.sigmoid()
    np.testing.assert_allclose(
        answers.probabilities(frames_TK, spec), expected.numpy(), rtol=1e-5, atol=1e-30
    )


def test_far_logits_are_no_error() -> None:
    logits = np.array([[0.0, 1000.0], [-1000.0, 0.0]], dtype=np.float32)
    both = EventsSpec(labels=("a", "b"), exclusive=False)
    np.testing.assert_array_equal(answers.probabilities(logits, both), [[0.5, 1.0], [0.0, 0.5]])
    one = EventsSpec(labels=("a", "b"))
    np.testing.assert_array_equal(answers.probabilities(logits, one), [[0.0, 1.0], [0.0, 1.0]])
