"""What is said of single clips beside their rows: JSON, a line a record, in a file of each shard.

    failures.jsonl     why a clip has no row (failures-00000-of-00004.jsonl of a shard)
    warnings.jsonl     what is wrong with a clip that has one

A line that a person or a full disk has spoilt stops nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from speech_ssl.files import replacing

_NAME = re.compile(r"([a-z]+)(-\d{5,}-of-\d{5,})?\.jsonl")


@dataclass(frozen=True, slots=True)
class Record:
    """code: AudioError's or AudioWarning's, or one of `decoding.Failed`."""

    id: str
    path: str
    reason: str
    code: str


class _File(NamedTuple):
    """A file of records: of the clips that were asked for, and its other lines."""

    records: dict[str, list[Record]]
    lines: list[str]


class Records:
    """One shard's records, by clip, in the file `path`.

    At first what is known of the shard's clips, `ids`, as far as it is `valid`; it is taken out of the files
    of other shards, for a folder may be divided otherwise each time. What `path` says of clips that are not
    the shard's is forgotten, but for what is `lasting`, since their rows stay: of that there is no file
    where there is nothing to say.
    """

    def __init__(
        self, path: Path, ids: Collection[str], *, valid: Collection[str], lasting: bool = False
    ) -> None:
        own = _read(path, ids)
        elsewhere = {p: file for p in _same_kind(path) if (file := _read(p, ids)).records}
        known: dict[str, list[Record]] = {}
        for file in (*elsewhere.values(), own):
            known |= file.records
        self._path, self._lasting = path, lasting
        self._records = {clip_id: said for clip_id, said in known.items() if clip_id in valid}
        self._others = own.lines if lasting else []
        self._changed = True
        self.save()  # before they are taken out of where they were
        for p, file in elsewhere.items():
            _write(p, file.lines, always=False)

    def put(self, clip_id: str, *records: Record) -> None:
        """All that is to be said of a clip from now on."""
        if records:
            self._records[clip_id] = list(records)
            self._changed = True
        elif self._records.pop(clip_id, None):
            self._changed = True

    def save(self) -> None:
        """Bring them to disk."""
        if self._changed:
            said = (record for records in self._records.values() for record in records)
            lines = [*self._others, *(json.dumps(asdict(record), ensure_ascii=False) for record in said)]
            _write(self._path, lines, always=not self._lasting)
            self._changed = False


def replace_text(path: Path, text: str) -> None:
    """A reader sees the old file or the whole new one."""
    try:
        with replacing(path, shared=True) as partial:
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:  # of a full disk it does not say where
        raise OSError(error.errno, error.strerror, str(path)) from None


def _same_kind(path: Path) -> list[Path]:
    """The files of other shards."""
    kind = _NAME.fullmatch(path.name)
    assert kind is not None
    names = ((other, _NAME.fullmatch(other.name)) for other in path.parent.iterdir() if other != path)
    return sorted(other for other, found in names if found and found[1] == kind[1])


def _read(path: Path, ids: Collection[str]) -> _File:
    records: dict[str, list[Record]] = {}
    lines: list[str] = []
    text = path.read_text(encoding="utf-8", errors="backslashreplace") if path.exists() else ""
    for line in filter(None, text.split("\n")):
        record = _parsed(line)
        if record is not None and record.id in ids:
            records.setdefault(record.id, []).append(record)
        else:
            lines.append(line)
    return _File(records, lines)


def _parsed(line: str) -> Record | None:
    """Fields of other versions are passed over, and those that are not there are empty."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        return None
    return Record(entry["id"], *(str(entry.get(name, "")) for name in ("path", "reason", "code")))


def _write(path: Path, lines: Sequence[str], *, always: bool) -> None:
    if lines or always:
        replace_text(path, "".join(f"{line}\n" for line in lines))
    else:
        path.unlink(missing_ok=True)
