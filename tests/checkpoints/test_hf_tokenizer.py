"""Texts as transformers' own tokenizers decode them, whatever their options; and back again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import speech_ssl
from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.checkpoints.opening import convert, open_checkpoint
from speech_ssl.checkpoints.transformers.tokenizer import PHONES
from speech_ssl.inference.answers import Clock, align_text, transcribe
from speech_ssl.model.heads.specs import CTCSpec
from speech_ssl.text import Vocabulary
from tests.checkpoints.transformers_models import VOCABULARY, change_json, made, saved, write_json

transformers = pytest.importorskip("transformers")

ESPEAK = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "n": 4, "aɪ": 5, "ts.h": 6, "ɔː": 7, "|": 8}
SMALL = {"|": 0, "a": 1, "b": 2, "ch": 3, "'": 4, "[UNK]": 5, "[PAD]": 6, "<s>": 7, "</s>": 8}
JAPANESE = {"<pad>": 0, "か": 1, "き": 2, "|": 3, "<s>": 4, "</s>": 5, "<unk>": 6, "、": 7, "一": 8}
PADDED = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
PHONE = {"tokenizer_class": PHONES, "do_phonemize": False}
AS_OBJECT = {"__type": "AddedToken", "content": "[PAD]", "lstrip": False, "rstrip": False, "normalized": True}

CASES: dict[str, tuple[Mapping[str, Any], dict[str, dict[str, Any]]]] = {
    "letters": (VOCABULARY, {"tokenizer_config.json": PADDED}),
    "as of old": (
        VOCABULARY,
        {"tokenizer_config.json": {"do_lower_case": False}, "special_tokens_map.json": PADDED},
    ),
    "tokens as objects": (VOCABULARY, {"tokenizer_config.json": {**PADDED, "pad_token": AS_OBJECT}}),
    "small letters": (VOCABULARY, {"tokenizer_config.json": {**PADDED, "do_lower_case": True}}),
    "units of two letters": (SMALL, {"tokenizer_config.json": PADDED}),
    "another delimiter": (SMALL, {"tokenizer_config.json": {**PADDED, "word_delimiter_token": "'"}}),
    "a delimiter of several characters": (
        {**{k: v for k, v in SMALL.items() if v}, "<space>": 0},
        {"tokenizer_config.json": {**PADDED, "word_delimiter_token": "<space>"}},
    ),
    "a space that parts words": (
        {**{k: v for k, v in SMALL.items() if v}, " ": 0},
        {"tokenizer_config.json": {**PADDED, "word_delimiter_token": " "}},
    ),
    "no delimiter": (SMALL, {"tokenizer_config.json": {**PADDED, "word_delimiter_token": None}}),
    "a delimiter that is seen": (
        SMALL,
        {"tokenizer_config.json": {**PADDED, "replace_word_delimiter_char": "_"}},
    ),
    "a delimiter that is not": (
        JAPANESE,
        {"tokenizer_config.json": {"replace_word_delimiter_char": ""}},
    ),
    "a language of several": (
        {"deu": {**SMALL, "ä": 3}, "eng": VOCABULARY},
        {"tokenizer_config.json": {**PADDED, "target_lang": "deu"}},
    ),
    "tokens beside the vocabulary": (
        {"a": 0, "b": 1, "|": 2, "c": 3},
        {
            "tokenizer_config.json": PADDED,
            "special_tokens_map.json": PADDED,
            "added_tokens.json": {"<s>": 4, "</s>": 5, "[PAD]": 6, "[UNK]": 7, "ß": 8},
        },
    ),
    "a blank that the model's config has elsewhere": (
        JAPANESE,
        {"tokenizer_config.json": {}, "config.json": {"pad_token_id": 8}},
    ),
    "phones": (ESPEAK, {"tokenizer_config.json": PHONE}),
    "phones by the model's config": (
        ESPEAK,
        {"tokenizer_config.json": {"do_phonemize": False}, "config.json": {"tokenizer_class": PHONES}},
    ),
    "phones with words": (ESPEAK, {"tokenizer_config.json": {**PHONE, "word_delimiter_token": "|"}}),
    "phones with another delimiter": (
        ESPEAK,
        {"tokenizer_config.json": {**PHONE, "phone_delimiter_token": "-", "phonemizer_lang": "de"}},
    ),
}


@pytest.fixture(scope="module")
def model() -> Any:
    return made("Wav2Vec2", "ForCTC")


def folder_of(model: Any, folder: Path, case: str) -> Path:
    vocabulary, files = CASES[case]
    saved(model, folder)
    (folder / "tokenizer_config.json").unlink()
    write_json(folder / "vocab.json", vocabulary)
    for name, content in files.items():
        if name == "config.json":
            change_json(folder / name, **content)
        else:
            write_json(folder / name, content)
    return folder


def check(folder: Path) -> list[str]:
    """Our texts of random paths are those of their tokenizer, special units left out."""
    head = open_checkpoint(folder).heads["ctc"]
    assert isinstance(head.spec, CTCSpec) and isinstance(blank := head.training["blank_index"], int)
    vocabulary = Vocabulary(head.spec.vocabulary, head.spec.spaced)
    theirs = [blank, *(unit for unit in range(9) if unit != blank)]
    ours = [unit for unit in range(9) if unit == 0 or unit not in vocabulary.silent]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    delimiter = json.loads((folder / "tokenizer_config.json").read_bytes()).get("word_delimiter_token", "|")
    if not head.spec.spaced:  # transformers 5.23 forgets it on the way from the file
        tokenizer._word_delimiter_token = delimiter
    texts = []
    for path in np.random.default_rng(0).choice(ours, size=(8, 30)).repeat(2, axis=1).tolist():
        text = " ".join(vocabulary.collapse(path).split())
        assert text == " ".join(tokenizer.decode([theirs[unit] for unit in path]).split())
        texts.append(text)
    assert len(set(texts)) == 8
    return texts


@pytest.mark.parametrize("case", CASES)
def test_the_same_texts_there_and_back(model: Any, tmp_path: Path, case: str) -> None:
    folder = folder_of(model, tmp_path / "model", case)
    texts = check(folder)
    first = convert(folder, tmp_path / "artifact").heads["ctc"]
    assert load_artifact(tmp_path / "artifact").heads["ctc"].spec == first.spec
    convert(tmp_path / "artifact", tmp_path / "back", "huggingface")
    assert check(tmp_path / "back") == texts
    told = json.loads((tmp_path / "back" / "tokenizer_config.json").read_bytes())
    assert (told["tokenizer_class"] == PHONES) is ("phones" in case)
    if case == "phones with another delimiter":
        assert (told["phonemizer_lang"], told["do_phonemize"]) == ("de", False)


def test_phones_are_words_with_their_times(model: Any, tmp_path: Path) -> None:
    """However they are decoded, and when they are aligned."""
    runtime = speech_ssl.load(folder_of(model, tmp_path / "model", "phones with words"))
    spec = runtime.heads["ctc"]
    assert isinstance(spec, CTCSpec)
    units = [spec.vocabulary.index(symbol) for symbol in ("n", "<blank>", "n", "aɪ", " ", "ts.h")]
    path = np.repeat(units, 3)
    log_probs_TV = np.full((len(path), 9), -30.0, dtype=np.float32)
    log_probs_TV[np.arange(len(path)), path] = -0.01
    clock = Clock(0.02, 0.025, 0.37)
    for answer in (
        transcribe(log_probs_TV, spec, clock, None),
        transcribe(log_probs_TV, spec, clock, runtime.beam_search(beam=4)),
        align_text(log_probs_TV, " n n aɪ  ts.h", spec, clock),
    ):
        words = answer.words
        assert answer.text == "n n aɪ ts.h" == " ".join(word.word for word in words)
        assert all(0 <= word.start < word.end <= 0.37 for word in words)
        assert all(one.end <= other.start for one, other in pairwise(words))
        assert abs(words[2].start - 0.18) < 0.04
    with pytest.raises(ValueError, match="the vocabulary has no 'aj', 'o', as in 'n o aj'"):
        align_text(log_probs_TV, "n o aj", spec, clock)
    with pytest.raises(ValueError, match="of phones: no lexicon"):
        runtime.beam_search(lexicon=["n"])
