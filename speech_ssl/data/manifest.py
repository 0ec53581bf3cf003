"""The manifest: a tab-separated list of the data."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from speech_ssl.data.split_names import named_kind
from speech_ssl.files import replacing
from speech_ssl.types import SAMPLE_RATE

LONGEST_S = 1e6
TEXTS = ("text", "speaker", "label", "split", "lang")


class ManifestError(ValueError):
    """A manifest that cannot be used. The message names the file and the line."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One row: a file, or the part of it from `start` to `end` (seconds; both or neither).

    duration_s: seconds of the utterance according to the manifest; for a part `end - start`.
    id: the path as written in the manifest, with "#start-end" for a part; unique in a manifest.
    label: several labels are separated by ";".
    file_s: for a part, seconds of the whole file according to the manifest, if known.
    """

    path: Path
    duration_s: float
    id: str
    text: str = ""
    speaker: str = ""
    label: str = ""
    split: str = ""
    lang: str = ""
    start: float | None = None
    end: float | None = None
    file_s: float | None = None

    @property
    def file_id(self) -> str:
        """The id of the whole file: the same for all its parts."""
        return self.id if self.end is None else self.id.removesuffix(part_id("", self.start or 0.0, self.end))


def part_id(file_id: str, start: float, end: float) -> str:
    return f"{file_id}#{start:.10g}-{end:.10g}"


def read_manifest(path: str | Path) -> list[Utterance]:
    """Read a manifest, or a fairseq `.tsv` (a root folder, then a path and a number of samples at 16 kHz per
    line). The file name of a `.tsv` gives the split of its rows: `train.tsv`, `valid.tsv`, `dev_other.tsv`.

    Unknown columns are ignored. Whether the files exist is not checked. Raises ManifestError.
    """
    path = Path(path)
    try:
        # Lines end at "\n" alone: texts may contain the other characters at which Python splits lines.
        with path.open(encoding="utf-8-sig", newline="\n") as lines:
            head = next(lines, "").rstrip("\r\n")
            if "\t" not in head and head.strip() not in ("", "path"):
                rows = _fairseq_rows(lines, path, root=path.parent / head)
            else:
                rows = _rows(lines, path, head.split("\t"))
            with _no_collection():
                return _unique(rows, path)
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from error


def check_writable(path: Path) -> None:
    """Raises ManifestError if `write_manifest` could not write there."""
    if not path.parent.is_dir():
        raise ManifestError(f"{path}: no such folder to write to")
    if path.exists() and not path.is_file():
        raise ManifestError(f"{path} is not a regular file: name the manifest to write")
    if not os.access(path.parent, os.W_OK):
        raise ManifestError(f"{path}: its folder cannot be written to")


def write_manifest(path: str | Path, utterances: Sequence[Utterance]) -> None:
    """Write a manifest atomically: a reader sees the old file or the whole new one.

    Paths below the manifest's folder are written relative to it, others absolute.
    """
    path = Path(path)
    check_writable(path)
    folder = path.parent.resolve()
    columns = [name for name in (*TEXTS, "start", "end") if any(getattr(u, name) for u in utterances)]
    if "end" in columns and "start" not in columns:  # all parts begin at 0
        columns.insert(-1, "start")
    try:
        with (
            replacing(path, shared=True) as partial,
            partial.open("w", encoding="utf-8", newline="\n") as file,
        ):
            file.write("\t".join(("path", "duration_s", *columns)) + "\n")
            file.writelines(_line(utterance, columns, folder) for utterance in utterances)
    except OSError as error:  # for a full disk, the error does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from None


def _rows(lines: Iterable[str], path: Path, columns: list[str]) -> Iterator[tuple[int, Utterance]]:
    for name in ("path", "duration_s"):
        if name not in columns:
            raise ManifestError(
                f"{path}, line 1: no column {name!r}. A manifest is tab-separated, and its first line "
                "names the columns: path, duration_s, then any of " + ", ".join((*TEXTS, "start", "end"))
            )
    if len(set(columns)) < len(columns):
        raise ManifestError(f"{path}, line 1: a column is named twice")
    at_path, at_duration = columns.index("path"), columns.index("duration_s")
    at_parts = [columns.index(name) if name in columns else None for name in ("start", "end")]
    at_texts = [(name, columns.index(name)) for name in TEXTS if name in columns]
    width, folder = len(columns), path.parent
    for number, line in enumerate(lines, 2):
        fields = line.rstrip("\r\n").split("\t")
        if fields == [""]:
            continue
        where = f"{path}, line {number}"
        if len(fields) != width:
            raise ManifestError(f"{where}: {len(fields)} fields, but the first line names {width}")
        written = fields[at_path]
        if not written:
            raise ManifestError(f"{where}: the path is empty")
        file_s = _seconds(fields[at_duration], "duration_s", where)
        start, end, duration_s = _part(fields, at_parts, file_s, where)
        yield (
            number,
            Utterance(
                path=folder / written,
                duration_s=duration_s,
                id=written if start is None or end is None else part_id(written, start, end),
                start=start,
                end=end,
                file_s=None if end is None else file_s,
                **{name: fields[column] for name, column in at_texts},
            ),
        )


def _part(
    fields: list[str], columns: Sequence[int | None], duration_s: float, where: str
) -> tuple[float | None, float | None, float]:
    """Start, end and length: of the part, or of the whole file if neither start nor end is given."""
    start_text, end_text = ("" if column is None else fields[column] for column in columns)
    if not start_text and not end_text:
        return None, None, duration_s
    start = _seconds(start_text, "start", where) if start_text else 0.0
    end = _seconds(end_text, "end", where) if end_text else duration_s
    if start >= end:
        raise ManifestError(f"{where}: start, {start:g} s, is not before end, {end:g} s")
    return start, end, end - start


def _seconds(text: str, column: str, where: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise ManifestError(f"{where}: {column} is {text!r}, not a number of seconds") from None
    if not 0 <= seconds < math.inf:
        raise ManifestError(f"{where}: {column} is {text}; it must be a number of seconds, at least 0")
    if seconds > LONGEST_S:
        raise ManifestError(f"{where}: {column} is {text} s, more than 11 days: it must be in seconds")
    return seconds


def _fairseq_rows(lines: Iterable[str], path: Path, root: Path) -> Iterator[tuple[int, Utterance]]:
    split = path.stem if named_kind(path.stem) else ""
    for number, line in enumerate(lines, 2):
        written, tab, samples = line.rstrip("\r\n").partition("\t")
        if not written and not tab:
            continue
        if not written or not samples.isascii() or not samples.isdigit():
            raise ManifestError(
                f"{path}, line {number}: expected a path, a tab and a number of samples, because line 1 "
                "names a folder, as in fairseq's format, and not columns"
            )
        duration_s = int(samples) / SAMPLE_RATE
        yield number, Utterance(path=root / written, duration_s=duration_s, id=written, split=split)


@contextmanager
def _no_collection() -> Iterator[None]:
    """A million new objects trigger garbage collections that find nothing and take a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _unique(rows: Iterable[tuple[int, Utterance]], path: Path) -> list[Utterance]:
    utterances: list[Utterance] = []
    lines: dict[str, int] = {}
    for number, utterance in rows:
        first = lines.setdefault(utterance.id, number)
        if first != number:
            raise ManifestError(f"{path}, line {number}: {utterance.id} is already in line {first}; keep one")
        utterances.append(utterance)
    return utterances


def _line(utterance: Utterance, columns: Sequence[str], folder: Path) -> str:
    path = utterance.path.absolute()
    inside = path.is_relative_to(folder)
    written = str(path.relative_to(folder) if inside else path)
    known = (utterance.file_s, utterance.end, utterance.duration_s)
    whole = next(seconds for seconds in known if seconds is not None)
    values = (getattr(utterance, name) for name in columns)
    fields = [written, repr(float(whole)), *("" if value is None else str(value) for value in values)]
    if any("\t" in field or "\n" in field or "\r" in field for field in fields):
        raise ManifestError(f"{utterance.id}: a tab or line break in a field, which a manifest cannot hold")
    return "\t".join(fields) + "\n"
