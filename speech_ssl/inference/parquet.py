"""The folder that extraction fills: Parquet files committed one by one, and what failed.

    settings.json                          what was computed; a folder holds one kind of rows
    part-00000-of-00001-000000.parquet     shard 0 of 1, its first file
    failures.jsonl                         one line a failed clip (failures-00000-of-00004.jsonl of a shard)

A file is written under another name, brought to disk and renamed: it is there whole or not at all.
What is done is what the files say, so a run that was killed goes on where the last of them ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from speech_ssl.types import SAMPLE_RATE

SETTINGS = "settings.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Settings:
    """What makes rows comparable; part of every file's metadata. layer: 0 to N. hop: in samples."""

    model: str
    artifact_sha256: str
    layer: int
    pooling: str
    precision: str
    width: int
    hop: int
    window_frames: int
    context_frames: int
    sample_rate: int = SAMPLE_RATE
    format_version: int = FORMAT_VERSION

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Row:
    """A clip's answer. path: absolute, and text. values: (D,) pooled, or the frames (T, D).
    texts: further columns, by name."""

    id: str
    path: str
    duration_s: float
    num_frames: int
    values: NDArray[np.float32]
    texts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Failure:
    id: str
    path: str
    reason: str
    code: str


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
    """One shard's writer into a folder; several shards may write into the same folder at once.

    ids: those of the shard; failures of other ids are forgotten. columns: names of the rows' texts.

    Raises ValueError if the folder holds something else, rows of other settings, or if another
    process is writing this shard.
    """

    def __init__(
        self, folder: Path, settings: Settings, shard: Shard, *, ids: Collection[str], columns: Sequence[str]
    ) -> None:
        self.folder, self.settings, self.shard = folder, settings, shard
        folder.mkdir(parents=True, exist_ok=True)
        _agree_on_settings(folder, settings)
        self._lock = _locked(folder / f".lock-{shard}")
        try:
            self._take_stock(ids)
        except BaseException:
            self.close()
            raise
        self._schema = _schema(settings, columns)
        self._columns = columns
        self._rows: list[Row] = []
        self.pending_bytes = 0

    def _take_stock(self, ids: Collection[str]) -> None:
        """Clear away what a killed process left half done, and see what is done."""
        folder, shard = self.folder, self.shard
        for pattern in (f".part-{shard}-*", f".{self._failures_path.name}.*"):
            for leftover in folder.glob(pattern):
                leftover.unlink()
        self.done = committed(folder)
        known = set(ids) - self.done.keys()
        self._failures = {f.id: f for f in _read_failures(self._failures_path) if f.id in known}
        self._failures_changed = True
        self._next_file = 1 + max((_file_number(path) for path in self._files()), default=-1)

    @property
    def _failures_path(self) -> Path:
        whole = self.shard.count == 1
        return self.folder / ("failures.jsonl" if whole else f"failures-{self.shard}.jsonl")

    def add(self, row: Row) -> None:
        """Keep a row for the next commit."""
        self._rows.append(row)
        self._failures_changed |= self._failures.pop(row.id, None) is not None
        self.pending_bytes += row.values.nbytes

    def fail(self, failure: Failure) -> None:
        """Note why a clip has no row. It will be tried again by the next run."""
        self._failures[failure.id] = failure
        self._failures_changed = True

    def commit(self) -> None:
        """Bring rows and failures to disk. Rows first: a failure that gets lost is found again."""
        if self._rows:
            path = self.folder / f"part-{self.shard}-{self._next_file:06d}.parquet"
            partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            _write(self._table(), partial)
            _put_in_place(partial, path)
            self.done.update((row.id, row.path) for row in self._rows)
            self._next_file += 1
            self._rows, self.pending_bytes = [], 0
        if self._failures_changed:
            lines = [json.dumps(asdict(f), ensure_ascii=False) + "\n" for f in self._failures.values()]
            _replace_text(self._failures_path, "".join(lines))
            self._failures_changed = False

    def close(self) -> None:
        os.close(self._lock)

    def _files(self) -> list[Path]:
        return list(self.folder.glob(f"part-{self.shard}-*.parquet"))

    def _table(self) -> pa.Table:
        rows, settings = self._rows, self.settings
        values: dict[str, Any] = {
            "id": [row.id for row in rows],
            "path": [row.path for row in rows],
            "duration_s": [row.duration_s for row in rows],
            "num_frames": [row.num_frames for row in rows],
            "model": [settings.model] * len(rows),
            "artifact_sha256": [settings.artifact_sha256] * len(rows),
            "layer": [settings.layer] * len(rows),
            "pooling": [settings.pooling] * len(rows),
        }
        for column in self._columns:
            values[column] = [row.texts.get(column) for row in rows]
        vectors = pa.FixedSizeListArray.from_arrays(
            pa.array(np.concatenate([row.values.reshape(-1) for row in rows])), settings.width
        )
        if settings.pooling == "none":
            offsets = np.cumsum([0, *(len(row.values) for row in rows)], dtype=np.int32)
            values["frames"] = pa.ListArray.from_arrays(pa.array(offsets), vectors)
        else:
            values["embedding"] = vectors
        arrays = [
            pa.array(values[f.name], f.type) if isinstance(values[f.name], list) else values[f.name]
            for f in self._schema
        ]
        return pa.Table.from_arrays(arrays, schema=self._schema)


