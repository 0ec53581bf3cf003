"""What a run says of single clips: `skipped.jsonl` names those that it could not use, `warnings.jsonl` those
that it used although something is wrong with them; both say why."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from speech_ssl.data.loader import Loader
from speech_ssl.data.manifest import Utterance
from speech_ssl.training.ranks import Ranks
from speech_ssl.types import AudioWarning

SKIPPED, WARNINGS = "skipped.jsonl", "warnings.jsonl"


class _Lines:
    """Writes each record once, and the first few on stderr. Each rank reads other files and adds its own
    lines; those of a run's earlier life are not written again."""

    kind = ""
    fields: tuple[str, ...] = ("id", "path")
    """What tells one record from another."""
    told = 5

    def __init__(self, path: Path, *, aloud: bool) -> None:
        self._path, self._aloud, self._count = path, aloud, 0
        self._written: set[tuple[str, ...]] = set()
        before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        self._fresh_line = "\n" if before and not before.endswith("\n") else ""
        for line in before.splitlines():
            with suppress(ValueError, KeyError, TypeError):  # a line that a crash cut off
                self._written.add(self._key(json.loads(line)))

    def _key(self, entry: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(entry[field] for field in self.fields)

    def _add(self, entry: Mapping[str, str]) -> None:
        key = self._key(entry)
        if key in self._written:
            return
        self._written.add(key)
        self._count += 1
        with self._path.open("a", encoding="utf-8") as file:
            file.write(self._fresh_line + json.dumps(entry) + "\n")
        self._fresh_line = ""
        if not self._aloud:
            return
        if self._count <= self.told:
            print(f"{self.kind}: {entry['reason']}", file=sys.stderr)
        if self._count == self.told:
            print(f"{self.kind}: further files are named only in {self._path}", file=sys.stderr)


class Skipped(_Lines):
    kind = "skipped"

    def __call__(self, utterance: Utterance, reason: str) -> None:
        self._add({"id": utterance.id, "path": str(utterance.path), "reason": reason})


class Warned(_Lines):
    """code: of AudioWarning, such as `truncated`."""

    kind = "warning"
    fields = ("id", "path", "code")

    def __call__(self, utterance: Utterance, warning: AudioWarning) -> None:
        about = {"id": utterance.id, "path": str(utterance.path)}
        self._add(about | {"reason": warning.message, "code": warning.code})


class Notes(NamedTuple):
    """Both files of a run."""

    skipped: Skipped
    warned: Warned

    @classmethod
    def into(cls, folder: Path, *, aloud: bool) -> Notes:
        return cls(Skipped(folder / SKIPPED, aloud=aloud), Warned(folder / WARNINGS, aloud=aloud))


@contextmanager
def telling_silence(loader: Loader, ranks: Ranks) -> Iterator[None]:
    """Around a training: say at its end how much of what the first rank met was silent."""
    try:
        yield
    finally:
        if ranks.first and loader.silent:
            print(
                f"{loader.silent} of {loader.crops} crops were silent and left out "
                f"({loader.silent / loader.crops:.1%}); {SKIPPED} names their files",
                file=sys.stderr,
            )
