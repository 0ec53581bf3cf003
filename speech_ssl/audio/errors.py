"""How audio is refused, and how problems of audio that is used are reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

from speech_ssl.types import AudioWarning, WarningCode

__all__ = ["AudioError", "AudioWarning", "Code", "Warn", "WarningCode"]

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


class AudioError(ValueError):
    """Audio that is refused. `code` is for programs, the message for people."""

    def __init__(self, code: Code, message: str) -> None:
        assert code in get_args(Code)
        super().__init__(code, message)
        self.code: Code = code

    def __str__(self) -> str:
        return str(self.args[1])


Warn: TypeAlias = Callable[[AudioWarning], object]
"""Called with each warning of a file, at most once for each code."""


class Flaw(NamedTuple):
    """A warning before it is known how much can be decoded: `message` has a placeholder for the seconds."""

    code: WarningCode
    message: str


CUT_OFF = Flaw("truncated", "it is cut off after {:.2f} s; what comes before is used")
DAMAGED = Flaw("truncated", "it is damaged or cut off after {:.2f} s; what comes before is used")
CHANGED = Flaw(
    "truncated", "its rate or number of channels changes after {:.2f} s; what comes before is used"
)
UNFINISHED = Flaw(
    "unfinished_header", "its header was not finished; all the {:.2f} s that follow it are used"
)