def read_rows(folder: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows that were committed, of all shards, as one table."""
    tables = [pq.read_table(path, columns=columns) for path in sorted(Path(folder).glob("part-*.parquet"))]
    if not tables:
        raise ValueError(
            f"{folder} holds no rows: it is not the folder of an extraction, or nothing is done yet"
        )
    return pa.concat_tables(tables, promote_options="default")


def committed(folder: Path) -> dict[str, str]:
    """The path of each id that has a row."""
    done: dict[str, str] = {}
    for path in sorted(folder.glob("part-*.parquet")):
        try:
            table = pq.read_table(path, columns=["id", "path"])
            done.update(zip(table["id"].to_pylist(), table["path"].to_pylist(), strict=True))
        except pa.ArrowException as error:
            raise ValueError(
                f"{path} cannot be read ({error}): remove it, its rows are computed again"
            ) from None
    return done


def _schema(settings: Settings, columns: Sequence[str]) -> pa.Schema:
    vector = pa.list_(pa.float32(), settings.width)
    values = (
        pa.field("frames", pa.list_(vector)) if settings.pooling == "none" else pa.field("embedding", vector)
    )
    fields = [
        ("id", pa.string()),
        ("path", pa.string()),
        ("duration_s", pa.float64()),
        ("num_frames", pa.int32()),
        ("model", pa.string()),
        ("artifact_sha256", pa.string()),
        ("layer", pa.int32()),
        ("pooling", pa.string()),
        *((column, pa.string()) for column in columns),
        values,
    ]
    metadata = {f"speech_ssl.{key}": str(value) for key, value in asdict(settings).items()}
    return pa.schema(fields, metadata=metadata | {"speech_ssl.settings_sha256": settings.sha256})


def _agree_on_settings(folder: Path, settings: Settings) -> None:
    """Write the settings, or compare them with those that are there."""
    path = folder / SETTINGS
    if not path.exists():
        if any(folder.glob("*.parquet")):
            raise ValueError(f"{folder} holds Parquet files but no {SETTINGS}: choose another folder")
        _replace_text(path, json.dumps(asdict(settings), indent=2) + "\n")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} is not JSON: choose another folder") from None
    for key, value in asdict(settings).items():
        if found.get(key) != value:
            raise ValueError(
                f"{folder} was made with {key} {found.get(key)!r}, not {value!r}: choose another folder or "
                "the same settings"
            )


def _locked(path: Path) -> int:
    """Hold a lock as long as this process lives. Where the file system knows no locks, there is none."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(
            f"{path.parent}: another process is writing this shard: wait for it to end"
        ) from None
    except OSError:
        pass
    return descriptor


def _read_failures(path: Path) -> list[Failure]:
    if not path.exists():
        return []
    return [Failure(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _file_number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _write(table: pa.Table, path: Path) -> None:
    texts = [field.name for field in table.schema if field.type == pa.string()]
    try:
        pq.write_table(table, path, compression="zstd", use_dictionary=texts)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(f"{path.parent} cannot be written: {error}") from None


def _replace_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_text(text, encoding="utf-8")
    except OSError as error:  # of a full disk it does not say where
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    _put_in_place(partial, path)


def _put_in_place(partial: Path, path: Path) -> None:
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
