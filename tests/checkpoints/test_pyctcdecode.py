"""A language model in pyctcdecode's layout: found, used as there, carried along, and turned off."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import speech_ssl
from speech_ssl.checkpoints.artifact import Head, add_head, load_artifact
from speech_ssl.checkpoints.ngram import NGram
from speech_ssl.checkpoints.opening import convert, open_checkpoint
from speech_ssl.checkpoints.transformers import hub
from speech_ssl.inference.ctc.beam import BeamSearch
from speech_ssl.model.heads.specs import CTCSpec
from speech_ssl.text import BLANK, Vocabulary
from tests.arpa import Arpa
from tests.checkpoints.transformers_models import change_json, made, noise, saved, write_json
from tests.command_line import Run
from tests.inference.test_beam import ALL, TEXTS, all_texts, random_log_probs, write_arpa

pytest.importorskip("transformers")
ATTRIBUTES = {"alpha": 0.8, "beta": -0.5, "unk_score_offset": -6.0, "score_boundary": True}
LABELS = [" ", "A", "B", "C", "'", "⁇", "", "<s>", "</s>"]
SPOKEN = ["ABBA CAB", "CAB A CAB", "A CAB", "BAA BAA", "A B"] * 2


@pytest.fixture(scope="module")
def model() -> Any:
    return made("Wav2Vec2", "ForCTC")


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    """A model as `Wav2Vec2ProcessorWithLM` saves it."""
    folder = saved(model, tmp_path / "model")
    write_json(folder / "alphabet.json", {"labels": LABELS, "is_bpe": False})
    (folder / "language_model").mkdir()
    write_json(folder / "language_model" / "attrs.json", ATTRIBUTES)
    write_arpa(SPOKEN, folder / "language_model" / "3gram.arpa")
    (folder / "language_model" / "unigrams.txt").write_text("ABBA\nCAB\nA\nBAA\n")
    return folder


def their_score(lm: Arpa, words: list[str], known: set[str], attributes: dict[str, Any]) -> float:
    """What pyctcdecode's `LanguageModel` adds to a text, from the definition: log10, then ln 10."""
    said = ["<s>", *words] if attributes["score_boundary"] else [*words]
    begin, total = len(said) - len(words), 0.0
    for i, word in enumerate(words):
        log10 = lm.log_prob(word, tuple(said[: begin + i])) / math.log(10)
        if (known and word not in known) or (word,) not in lm.probability:
            log10 += attributes["unk_score_offset"]
        if i == len(words) - 1 and attributes["score_boundary"]:
            log10 += lm.log_prob("</s>", tuple(said)) / math.log(10)
        total += attributes["alpha"] * log10 * math.log(10) + attributes["beta"]
    return total


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    attributes=st.fixed_dictionaries(
        {
            "alpha": st.sampled_from([0.0, 0.5, 2.0]),
            "beta": st.sampled_from([-1.0, 1.5]),
            "unk_score_offset": st.sampled_from([-10.0, -1.0, 0.0]),
            "score_boundary": st.booleans(),
        }
    ),
    known=st.sampled_from([set(), {"a", "ab"}, {"a", "b", "ab", "bb", "unheard"}]),
)
def test_a_text_scores_what_it_scores_there(
    tmp_path_factory: pytest.TempPathFactory, seed: int, attributes: dict[str, Any], known: set[str]
) -> None:
    """Of all texts, in a beam that holds all. pyctcdecode scores no words as no words: no end either."""
    pytest.importorskip("kenlm")
    place = tmp_path_factory.mktemp("lm")
    write_arpa(TEXTS, place / "few.arpa")
    (place / "words.txt").write_text("".join(f"{word}\n" for word in sorted(known)))
    lm, vocabulary = Arpa(place / "few.arpa"), Vocabulary((BLANK, *" ab"))
    log_probs_TV = random_log_probs(4, 4, seed)
    met = {word for word in known if (word,) in lm.probability}
    expected = {
        text: score + their_score(lm, text.split(), met, attributes)
        for text, score in all_texts(log_probs_TV, vocabulary).items()
        if text
    }
    ngram = NGram(
        path=place / "few.arpa",
        words=place / "words.txt",
        weight=attributes["alpha"],
        word_score=attributes["beta"],
        unknown_score=attributes["unk_score_offset"] * math.log(10),
        boundary=attributes["score_boundary"],
    )
    search = BeamSearch(vocabulary, beam=ALL, lm=ngram)
    found = {each.text: each.score for each in search.n_best(log_probs_TV, ALL) if each.text}
    assert found.keys() == expected.keys()
    assert all(found[text] == pytest.approx(expected[text], abs=1e-4) for text in expected)


