"""Targets from the labelled rows of a manifest: classes of clips, and timed events.

A manifest of events has one row per event, with `start`, `end` and `label` (several events with the same
times may share a row, their labels separated by ";"). A row with neither start nor end concerns the whole
file: its labels last from beginning to end. Without a label, it only says that the file belongs to the data.
`duration_s` is the duration of the file in all rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from speech_ssl.data.manifest import ManifestError, Utterance, part_id
from speech_ssl.types import SAMPLE_RATE

Event: TypeAlias = tuple[str, float, float]
"""A label, and its start and end in seconds."""

TOLERANCE_S = 0.01
"""Durations and ends of events are rounded in manifests; they may differ by this many seconds."""


def labels_of(utterance: Utterance) -> list[str]:
    """The row's labels, each once, sorted."""
    return sorted({label.strip() for label in utterance.label.split(";")} - {""})


def label_names(utterances: Iterable[Utterance]) -> tuple[str, ...]:
    """All labels of a manifest, sorted. Raises ValueError if there are none."""
    names = sorted({label for utterance in utterances for label in labels_of(utterance)})
    if not names:
        raise ValueError("no row has a label: fill the manifest's column 'label'")
    return tuple(names)


@dataclass(frozen=True)
class ClipTargets:
    """The classes of a clip: the indices of its labels in `labels`.

    Calling it raises ValueError for a label not in `labels` and, without `multilabel`, unless there is
    exactly one.
    """

    labels: tuple[str, ...]
    multilabel: bool = False

    def __post_init__(self) -> None:
        _check_names(self.labels)

    def __call__(self, utterance: Utterance) -> list[int]:
        labels = labels_of(utterance)
        if not self.multilabel and len(labels) != 1:
            raise ValueError(f"{utterance.id}: {len(labels)} labels, but exactly one is needed")
        return sorted(_class(self.labels, label, utterance) for label in labels)


@dataclass(frozen=True)
class TimedTargets:
    """The events of a window as one flat list: class, start and end in milliseconds, repeated.

    events: the events of each window by its id, in seconds from the window's start; see `timed_windows`.
    Calling it raises ValueError for an unknown window and for a label not in `labels`. An event of less than
    half a millisecond may be lost to rounding.
    """

    labels: tuple[str, ...]
    events: Mapping[str, Sequence[Event]]

    def __post_init__(self) -> None:
        _check_names(self.labels)

    def __call__(self, utterance: Utterance) -> list[int]:
        if utterance.id not in self.events:
            raise ValueError(
                f"{utterance.id}: no such window; make windows and events together, by timed_windows"
            )
        flat: list[int] = []
        for label, start, end in self.events[utterance.id]:
            start_ms, end_ms = round(start * 1_000), round(end * 1_000)
            if start_ms < end_ms:
                flat += [_class(self.labels, label, utterance), start_ms, end_ms]
        return flat


def timed_windows(
    utterances: Iterable[Utterance], *, window_s: float
) -> tuple[list[Utterance], dict[str, list[Event]]]:
    """The files of the rows in equal windows of at most `window_s`, and the events of each window.

    The windows of a file cover it without overlap; a file that fits into one window stays whole. Events, by
    the window's id, are cut to the window and timed from its start; overlapping events of one label are
    merged. A window keeps the values of the other columns on which all rows of the file agree, and has no
    label.

    Raises ManifestError if rows contradict each other or the file.
    """
    if not window_s * SAMPLE_RATE >= 1:
        raise ValueError(f"window_s must be a number of seconds above 0, not {window_s}")
    rows_of: dict[Path, list[Utterance]] = {}
    for utterance in utterances:
        rows_of.setdefault(utterance.path, []).append(utterance)
    windows: list[Utterance] = []
    events: dict[str, list[Event]] = {}
    for rows in rows_of.values():
        file = _file(rows)
        of_file = sorted(_merged(_events(rows, file.duration_s)), key=lambda event: (*event[1:], event[0]))
        for window in _windows(file, window_s):
            if window.id in events:
                raise ManifestError(f"{window.id}: two files with this id; keep one")
            windows.append(window)
            events[window.id] = list(_within(of_file, window))
    return windows, events


