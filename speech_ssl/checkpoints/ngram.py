"""The word n-gram of a CTC head, and its files in an artifact."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ARPA, BINARY = ".arpa", ".bin"


@dataclass(frozen=True, kw_only=True)
class NGram:
    """path: an ARPA file, or KenLM's binary form of one. words: a file of the known words, one per line;
    None: those that the ARPA file lists. All others are unknown, even if the n-gram has them.

    weight, word_score: as in `BeamSearch`. unknown_score: added to the ln P of an unknown word, before
    weighting; None: a score for each of its characters. boundary: whether a text begins and ends a sentence.
    """

    path: Path
    words: Path | None = None
    weight: float
    word_score: float
    unknown_score: float | None = None
    boundary: bool = True

    def __post_init__(self) -> None:
        for name in ("weight", "word_score", "unknown_score"):
            value = getattr(self, name)
            if not (name == "unknown_score" and value is None) and not _is_number(value):
                raise ValueError(f"{name} of the language model must be a number, not {value!r}")
        if not isinstance(self.boundary, bool):
            raise ValueError(f"boundary of the language model must be true or false, not {self.boundary!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def write(ngram: NGram, folder: Path, head: str) -> dict[str, object]:
    """Copy the files into an artifact's folder; returns the entry for the config."""
    entry: dict[str, Any] = asdict(ngram)
    entry["path"] = f"head.{head}.lm{ARPA if ngram.path.suffix == ARPA else BINARY}"
    shutil.copyfile(ngram.path, folder / entry["path"])
    if ngram.words is not None:
        entry["words"] = f"head.{head}.words.txt"
        shutil.copyfile(ngram.words, folder / entry["words"])
    return entry


def read(entry: object, folder: Path, listed: Mapping[str, object]) -> NGram | None:
    """The inverse of `write`. listed: the files of the artifact. Raises ValueError."""
    if entry is None:
        return None
    if not isinstance(entry, dict):
        raise ValueError("the language model's fields are not an object")
    files = {name: entry.get(name) for name in ("path", "words")}
    for name, file in files.items():
        if not (isinstance(file, str) and file in listed) and (name == "path" or file is not None):
            raise ValueError(f"field 'files' does not list the language model's {name}, {file!r}")
    known = {"weight", "word_score", "unknown_score", "boundary"}
    try:
        return NGram(
            path=folder / str(files["path"]),
            words=None if files["words"] is None else folder / files["words"],
            **{name: value for name, value in entry.items() if name in known},
        )
    except TypeError as error:
        raise ValueError(f"a field of the language model is missing: {error}") from None
