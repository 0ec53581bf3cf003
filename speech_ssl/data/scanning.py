"""From a folder of audio files to the rows of a manifest."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from speech_ssl import audio
from speech_ssl.data.manifest import ManifestError, Utterance


@dataclass(frozen=True)
class Scan:
    """What was found below a folder.

    failures: files that cannot be read, and why. warnings: problems of readable files, as far as they show
    without decoding. passed_over: the number of non-audio files by suffix.
    """

    utterances: list[Utterance] = field(default_factory=list)
    failures: list[tuple[Path, str]] = field(default_factory=list)
    warnings: list[audio.AudioWarning] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def scan_folder(folder: str | Path, *, workers: int = 4, tick: Callable[[], object] | None = None) -> Scan:
    """Every audio file (by suffix: `audio.SUFFIXES`) below a folder, sorted by name; hidden files are
    skipped.

    Durations come from headers where possible, see `audio.duration`. `tick` is called after each file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ManifestError(f"{folder}: no such folder")
    scan = Scan()

    def look(path: Path) -> _Look:
        return _Look(path, folder)

    paths = _audio_files(folder, scan)
    with ThreadPoolExecutor(workers) as pool:
        while some := list(islice(paths, 1_000)):  # the pool accepts everything at once
            for found in pool.map(look, some):
                if isinstance(found.row, Utterance):
                    scan.utterances.append(found.row)
                    scan.warnings.extend(found.warnings)
                else:
                    scan.failures.append((found.path, found.row))
                if tick is not None:
                    tick()
    return scan


def _audio_files(folder: Path, scan: Scan) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        scan.failures.append((Path(error.filename), error.strerror or str(error)))

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in audio.SUFFIXES:
                yield Path(parent, name)
            else:
                scan.passed_over[suffix] += 1


class _Look:
    """The result for one file: a row, or the reason why there is none."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.warnings: list[audio.AudioWarning] = []
        self.row = self._row(str(path.relative_to(folder)))

    def _row(self, written: str) -> Utterance | str:
        if any(mark in written for mark in "\t\n\r") or not _is_utf8(written):
            return "its name has characters that a manifest cannot hold; rename it"
        try:
            seconds = audio.duration(self.path, warn=self.warnings.append)
        except audio.AudioError as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)
        return Utterance(path=self.path, duration_s=seconds, id=written)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
