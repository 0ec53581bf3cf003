"""What the name of a split means."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

SplitKind: TypeAlias = Literal["train", "valid", "test"]

_WORDS: dict[str, SplitKind] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "devel", "valid", "validation", "val", "eval", "evaluation"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def named_kind(name: str) -> SplitKind | None:
    """The kind given by the first known word in the name, as in "dev", "test-clean", "test_other",
    "LibriTest2"; or None."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return next((_WORDS[word.lower()] for word in words if word.lower() in _WORDS), None)


def split_kind(split: str) -> SplitKind:
    """The kind of a value in the column `split`. Anything that is neither validation nor test is training."""
    return named_kind(split) or "train"
