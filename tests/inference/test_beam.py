"""Prefix beam search against the sum over all paths, without and with a lexicon and a language model."""

from __future__ import annotations

import math
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speech_ssl.data.ngram import write_arpa
from speech_ssl.inference.ctc.beam import BeamSearch, Hypothesis
from speech_ssl.inference.ctc.beam_words import CHARACTER_SCORE
from speech_ssl.inference.ctc.best_path import greedy
from speech_ssl.text import BLANK, SPACE, Vocabulary
from tests.arpa import Arpa
from tests.inference.posteriors import (
    HOP_S,
    LETTERS,
    LogProbs,
    Planted,
    all_texts,
    log_softmax,
    on_path,
    path_of,
    random_log_probs,
)

ALL = 5000  # more prefixes than there are
TEXTS = ["a", "b a", "ab ab", "a ab", "ab a a"]
SEEDS = st.integers(0, 10_000)
FEW = settings(max_examples=25)


def check_against(search: BeamSearch, log_probs_TV: LogProbs, expected: dict[str, float]) -> None:
    """All texts have their scores, the best first."""
    found = search.n_best(log_probs_TV, ALL)
    assert {h.text: h.score for h in found} == pytest.approx(expected, abs=2e-5)  # KenLM's are float32
    scores = [h.score for h in found]
    assert len(found) == len(expected) and scores == sorted(scores, reverse=True)
    assert search(log_probs_TV) == found[0]


@FEW
@given(
    seed=SEEDS,
    frames=st.integers(0, 5),
    characters=st.sampled_from(["a", "ab", "abc", " a", " ab", "b a"]),
    sharpness=st.sampled_from([0.3, 1.5, 5.0]),
)
def test_a_wide_beam_is_the_sum_over_all_paths(
    seed: int, frames: int, characters: str, sharpness: float
) -> None:
    vocabulary = Vocabulary((BLANK, *characters))
    log_probs_TV = random_log_probs(frames, len(vocabulary.symbols), seed, sharpness)
    check_against(BeamSearch(vocabulary, beam=ALL), log_probs_TV, all_texts(log_probs_TV, vocabulary))


def test_many_paths_outweigh_the_best_one() -> None:
    vocabulary = Vocabulary((BLANK, "a"))
    log_probs_TV = np.log(np.array([[0.6, 0.4], [0.6, 0.4]], np.float32))
    assert greedy(log_probs_TV, vocabulary, 0.02)[0] == ""
    best = BeamSearch(vocabulary)(log_probs_TV)
    assert best.text == "a" and math.exp(best.score) == pytest.approx(1 - 0.36)


@FEW
@given(seed=SEEDS, beam=st.integers(1, 4))
def test_a_narrow_beam_loses_paths_but_invents_none(seed: int, beam: int) -> None:
    vocabulary = Vocabulary((BLANK, *" ab"))
    log_probs_TV = random_log_probs(6, 4, seed)
    sums = {h.text: h.score for h in BeamSearch(vocabulary, beam=ALL).n_best(log_probs_TV, ALL)}
    found = BeamSearch(vocabulary, beam=beam).n_best(log_probs_TV, ALL)
    assert 1 <= len(found) <= beam
    assert all(hypothesis.score <= sums[hypothesis.text] + 1e-9 for hypothesis in found)


@given(seed=SEEDS, frames=st.just(12), beam=st.integers(1, 9))
@example(seed=6, frames=12, beam=4)  # those that were dropped and come back are rare
@example(seed=10, frames=60, beam=8)
@FEW
def test_each_prefix_is_in_the_beam_once(seed: int, frames: int, beam: int) -> None:
    """Also those that grow into one that is there, and those that were dropped and come back."""
    log_probs_TV = random_log_probs(frames, 3, seed, 1.0)
    found = BeamSearch(Vocabulary((BLANK, *"ab")), beam=beam).n_best(log_probs_TV, ALL)
    assert len(found) == beam


def test_clear_speech_is_heard_by_a_narrow_beam() -> None:
    planted = Planted(["abc", "de", "fgh"], seed=0)
    assert BeamSearch(LETTERS, beam=2)(planted.log_probs_TV).text == planted.text


