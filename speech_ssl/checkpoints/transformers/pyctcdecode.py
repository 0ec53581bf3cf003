"""The language model that pyctcdecode keeps beside a CTC model: `language_model/` and `alphabet.json`.

pyctcdecode scores a text as log P(text | audio), plus for each word alpha * ln 10 * (log10 P +
unk_score_offset if the word is unknown) + beta, plus alpha * ln 10 * log10 P of the end. Ours is the same
under other names. The search differs: theirs considers fewer units per frame, and of an unfinished word knows
only whether some word begins so.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from speech_ssl.checkpoints.conversion import ConversionError, read_json
from speech_ssl.checkpoints.ngram import NGram
from speech_ssl.model.heads.specs import CTCSpec
from speech_ssl.text import SPACE, Vocabulary

FOLDER, ALPHABET, ATTRIBUTES, WORDS = "language_model", "alphabet.json", "attrs.json", "unigrams.txt"
FORMS = (".arpa", ".bin", ".binary")
USUAL = {"alpha": 0.5, "beta": 1.5, "unk_score_offset": -10.0}
UNKNOWN = "⁇"
"""pyctcdecode's name for `<unk>`."""


def read_ngram(folder: Path, spec: CTCSpec, blank_index: int) -> NGram | None:
    """The language model in a head's folder, or None. Raises ConversionError if it cannot be used."""
    place = folder / FOLDER
    if not place.is_dir():
        return None
    attributes = read_json(place / ATTRIBUTES) if (place / ATTRIBUTES).is_file() else {}
    found = [path for path in sorted(place.iterdir()) if path.suffix in FORMS and path.name[0] != "."]
    if not found and find_spec("kenlm") is None:  # then it was not even fetched
        raise ConversionError("it needs KenLM: pip install 'speech-ssl[lm]'")
    if len(found) != 1:
        raise ConversionError(f"{place}: has {len(found)} files of n-grams ({', '.join(FORMS)})")
    _check_alphabet(folder / ALPHABET, spec, blank_index)
    told = {**USUAL, **attributes}
    if not all(type(told[name]) in (int, float) for name in USUAL):
        raise ConversionError(f"{place / ATTRIBUTES}: {', '.join(USUAL)} must be numbers")
    try:
        return NGram(
            path=found[0],
            words=place / WORDS if (place / WORDS).is_file() else None,
            weight=told["alpha"],
            word_score=told["beta"],
            unknown_score=told["unk_score_offset"] * math.log(10),
            boundary=told.get("score_boundary", True),
        )
    except ValueError as error:
        raise ConversionError(f"{place / ATTRIBUTES}: {error}") from None


def _check_alphabet(path: Path, spec: CTCSpec, blank_index: int) -> None:
    """Raises ConversionError if its labels do not match the units."""
    if not path.is_file():
        raise ConversionError(f"{path}: missing")
    told = read_json(path)
    labels = told.get("labels")
    if told.get("is_bpe") or spec.spaced or SPACE not in spec.vocabulary:
        raise ConversionError(f"{path}: its units are not the characters of words: no word n-gram fits")
    silent = Vocabulary(spec.vocabulary).silent
    symbols = list(spec.vocabulary[1:])
    symbols.insert(blank_index, spec.vocabulary[0])
    if not isinstance(labels, list) or len(labels) < len(symbols):
        raise ConversionError(f"{path}: does not have a label for each of {len(symbols)} units")
    for label, symbol in zip(labels, symbols, strict=False):
        if label != symbol and spec.vocabulary.index(symbol) not in silent:
            raise ConversionError(f"{path}: has {label!r} where the vocabulary has {symbol!r}")


def write_ngram(ngram: NGram, folder: Path, names: Sequence[str], blank: str) -> None:
    """The inverse of `read_ngram`. names: of the units in the tokenizer, in order."""
    assert ngram.unknown_score is not None
    said = {blank: "", "<unk>": UNKNOWN, "[UNK]": UNKNOWN, **({} if SPACE in names else {"|": SPACE})}
    labels = [said.get(name, name) for name in names]
    (folder / ALPHABET).write_text(json.dumps({"labels": labels, "is_bpe": False}), encoding="utf-8")
    attributes = {
        "alpha": ngram.weight,
        "beta": ngram.word_score,
        "unk_score_offset": ngram.unknown_score / math.log(10),
        "score_boundary": ngram.boundary,
    }
    place = folder / FOLDER
    place.mkdir()
    (place / ATTRIBUTES).write_text(json.dumps(attributes), encoding="utf-8")
    shutil.copyfile(ngram.path, place / f"lm{ngram.path.suffix}")
    if ngram.words is None:
        (place / WORDS).write_text("", encoding="utf-8")
    else:
        shutil.copyfile(ngram.words, place / WORDS)
