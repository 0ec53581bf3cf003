"""Rows and the Parquet files that hold them: written whole, read again, mended row by row."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from speech_ssl.files import replacing
from speech_ssl.types import SAMPLE_RATE

FORMAT_VERSION = 1
MADE_OF = ("file_size", "file_mtime_ns")
"""Columns that tell whether a row's file has changed since. Rows of old have none."""


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


class Stamp(NamedTuple):
    """Size and time of a file: another pair, another content."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str | Path) -> Stamp | None:
        """None where there is no file."""
        try:
            status = os.stat(path)  # noqa: PTH116 - of each of millions
        except (OSError, ValueError):
            return None
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Row:
    """A clip's answer. path: absolute, and text. values: (D,) pooled, or the frames (T, D).
    texts: further columns, by name. stamp: of the file, from before it was read."""

    id: str
    path: str
    duration_s: float
    num_frames: int
    values: NDArray[np.float32]
    texts: Mapping[str, str]
    stamp: Stamp | None = None


class Held(NamedTuple):
    """What a row on disk says of its clip. texts: of the columns that were asked for, "" for none."""

    path: str
    stamp: Stamp | None
    texts: tuple[str, ...]


def schema_of(settings: Settings, columns: Sequence[str]) -> pa.Schema:
    """columns: names of the rows' texts."""
    vector = pa.list_(pa.float32(), settings.width)
    values = (
        pa.field("frames", pa.list_(vector)) if settings.pooling == "none" else pa.field("embedding", vector)
    )
    fields = [
        ("id", pa.string()),
        ("path", pa.string()),
        *((name, pa.int64()) for name in MADE_OF),
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


def table_of(rows: Sequence[Row], settings: Settings, columns: Sequence[str]) -> pa.Table:
    values: dict[str, Any] = {
        "id": [row.id for row in rows],
        "path": [row.path for row in rows],
        "file_size": [row.stamp and row.stamp.size for row in rows],
        "file_mtime_ns": [row.stamp and row.stamp.mtime_ns for row in rows],
        "duration_s": [row.duration_s for row in rows],
        "num_frames": [row.num_frames for row in rows],
        "model": [settings.model] * len(rows),
        "artifact_sha256": [settings.artifact_sha256] * len(rows),
        "layer": [settings.layer] * len(rows),
        "pooling": [settings.pooling] * len(rows),
    }
    for column in columns:
        values[column] = [row.texts.get(column) for row in rows]
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(np.concatenate([row.values.reshape(-1) for row in rows])), settings.width
    )
    if settings.pooling == "none":
        offsets = np.cumsum([0, *(len(row.values) for row in rows)], dtype=np.int32)
        values["frames"] = pa.ListArray.from_arrays(pa.array(offsets), vectors)
    else:
        values["embedding"] = vectors
    schema = schema_of(settings, columns)
    arrays = [
        pa.array(values[f.name], f.type) if isinstance(values[f.name], list) else values[f.name]
        for f in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def read_rows(folder: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows that were committed, of all shards, as one table."""
    tables = [_read(path, columns) for path in parts(Path(folder))]
    if not tables:
        raise ValueError(
            f"{folder} holds no rows: it is not the folder of an extraction, or nothing is done yet"
        )
    return pa.concat_tables(tables, promote_options="default")


def parts(folder: Path) -> list[Path]:
    """The files of all shards."""
    return sorted(path for path in folder.glob("part-*.parquet") if number_of(path) is not None)


def number_of(part: Path) -> int | None:
    """A file's place among those of its shard; None of a file that is none of ours."""
    found = re.fullmatch(r"part-\d{5,}-of-\d{5,}-(\d{6,})\.parquet", part.name)
    return int(found[1]) if found else None


def held(folder: Path, ids: Collection[str], columns: Sequence[str]) -> dict[str, Held]:
    """The rows of these ids that are there."""
    found: dict[str, Held] = {}
    for part in parts(folder):
        table = _read(part, ["id", "path", *MADE_OF, *columns])
        numbers = zip(*(_column(table, name) for name in MADE_OF), strict=True)
        texts = zip(*(_column(table, name) for name in columns), strict=True)
        for clip_id, path, made_of in zip(_column(table, "id"), _column(table, "path"), numbers, strict=True):
            said = next(texts, ())
            if clip_id in ids:
                stamp = None if None in made_of else Stamp(*made_of)
                found[clip_id] = Held(path, stamp, tuple(text or "" for text in said))
    return found


def mend(folder: Path, *, drop: Collection[str], texts: Mapping[str, Mapping[str, str]]) -> None:
    """Take rows of some ids out, and give rows of others new texts. Each file is replaced in one step."""
    for part in parts(folder):
        ids = _read(part, ["id"])["id"].to_pylist()
        if not any(clip_id in drop or clip_id in texts for clip_id in ids):
            continue
        table = _read(part, None)
        for column in sorted({column for said in texts.values() for column in said}):
            table = _with_texts(table, column, texts)
        kept = table.filter(pa.array([clip_id not in drop for clip_id in ids]))
        if len(kept):
            write(kept, part)
        else:
            part.unlink()


def _with_texts(table: pa.Table, column: str, texts: Mapping[str, Mapping[str, str]]) -> pa.Table:
    ids = table["id"].to_pylist()
    values = [
        texts.get(clip_id, {}).get(column, text)
        for clip_id, text in zip(ids, _column(table, column), strict=True)
    ]
    field, array = pa.field(column, pa.string()), pa.array(values, pa.string())
    if column in table.column_names:
        return table.set_column(table.column_names.index(column), field, array)
    return table.add_column(table.num_columns - 1, field, array)


def write(table: pa.Table, path: Path) -> None:
    """Under another name first, then in its place."""
    texts = [field.name for field in table.schema if field.type == pa.string()]
    try:
        with replacing(path, shared=True) as partial:
            pq.write_table(table, partial, compression="zstd", use_dictionary=texts)
    except OSError as error:
        raise OSError(f"{path.parent} cannot be written: {error}") from None


def _column(table: pa.Table, name: str) -> list[Any]:
    """Its values; of a column that is not there so many None."""
    values: list[Any] = table[name].to_pylist() if name in table.column_names else [None] * len(table)
    return values


def _read(part: Path, columns: Sequence[str] | None) -> pa.Table:
    """Columns that are not there are left out."""
    try:
        with pq.ParquetFile(part) as file:
            if "id" not in file.schema_arrow.names:
                raise pa.ArrowInvalid("it has no ids")
            return file.read(columns)
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):  # the file is not damaged, it cannot be opened
            raise
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{part} cannot be read ({reason}): remove it, its rows are computed again"
        ) from None