@FEW
@given(seed=SEEDS, lexicon=st.sets(st.sampled_from(["a", "b", "ab", "ba", "aab"]), min_size=1))
def test_a_lexicon_leaves_the_texts_of_its_words(seed: int, lexicon: set[str]) -> None:
    vocabulary = Vocabulary((BLANK, *" ab"))
    log_probs_TV = random_log_probs(5, 4, seed)
    allowed = {
        text: score
        for text, score in all_texts(log_probs_TV, vocabulary).items()
        if lexicon.issuperset(text.split())
    }
    check_against(BeamSearch(vocabulary, beam=ALL, lexicon=lexicon), log_probs_TV, allowed)


def lm_score(lm: Arpa, text: str, weight: float, word_score: float) -> float:
    """What the language model adds to a text, by the definition; unknown words are spelled."""
    words = text.split()
    spelling = sum(CHARACTER_SCORE * len(word) for word in words if (word,) not in lm.probability)
    return weight * (sum(lm.steps(words)) + spelling) + word_score * len(words)


@FEW
@given(
    seed=SEEDS,
    weight=st.sampled_from([0.0, 0.5, 2.0]),
    word_score=st.sampled_from([-1.0, 1.5]),
    lexicon=st.sampled_from([None, ["a", "ab"], ["a", "b", "bb"]]),
)
def test_a_language_model_adds_what_it_says_of_the_words(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    weight: float,
    word_score: float,
    lexicon: list[str] | None,
) -> None:
    pytest.importorskip("kenlm")
    path = tmp_path_factory.getbasetemp() / "few.arpa"
    write_arpa(TEXTS, path)
    lm, vocabulary = Arpa(path), Vocabulary((BLANK, *" ab"))
    log_probs_TV = random_log_probs(5, 4, seed)
    expected = {
        text: score + lm_score(lm, text, weight, word_score)
        for text, score in all_texts(log_probs_TV, vocabulary).items()
        if lexicon is None or set(lexicon).issuperset(text.split())
    }
    search = BeamSearch(
        vocabulary, beam=ALL, lexicon=lexicon, lm=path, lm_weight=weight, word_score=word_score
    )
    check_against(search, log_probs_TV, expected)


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    pytest.importorskip("kenlm")
    path = tmp_path / "songs.arpa"
    write_arpa(["the band played on", "the band sang", "a bend in the road", "the road"] * 3, path)
    return path


def ambiguous(text: str, wrong: str) -> LogProbs:
    """Spikes of a text; where the other differs, its character is a little more probable."""
    path, other = path_of("-".join(text), LETTERS), path_of("-".join(wrong), LETTERS)
    logits_TV = np.zeros((len(path), len(LETTERS.symbols)))
    logits_TV[np.arange(len(path)), path] = 8.0
    logits_TV[np.arange(len(path)), other] += np.where(np.array(path) == other, 0.0, 8.5)
    return log_softmax(logits_TV)


def test_the_language_model_decides_what_the_sound_leaves_open(songs: Path) -> None:
    log_probs_TV = ambiguous("the band sang", "the bend sang")
    assert BeamSearch(LETTERS)(log_probs_TV).text == "the bend sang"
    assert BeamSearch(LETTERS, lm=songs)(log_probs_TV).text == "the band sang"
    assert BeamSearch(LETTERS, lm=songs, lm_weight=0.0)(log_probs_TV).text == "the bend sang"


def test_parts_of_a_recording_are_one_sentence_to_the_language_model(tmp_path: Path) -> None:
    """Cut in a pause, it is what it is at once; each part a sentence of its own, the name would be lost."""
    pytest.importorskip("kenlm")
    path = tmp_path / "lm.arpa"
    write_arpa(["we saw new york again", "the fork again", "fork again", "york"] + ["fork"] * 6, path)
    search = BeamSearch(LETTERS, lm=path, lm_weight=2.0)
    silence = on_path([0] * 20, len(LETTERS.symbols), 0.99)
    parts = [ambiguous("we saw new ", "we saw new "), silence, ambiguous("york again", "fork again")]
    log_probs_TV = np.concatenate(parts)
    cut = len(parts[0]) + 10
    first = search.part(log_probs_TV[:cut], before="", last=False)
    second = search.part(log_probs_TV[cut:], before=first.text, last=True)
    whole = search(log_probs_TV)
    assert f"{first.text} {second.text}" == whole.text == "we saw new york again"
    assert first.score + second.score == pytest.approx(whole.score, abs=0.01)
    assert search(log_probs_TV[cut:]).text == "fork again"