def test_it_is_the_default_decoder(model: Any, folder: Path, tmp_path: Path) -> None:
    """Of the folder, of the artifact made of it, and of the folder made of that."""
    pytest.importorskip("kenlm")
    convert(folder, tmp_path / "artifact")
    convert(tmp_path / "artifact", tmp_path / "back", "huggingface")
    again = json.loads((tmp_path / "back" / "language_model" / "attrs.json").read_bytes())
    assert {k: pytest.approx(v) for k, v in again.items()} == ATTRIBUTES
    assert json.loads((tmp_path / "back" / "alphabet.json").read_bytes())["labels"] == LABELS
    wave = noise(1.5)
    plain = speech_ssl.load(folder, language_model=False)
    best_path = plain.transcribe([wave])[0].text
    wanted = plain.transcribe([wave], decoder=BeamSearch(plain_vocabulary(folder), lm=ngram_of(folder)))
    assert wanted[0].text != best_path
    for source in (folder, tmp_path / "artifact", tmp_path / "back"):
        runtime = speech_ssl.load(source)
        assert runtime.transcribe([wave]) == wanted
        assert runtime.transcribe([wave], decoder=runtime.beam_search()) == wanted
        (analysis,) = runtime.analyze([wave], tasks=["transcription"])
        assert analysis.transcript == wanted[0]
        assert speech_ssl.load(source, language_model=False).transcribe([wave])[0].text == best_path
    assert open_checkpoint(folder).sha256 == open_checkpoint(folder, language_model=False).sha256


def ngram_of(folder: Path) -> NGram:
    ngram = open_checkpoint(folder).heads["ctc"].ngram
    assert ngram is not None
    return ngram


def plain_vocabulary(folder: Path) -> Vocabulary:
    spec = open_checkpoint(folder).heads["ctc"].spec
    assert isinstance(spec, CTCSpec)
    return Vocabulary(spec.vocabulary)


def test_where_kenlm_is_not_it_is_said_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "kenlm", None)
    runtime, wave = speech_ssl.load(folder), noise(0.5)
    with caplog.at_level(logging.WARNING):
        one, other = (runtime.transcribe([wave]) for _ in range(2))
    (record,) = caplog.records
    said = record.getMessage()
    assert said == "the language model of model is not used: a language model needs KenLM: " + INSTALL
    assert one == other == speech_ssl.load(folder, language_model=False).transcribe([wave])
    with pytest.raises(ValueError, match="needs KenLM"):
        runtime.beam_search(beam=4)


INSTALL = "pip install 'speech-ssl[lm]'"


def test_the_command_tells_and_turns_it_off(folder: Path, tmp_path: Path, run: Run, prompts: Path) -> None:
    pytest.importorskip("kenlm")
    status, out, err = run("convert", folder, tmp_path / "artifact")
    assert (status, err) == (0, "") and out.endswith("; head ctc; with its language model\n")
    status, out, err = run("convert", folder, tmp_path / "without", "--no-lm")
    assert (status, err) == (0, "") and out.endswith("; head ctc\n")
    assert sorted(path.name for path in (tmp_path / "artifact").iterdir()) == [
        "config.json",
        "encoder.safetensors",
        "head.ctc.lm.arpa",
        "head.ctc.safetensors",
        "head.ctc.words.txt",
    ]
    clip = prompts / "audio" / "hello.flac"
    said = {
        options: run("transcribe", clip, "--model", tmp_path / name, *options)[1]
        for name, options in (("artifact", ()), ("artifact", ("--no-lm",)), ("without", ("--beam", "1")))
    }
    assert said[()] != said["--no-lm",] and said["--no-lm",].startswith(str(clip))


def cut_off(folder: Path) -> None:
    (folder / "language_model" / "3gram.arpa").unlink()


def two(folder: Path) -> None:
    shutil.copy(folder / "language_model" / "3gram.arpa", folder / "language_model" / "4gram.bin")


def labels(*changed: str, is_bpe: bool = False) -> Any:
    new = [*changed, *LABELS[len(changed) :]]
    return lambda folder: write_json(folder / "alphabet.json", {"labels": new, "is_bpe": is_bpe})


def attributes(**changes: Any) -> Any:
    return lambda folder: change_json(folder / "language_model" / "attrs.json", **changes)


