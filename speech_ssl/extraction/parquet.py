"""The folder that extraction fills: Parquet files committed one by one, and what failed.

    settings.json                          what was computed; a folder holds one kind of rows
    part-00000-of-00001-000000.parquet     shard 0 of 1, its first file
    failures.jsonl, warnings.jsonl         what is said of single clips, see `records`

A file is written under another name, brought to disk and renamed: it is there whole or not at all.
What is done is what the files say, so a run that was killed goes on where the last of them ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from speech_ssl.extraction.records import Record, Records, replace_text
from speech_ssl.extraction.rows import Row, Settings, held, mend, number_of, parts, read_rows, table_of, write

__all__ = ["SETTINGS", "Failure", "Row", "Settings", "Shard", "Store", "read_rows"]

SETTINGS = "settings.json"

Failure: TypeAlias = Record
"""Why a clip has no row."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of `count`: every count-th utterance of a manifest."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"shard {self.index}/{self.count} is not there: write i/n with i from 0 to n - 1, e.g. 0/4"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "i/n". Raises ValueError."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None:
            raise ValueError(f"shard {text!r} is not of the form i/n, e.g. 0/4")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index:05d}-of-{self.count:05d}"


class Store:
    """One shard's writer into a folder; shards that have no clip in common may write into it at once.

    ids: those of the shard. columns: names of the rows' texts. done: rows of the ids that were there.

    Raises ValueError if the folder holds something else, rows of other settings, or if another
    process is writing this shard or some of its clips.
    """

    def __init__(
        self, folder: Path, settings: Settings, shard: Shard, *, ids: Collection[str], columns: Sequence[str]
    ) -> None:
        self.folder, self.settings, self.shard = folder, settings, shard
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            _agree_on_settings(folder, settings)
            self._claim = _claimed(folder, shard, ids)
            try:
                self._take_stock(set(ids), columns)
            except BaseException:
                self.close()
                raise
        self._columns = columns
        self._rows: list[Row] = []
        self.pending_bytes = 0

    def _take_stock(self, ids: set[str], columns: Sequence[str]) -> None:
        """Clear away what a killed process left half done, and see what is done."""
        folder, shard = self.folder, self.shard
        suffix = "" if shard.count == 1 else f"-{shard}"
        failures, warnings = (folder / f"{kind}{suffix}.jsonl" for kind in ("failures", "warnings"))
        for pattern in (f".part-{shard}-*", f".{failures.name}.*", f".{warnings.name}.*"):
            for leftover in folder.glob(pattern):
                leftover.unlink()
        self.done = held(folder, ids, columns)
        self._failures = Records(failures, ids, valid=ids - self.done.keys())
        self._warnings = Records(warnings, ids, valid=self.done.keys(), lasting=True)
        files = parts(folder)
        mine = (number_of(path) or 0 for path in files if path.name.startswith(f"part-{shard}-"))
        self._next_file = 1 + max(mine, default=-1)

    def mend(self, *, drop: Collection[str], texts: Mapping[str, Mapping[str, str]]) -> None:
        """Take rows of some of the ids out, and give rows of others new texts, by column."""
        with _alone(self.folder):
            mend(self.folder, drop=drop, texts=texts)
        for clip_id in drop:
            del self.done[clip_id]
            self._warnings.put(clip_id)

    def add(self, row: Row, warnings: Sequence[Record] = ()) -> None:
        """Keep a row for the next commit, and what is wrong with it."""
        self._rows.append(row)
        self._failures.put(row.id)
        self._warnings.put(row.id, *warnings)
        self.pending_bytes += row.values.nbytes

    def fail(self, failure: Record) -> None:
        """Note why a clip has no row. It will be tried again by the next run."""
        self._failures.put(failure.id, failure)

    def commit(self) -> None:
        """Bring all to disk. No row without its warnings: they go first. A failure that gets lost is found
        again: it goes last."""
        self._warnings.save()
        if self._rows:
            table = table_of(self._rows, self.settings, self._columns)
            write(table, self.folder / f"part-{self.shard}-{self._next_file:06d}.parquet")
            self._next_file += 1
            self._rows, self.pending_bytes = [], 0
        self._failures.save()

    def close(self) -> None:
        os.ftruncate(self._claim, 0)
        os.close(self._claim)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time looks through a folder and mends it."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _claimed(folder: Path, shard: Shard, ids: Collection[str]) -> int:
    """A file, locked as long as this process lives, that says which clips are this process's."""
    mine = np.sort(np.fromiter(map(_short_hash, ids), np.uint64, len(ids)))
    for path in folder.glob(".lock-*"):
        if path.name != f".lock-{shard}" and _is_locked(path) and _common(path, mine):
            raise ValueError(
                f"{folder}: another process is writing clips of this shard, as shard "
                f"{path.name.removeprefix('.lock-')}: wait for it to end, or make all shards of one count"
            )
    claim = folder / f".lock-{shard}"
    descriptor = os.open(claim, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _lock(descriptor):
            raise ValueError(f"{folder}: another process is writing this shard: wait for it to end")
        os.ftruncate(descriptor, 0)
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(mine.tobytes())
    except (OSError, ValueError) as error:
        os.close(descriptor)
        if isinstance(error, OSError):  # of a full disk it does not say where
            error.filename = str(claim)
        raise
    return descriptor


def _short_hash(clip_id: str) -> int:
    digest = hashlib.blake2b(clip_id.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _is_locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR)
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def _common(claim: Path, mine: NDArray[np.uint64]) -> bool:
    theirs = np.frombuffer(claim.read_bytes(), np.uint64)
    return bool(np.isin(mine, theirs, assume_unique=True).any())


def _lock(descriptor: int, *, wait: bool = False) -> bool:
    """False if another holds it. Where the file system knows no locks, there is none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _agree_on_settings(folder: Path, settings: Settings) -> None:
    """Write the settings, or compare them with those that are there."""
    path = folder / SETTINGS
    if not path.exists():
        if any(folder.glob("*.parquet")):
            raise ValueError(f"{folder} holds Parquet files but no {SETTINGS}: choose another folder")
        replace_text(path, json.dumps(asdict(settings), indent=2) + "\n")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object: choose another folder")
    for key, value in asdict(settings).items():
        if found.get(key) != value:
            raise ValueError(
                f"{folder} was made with {key} {found.get(key)!r}, not {value!r}: choose another folder or "
                "the same settings"
            )
