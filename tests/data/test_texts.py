"""Transcripts as targets: vocabulary, units, and texts that cannot be."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from speech_ssl.data.manifest import ManifestError, Utterance
from speech_ssl.data.texts import TextTargets, read_vocabulary, vocabulary_of
from speech_ssl.text import BLANK, Vocabulary


def clip(text: str, duration_s: float = 5.0) -> Utterance:
    return Utterance(Path("a.wav"), duration_s, "a.wav", text=text)


def targets(symbols: str = " abc") -> TextTargets:
    return TextTargets(Vocabulary((BLANK, *symbols)), hop=320, receptive_field=400)


def test_the_vocabulary_is_what_the_normalised_texts_hold() -> None:
    found = vocabulary_of([clip("B, a!"), clip(""), clip("\u00c4")])
    assert found.symbols == (BLANK, " ", "a", "b", "\u00e4")
    assert vocabulary_of([clip("b")]).symbols == (BLANK, " ", "b")  # words will need to be told apart


def test_without_any_text_it_says_so() -> None:
    with pytest.raises(ValueError, match="column 'text'"):
        vocabulary_of([clip(""), clip("...")])


def test_units_are_those_of_the_normalised_text() -> None:
    assert targets()(clip("Ab, c")) == [2, 3, 1, 4]


@pytest.mark.parametrize(
    ("text", "duration_s", "words"),
    [("", 5.0, "no text"), ("?!", 5.0, "no text"), ("abz", 5.0, "has no 'z'")],
)
def test_texts_that_cannot_be_targets_are_named(text: str, duration_s: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        targets()(clip(text, duration_s))


def test_a_text_needs_a_frame_a_unit_and_one_between_equal_ones() -> None:
    four_frames = (400 + 320 * 3) / 16_000
    assert targets()(clip("abca", four_frames)) == [2, 3, 4, 2]
    assert targets()(clip("aba", four_frames)) == [2, 3, 2]
    with pytest.raises(ValueError, match=r"a\.wav: its 4 characters need 5 frames, but 0\.085 s are 4"):
        targets()(clip("aabc", four_frames))
    with pytest.raises(ValueError, match="need 1 frames, but 0.02 s are 0"):
        targets()(clip("a", 0.02))


def test_targets_travel_to_workers() -> None:
    again = pickle.loads(pickle.dumps(targets()))
    assert again(clip("ab")) == [2, 3]


def test_a_vocabulary_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "characters.txt"
    path.write_text("a\nb\n|\n\u00df\n\n", encoding="utf-8")
    assert read_vocabulary(path).symbols == (BLANK, "a", "b", " ", "\u00df")
    path.write_text(" \r\na\r\n", encoding="utf-8")
    assert read_vocabulary(path).symbols == (BLANK, " ", "a")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a\nA\n", "'A' does not occur in normalised texts"),
        (b"a\n.\n", "'.' does not occur"),
        (b"a\nab\n", "single characters"),
        (b"a\na\n", "each once"),
        (b"", "at least one character"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_wrong_vocabulary_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "characters.txt"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=words) as caught:
        read_vocabulary(path)
    assert str(path) in str(caught.value)
