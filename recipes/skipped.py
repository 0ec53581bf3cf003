"""What a run leaves out: files that cannot be read, and crops with nothing to hear in them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from speech_ssl.data.loader import Loader
from speech_ssl.data.manifest import Utterance
from speech_ssl.training.ranks import Ranks

SKIPPED = "skipped.jsonl"


class Skipped:
    """Names each unreadable file in `skipped.jsonl`, and the first few on stderr. Each rank reads other
    files and adds its own lines; those of a run's earlier life are not written again."""

    told = 5

    def __init__(self, path: Path, *, aloud: bool) -> None:
        self._path, self._aloud, self._count = path, aloud, 0
        self._named: set[tuple[str, str]] = set()
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        self._fresh_line = "\n" if before and not before.endswith("\n") else ""
        for line in before.splitlines():
            with suppress(ValueError, KeyError, TypeError):  # a line that a crash cut off
                entry = json.loads(line)
                self._named.add((entry["id"], entry["path"]))

    def __call__(self, utterance: Utterance, reason: str) -> None:
        name = (utterance.id, str(utterance.path))
        if name in self._named:
            return
        self._named.add(name)
        self._count += 1
        with self._path.open("a", encoding="utf-8") as file:
            entry = {"id": utterance.id, "path": str(utterance.path), "reason": reason}
            file.write(self._fresh_line + json.dumps(entry) + "\n")
        self._fresh_line = ""
        if not self._aloud:
            return
        if self._count <= self.told:
            print(f"skipped: {reason}", file=sys.stderr)
        if self._count == self.told:
            print(f"skipped: further files are named only in {self._path}", file=sys.stderr)


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
