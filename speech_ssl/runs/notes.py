"""What a run says of single clips: `skipped.jsonl` names those that it could not use, `warnings.jsonl` those
that it used although something is wrong with them; both say why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from speech_ssl.data.loader import Loader
from speech_ssl.data.manifest import Utterance
from speech_ssl.runs.events import ClipNoted, Listener, Note
from speech_ssl.types import AudioWarning

SKIPPED, WARNINGS = "skipped.jsonl", "warnings.jsonl"


class _Lines:
    """Writes and tells each record once. Each rank reads other files and adds its own lines; those of a run's
    earlier life are not written again."""

    kind: Literal["skipped", "warning"]
    fields: tuple[str, ...] = ("id", "path")
    """What tells one record from another."""

    def __init__(self, path: Path, tell: Listener) -> None:
        self._path, self._tell = path, tell
        self._written: set[tuple[str, ...]] = set()
        before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        self._fresh_line = "\n" if before and not before.endswith("\n") else ""
        for line in before.splitlines():
            with suppress(ValueError, KeyError, TypeError):  # a line that a crash cut off
                self._written.add(self._key(json.loads(line)))

    def _key(self, entry: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(entry[field] for field in self.fields)

    def _add(self, utterance: Utterance, reason: str, **more: str) -> None:
        entry = {"id": utterance.id, "path": str(utterance.path), "reason": reason, **more}
        key = self._key(entry)
        if key in self._written:
            return
        self._written.add(key)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(self._fresh_line + json.dumps(entry) + "\n")
        self._fresh_line = ""
        self._tell(ClipNoted(self.kind, utterance.id, utterance.path, reason, self._path))


class SkippedClips(_Lines):
    kind = "skipped"

    def __call__(self, utterance: Utterance, reason: str) -> None:
        self._add(utterance, reason)


class WarnedClips(_Lines):
    """code: of AudioWarning, such as `truncated`."""

    kind = "warning"
    fields = ("id", "path", "code")

    def __call__(self, utterance: Utterance, warning: AudioWarning) -> None:
        self._add(utterance, warning.message, code=warning.code)


class Notes(NamedTuple):
    """Both files of a run."""

    skipped: SkippedClips
    warned: WarnedClips

    @classmethod
    def into(cls, folder: Path, tell: Listener) -> Notes:
        return cls(SkippedClips(folder / SKIPPED, tell), WarnedClips(folder / WARNINGS, tell))


@contextmanager
def telling_silence(loader: Loader, tell: Listener) -> Iterator[None]:
    """Around a training: say at its end how much of what this rank met was silent."""
    try:
        yield
    finally:
        if loader.silent:
            share = f"{loader.silent / loader.crops:.1%}"
            files = f"{SKIPPED} names their files"
            tell(Note(f"{loader.silent} of {loader.crops} crops were silent and left out ({share}); {files}"))
