"""How audio is refused, and how the caller is told of what is wrong with audio that is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

Code: TypeAlias = Literal[
    "unsupported_format",
    "undecodable",
    "too_long",
    "too_short",
    "too_many_channels",
    "bad_rate",
    "bad_samples",
    "empty",
]

WarningCode: TypeAlias = Literal["truncated", "unfinished_header", "opposite_phase"]


class AudioError(ValueError):
    """Audio that is refused. `code` is for programs, the message for people."""

    def __init__(self, code: Code, message: str) -> None:
        assert code in get_args(Code)
        super().__init__(code, message)
        self.code: Code = code

    def __str__(self) -> str:
        return str(self.args[1])


class AudioWarning(NamedTuple):
    """What is wrong with audio that is used all the same.

    code: for programs. `truncated`: it is used up to where it is damaged or cut off. `unfinished_header`: its
        header says that nothing is in it; what follows the header is used. `opposite_phase`: its channels
        cancel each other out in their mean.
    message: for people: one line, which names the file.
    """

    code: WarningCode
    message: str


Warn: TypeAlias = Callable[[AudioWarning], object]
"""Called with each warning of a file, at most once for each code."""