def whole_files(
    windows: Iterable[Utterance], events: Mapping[str, Sequence[Event]]
) -> tuple[list[Utterance], dict[str, list[Event]]]:
    """The inverse of `timed_windows`, given all windows of some files: the files, and their events by file
    id. Events that were cut are joined again, to the microsecond."""
    files: dict[str, Utterance] = {}
    found: dict[str, list[Event]] = {}
    for window in windows:
        name, first = window.file_id, window.start or 0.0
        if window.end is None or window.file_s is None:
            files[name] = window
        else:
            files[name] = replace(
                window, id=name, duration_s=window.file_s, start=None, end=None, file_s=None
            )
        for label, *times in events[window.id]:
            start, end = (round(first + seconds, 6) for seconds in times)
            if start < end:
                found.setdefault(name, []).append((label, start, end))
    return list(files.values()), {name: _merged(found.get(name, ())) for name in files}


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """A weight for each class, inversely proportional to its number of samples; the mean over all samples is
    1. A class without samples has weight 0.

    Raises ValueError if there are no samples, or for a negative count.
    """
    if min(counts, default=0) < 0 or not sum(counts):
        raise ValueError("balanced weights need counts of at least 0, not all of them 0")
    share = sum(counts) / sum(count > 0 for count in counts)
    return [share / count if count else 0.0 for count in counts]


def _check_names(labels: tuple[str, ...]) -> None:
    if not labels or len(set(labels)) < len(labels):
        raise ValueError("give the names of the classes: at least one, each once")


def _class(labels: tuple[str, ...], label: str, utterance: Utterance) -> int:
    try:
        return labels.index(label)
    except ValueError:
        raise ValueError(f"{utterance.id}: {label!r} is not one of the {len(labels)} labels") from None


def _file(rows: Sequence[Utterance]) -> Utterance:
    """The whole file, with the values that all its rows share."""
    name = rows[0].file_id
    claimed = (row.duration_s if row.end is None else row.file_s for row in rows)
    known = {seconds for seconds in claimed if seconds is not None}
    if not known:
        raise ManifestError(f"{name}: the duration of the file is unknown; set file_s of its parts")
    if max(known) - min(known) > TOLERANCE_S:
        raise ManifestError(
            f"{name}: its rows have the durations {min(known):g} and {max(known):g} s; duration_s must be "
            "that of the whole file in all rows"
        )
    splits = sorted({row.split for row in rows})
    if len(splits) > 1:
        raise ManifestError(f"{name}: its rows are in the splits {splits}; a file's events must be in one")
    return Utterance(
        path=rows[0].path,
        duration_s=max(known),
        id=name,
        text=_agreed(row.text for row in rows),
        speaker=_agreed(row.speaker for row in rows),
        split=splits[0],
        lang=_agreed(row.lang for row in rows),
    )


def _agreed(values: Iterable[str]) -> str:
    first, *others = set(values)
    return "" if others else first


def _events(rows: Sequence[Utterance], file_s: float) -> Iterator[Event]:
    for row in rows:
        labels = labels_of(row)
        start, end = (0.0, file_s) if row.start is None or row.end is None else (row.start, row.end)
        if row.end is not None and not labels:
            raise ManifestError(
                f"{row.id}: an event without a label; leave out start and end for a file without events"
            )
        if end > file_s + TOLERANCE_S:
            raise ManifestError(
                f"{row.id}: it ends beyond the file's {file_s:g} s; duration_s is that of the whole file"
            )
        yield from ((label, start, end) for label in labels)


def _merged(events: Iterable[Event]) -> list[Event]:
    """Merge events of one label that overlap or touch: they cannot be told apart."""
    merged: list[Event] = []
    for label, start, end in sorted(events):
        if merged and merged[-1][0] == label and start <= merged[-1][2]:
            merged[-1] = (label, merged[-1][1], max(end, merged[-1][2]))
        else:
            merged.append((label, start, end))
    return merged


def _windows(file: Utterance, window_s: float) -> Iterator[Utterance]:
    samples, most = round(file.duration_s * SAMPLE_RATE), int(window_s * SAMPLE_RATE + 1e-6)
    count = -(-samples // most)
    if count <= 1:
        yield file
        return
    # Cut at whole samples, except at the end of the file.
    edges = [samples * number // count / SAMPLE_RATE for number in range(count)] + [file.duration_s]
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        yield replace(
            file,
            id=part_id(file.id, start, end),
            duration_s=end - start,
            start=start,
            end=end,
            file_s=file.duration_s,
        )


def _within(events: Iterable[Event], window: Utterance) -> Iterator[Event]:
    first = window.start or 0.0
    last = first + window.duration_s if window.end is None else window.end
    for label, start, end in events:
        start, end = max(start, first), min(end, last)
        if start < end:
            yield label, start - first, end - first