@pytest.mark.parametrize(
    "damage, said",
    [
        (cut_off, "language_model: has 0 files of n-grams"),
        (two, "language_model: has 2 files of n-grams"),
        (labels(" ", "E"), "alphabet.json: has 'E' where the vocabulary has 'A'"),
        (labels("", "A"), "alphabet.json: has '' where the vocabulary has ' '"),
        (labels(is_bpe=True), "units are not the characters"),
        (lambda folder: (folder / "alphabet.json").unlink(), "alphabet.json: missing"),
        (lambda folder: write_json(folder / "alphabet.json", {"labels": LABELS[:5]}), "each of 9 units"),
        (lambda folder: (folder / "alphabet.json").write_text("{"), "alphabet.json: not valid JSON"),
        (attributes(alpha="x"), "attrs.json: alpha, beta, unk_score_offset must be numbers"),
        (attributes(beta=math.nan), "word_score of the language model must be a number, not nan"),
        (attributes(score_boundary=1), "boundary of the language model must be true or false"),
        (lambda folder: (folder / "language_model" / "attrs.json").write_text("[]"), "not a JSON object"),
    ],
)
def test_one_that_is_of_no_use_leaves_the_head(folder: Path, damage: Any, said: str, run: Run) -> None:
    pytest.importorskip("kenlm")
    damage(folder)
    status, out, err = run("convert", folder, folder.parent / "artifact")
    assert (status, err) == (0, "") and "; head ctc; without its language model, " in out and said in out
    assert str(folder) not in out.partition(";")[2]
    assert open_checkpoint(folder).heads["ctc"].ngram is None


def test_one_of_another_language_is_not_used(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Small letters where the model has capitals; and words that are none of the n-gram's."""
    pytest.importorskip("kenlm")
    place, wave = folder / "language_model", noise(0.5)
    best_path = speech_ssl.load(folder, language_model=False).transcribe([wave])
    (place / "unigrams.txt").write_text("XYZ\nZZ\n")
    assert speech_ssl.load(folder).transcribe([wave]) == best_path
    (place / "unigrams.txt").unlink()
    write_arpa([text.lower() for text in SPOKEN], place / "3gram.arpa")
    assert speech_ssl.load(folder).transcribe([wave]) == best_path
    (place / "3gram.arpa").write_text("no n-gram")
    assert speech_ssl.load(folder).transcribe([wave]) == best_path
    assert len(caplog.records) == 3
    assert all("language model of model is not used: " in each.getMessage() for each in caplog.records)


def test_phones_have_no_words(folder: Path) -> None:
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer", "pad_token": "[PAD]"},
    )
    head = open_checkpoint(folder).heads["ctc"]
    assert head.ngram is None and isinstance(head.spec, CTCSpec) and head.spec.spaced


def test_another_head_of_that_name_has_not_its_language_model(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "artifact")
    artifact = load_artifact(tmp_path / "artifact")
    spec = CTCSpec(vocabulary=(BLANK, "x"))
    head = Head(spec, spec.build(artifact.encoder.config), {}, "CC0")
    more = add_head(tmp_path / "artifact", tmp_path / "more", "other", head)
    assert load_artifact(more).heads["ctc"].ngram == NGram(
        path=more / "head.ctc.lm.arpa",
        words=more / "head.ctc.words.txt",
        weight=0.8,
        word_score=-0.5,
        unknown_score=-6.0 * math.log(10),
    )
    other = add_head(tmp_path / "artifact", tmp_path / "other", "ctc", head)
    assert load_artifact(other).heads["ctc"].ngram is None
    assert [path.name for path in sorted(other.glob("head*"))] == ["head.ctc.safetensors"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"path": "../x.arpa"}, "does not list the language model's path, '../x.arpa'"),
        ({"words": 3}, "does not list the language model's words, 3"),
        ({"weight": "x"}, "weight of the language model must be a number, not 'x'"),
        ({"weight": None}, "weight of the language model must be a number, not None"),
    ],
)
def test_a_damaged_entry_is_refused(folder: Path, tmp_path: Path, change: Any, said: str) -> None:
    path = convert(folder, tmp_path / "artifact").folder and tmp_path / "artifact" / "config.json"
    config = json.loads(path.read_bytes())
    config["heads"]["ctc"]["language_model"] |= change
    write_json(path, config)
    with pytest.raises(ValueError, match="config.json: no head 'ctc' can be made of it") as refused:
        load_artifact(path.parent)
    assert said in str(refused.value)


@pytest.mark.parametrize("kenlm", [True, False])
def test_what_is_fetched_from_the_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kenlm: bool, tmp_path: Path
) -> None:
    """A language model can be large: it is fetched where it can be used, and for an artifact."""
    asked: list[list[str]] = []

    def snapshot(name: str, wanted: list[str], ignored: Any = ()) -> Path:
        asked.append(wanted)
        return folder

    monkeypatch.setattr(hub, "_snapshot", snapshot)
    monkeypatch.setattr(hub, "find_spec", lambda _: object() if kenlm else None)
    speech_ssl.load("someone/model")
    assert asked[1:] == [["language_model/*" if kenlm else "language_model/attrs.json"]]
    asked.clear()
    convert("someone/model", tmp_path / "artifact")
    assert asked[1:] == [["language_model/*"]]
    asked.clear()
    speech_ssl.load("someone/model", language_model=False)
    assert len(asked) == 1