@pytest.mark.parametrize("seed", [0, 1, 3, 5, 12, 26])
def test_a_narrow_beam_is_led_by_the_language_model_in_the_middle_of_words(songs: Path, seed: int) -> None:
    """Noise, of which the best path makes things like "a bend in shk royd txe band played ofn"."""
    said = "a bend in the road the band played on"
    path = path_of("--".join(said), LETTERS)
    logits_TV = np.random.default_rng(seed).normal(size=(len(path), len(LETTERS.symbols))) * 1.5
    logits_TV[np.arange(len(path)), path] += 5.5
    log_probs_TV = log_softmax(logits_TV)
    assert greedy(log_probs_TV, LETTERS, HOP_S)[0] != said
    assert BeamSearch(LETTERS, beam=4, lm=songs)(log_probs_TV).text == said


def test_clear_words_that_the_language_model_does_not_know_are_heard(songs: Path) -> None:
    planted = Planted(["the", "quick", "fox", "sang"], seed=1)
    assert BeamSearch(LETTERS, lm=songs)(planted.log_probs_TV).text == planted.text
    known = BeamSearch(LETTERS, lm=songs, lexicon=["the", "band", "sang", "on", "road"])
    assert set(known(planted.log_probs_TV).text.split()) <= {"the", "band", "sang", "on", "road"}


def test_a_lexicon_comes_from_a_file_and_leaves_out_what_cannot_be_spelled(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\ufeffband\r\n\nbend\nBAND\nna\u00efve\n", encoding="utf-8")
    search = BeamSearch(LETTERS, lexicon=path)
    assert search.skipped == 2
    assert search(ambiguous("bind", "bond")).text in ("band", "bend")
    assert BeamSearch(LETTERS).skipped == 0


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_lexicon_is_read_however_its_characters_are_composed(form: Any) -> None:
    """And so is the vocabulary: texts are in its own."""
    for theirs in ("NFC", "NFD"):
        given = [unicodedata.normalize(form, word) for word in ("caf\u00e9", "na\u00efve", "tee")]
        letters = sorted(set(unicodedata.normalize(theirs, "caf\u00e9na\u00efvet")))
        vocabulary = Vocabulary((BLANK, SPACE, *letters))
        search = BeamSearch(vocabulary, lexicon=given)
        assert search.skipped == 0
        said = unicodedata.normalize(theirs, "caf\u00e9 tee")
        path = path_of("-".join(said), vocabulary)
        assert search(on_path(path, len(vocabulary.symbols), 0.9)).text == said


def test_a_word_that_breaks_off_is_left_out() -> None:
    log_probs_TV = on_path(path_of("b-a-n-d- -b-a", LETTERS), len(LETTERS.symbols), 0.99)
    (found,) = BeamSearch(LETTERS, lexicon=["band"], beam=1).n_best(log_probs_TV, 5)
    assert found.text == "band" and -1 < found.score < 0


def test_the_best_come_first_and_no_more_than_asked() -> None:
    found = BeamSearch(LETTERS).n_best(ambiguous("band", "bend"), 2)
    assert [hypothesis.text for hypothesis in found] == ["bend", "band"]
    assert found[0].score > found[1].score


def test_nothing_said_and_nothing_possible() -> None:
    units = len(LETTERS.symbols)
    assert BeamSearch(LETTERS)(np.zeros((0, units), np.float32)) == Hypothesis("", 0.0)
    impossible_TV = np.full((3, units), -np.inf, np.float32)
    assert np.isfinite(BeamSearch(LETTERS, lexicon=["a"])(impossible_TV).score)


@pytest.mark.parametrize(
    ("lexicon", "message"),
    [
        ([], "the lexicon has no words"),
        (["", ""], "the lexicon has no words"),
        (["BAND", "ROAD"], "can spell none of the lexicon's 2 words, such as 'BAND'"),
        (["new york"], "'new york': give one word per line"),
        (Path("no/words.txt"), "no/words.txt: the lexicon cannot be read"),
    ],
)
def test_a_lexicon_that_cannot_be_used(lexicon: Path | list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        BeamSearch(LETTERS, lexicon=lexicon)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read .No such file"),
        (b"", "neither an ARPA file"),
        (b"the band\nplayed on\n", "neither an ARPA file"),
        (b"\x7fELF" + bytes(range(256)) * 9, "neither an ARPA file"),
        (b"\\data\\\nngram 1=9\nngram 2=9\n\n\\1-grams:\n-1\ta\t0\n", "neither an ARPA file"),
        (b"\x1f\x8b\x08\x00", "is compressed: unpack it"),
    ],
)
def test_a_language_model_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    pytest.importorskip("kenlm")
    path = tmp_path / "lm.arpa"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        BeamSearch(LETTERS, lm=path)
    assert "\n" not in str(caught.value) and "lm.arpa" in str(caught.value)


def test_a_language_model_in_capitals_is_noticed(tmp_path: Path) -> None:
    pytest.importorskip("kenlm")
    write_arpa(["THE BAND PLAYED ON"], tmp_path / "lm.arpa")
    for lexicon in (None, ["the", "band"]):
        with pytest.raises(ValueError, match="knows no word that this vocabulary can spell"):
            BeamSearch(LETTERS, lm=tmp_path / "lm.arpa", lexicon=lexicon)


CAPITALS = Vocabulary((BLANK, *" ABCDEFGHIJKLMNOPQRSTUVWXYZ"))


def test_a_cased_language_model_is_none_of_a_vocabulary_of_capitals(tmp_path: Path) -> None:
    """That knows "I" and "A" all the same. Turned about, most words of a cased one fit."""
    pytest.importorskip("kenlm")
    cased = ["I heard a band", "A band played on", "I saw the USA", "we played in London"]
    write_arpa(cased, tmp_path / "lm.arpa")
    with pytest.raises(ValueError, match=r"lm.arpa: 3 of 13 words fit, 13 would in capitals: give"):
        BeamSearch(CAPITALS, lm=tmp_path / "lm.arpa")
    with pytest.raises(ValueError, match=r"lm.arpa: 2 of 6 words fit, 5 would in small letters"):
        lexicon = ["I", "A", "BAND", "PLAYED", "HEARD", "ON"]
        BeamSearch(CAPITALS, lm=tmp_path / "lm.arpa", lexicon=lexicon)
    with pytest.raises(ValueError, match=r"the lexicon: 2 of 5 words fit, 5 would in capitals"):
        BeamSearch(CAPITALS, lexicon=["I", "A", "band", "played", "heard"])
    assert BeamSearch(LETTERS, lm=tmp_path / "lm.arpa")(ambiguous("a band", "a bend")).text == "a band"
    write_arpa([text.upper() for text in cased], tmp_path / "lm.arpa")
    assert BeamSearch(CAPITALS, lm=tmp_path / "lm.arpa").skipped == 0


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("lexicon", [None, ["caf\u00e9", "cafe\u0301s"]])
def test_a_language_model_is_read_however_its_characters_are_composed(
    tmp_path: Path, form: Any, lexicon: list[str] | None
) -> None:
    pytest.importorskip("kenlm")
    write_arpa([unicodedata.normalize(form, "caf\u00e9 caf\u00e9s")] * 3, tmp_path / "lm.arpa")
    vocabulary = Vocabulary((BLANK, *" acfs\u00e9"))
    search = BeamSearch(vocabulary, lm=tmp_path / "lm.arpa", lexicon=lexicon)
    log_probs_TV = on_path(path_of("-".join("caf\u00e9 caf\u00e9s"), vocabulary), 7, 0.9)
    found = search(log_probs_TV)
    assert found.text == "caf\u00e9 caf\u00e9s"
    unknown = CHARACTER_SCORE * 0.5 * len("caf\u00e9caf\u00e9s")
    assert found.score > BeamSearch(vocabulary)(log_probs_TV).score + unknown / 2


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(ValueError, match=r"pip install 'speech-ssl\[lm\]'"):
        BeamSearch(LETTERS, lm=tmp_path / "lm.arpa")
    assert BeamSearch(LETTERS)(on_path([1, 0, 2], len(LETTERS.symbols))).text == "a"


def test_what_a_search_refuses() -> None:
    with pytest.raises(ValueError, match="beam must be at least 1, not 0"):
        BeamSearch(LETTERS, beam=0)
    with pytest.raises(ValueError, match="the vocabulary has no space"):
        BeamSearch(Vocabulary((BLANK, "a")), lexicon=["a"])
    with pytest.raises(ValueError, match=r"shape \(frames, 28\)"):
        BeamSearch(LETTERS)(np.zeros((3, 4), np.float32))
