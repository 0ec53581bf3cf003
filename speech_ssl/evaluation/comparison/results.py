"""What a comparison found, one file for each encoder that was tried, so that it goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from speech_ssl.files import write_atomically

COMPARISON, RESULTS = "comparison.json", "results"


class TaskScore(NamedTuple):
    """What could be read out of an encoder on one task, by the same head on each frozen layer.

    layers: the score of each; spectra have one. best: the layer that the training clips choose. mixed: of all
    layers together. guessing: without listening. metric: "accuracy", or "EER", where lower is better.
    """

    task: str
    metric: str
    guessing: float
    layers: tuple[float, ...]
    best: int
    mixed: float

    @property
    def score(self) -> float:
        """Of the best layer."""
        return self.layers[self.best]


class CurvePoint(NamedTuple):
    """What is known after `seconds` of training; loss and probe have their own points."""

    seconds: float
    loss: float | None = None
    probe: float | None = None


class Vectors(NamedTuple):
    """What the best layer's clip vectors are like on the first task: see `vectors`. map: x, y and label of
    some clips."""

    effective_rank: float
    alignment: float
    uniformity: float
    map: tuple[tuple[float, float, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method with one seed, or a baseline (without a seed). seconds: of training. heard_h: hours of audio.
    failure: why there are no scores."""

    name: str
    kind: Literal["method", "baseline"]
    front_end: str = ""
    seed: int | None = None
    parameters: int = 0
    steps: int = 0
    seconds: float = 0.0
    heard_h: float = 0.0
    scores: tuple[TaskScore, ...] = ()
    vectors: Vectors | None = None
    ranks: tuple[float, ...] = ()
    """Effective rank of each layer's clip vectors, on the first task."""
    curve: tuple[CurvePoint, ...] = ()
    failure: str = ""

    @property
    def key(self) -> str:
        return self.name if self.seed is None else f"{self.name}-seed{self.seed}"

    def of(self, task: str) -> TaskScore | None:
        return next((score for score in self.scores if score.task == task), None)


@dataclass(frozen=True, kw_only=True)
class Described:
    """What entries of one folder have in common. tasks: name -> data, clips, classes, in words."""

    budget_s: float
    processor: str
    tasks: dict[str, str]
    inputs: dict[str, Any]
    planned: tuple[str, ...] = ()
    command: str = ""
    curve_of: str = ""
    """The task that the curves' probe is on."""


@dataclass(frozen=True)
class Row:
    """A method or baseline over its seeds."""

    name: str
    kind: str
    entries: list[Entry] = field(default_factory=list)

    @property
    def finished(self) -> list[Entry]:
        return [entry for entry in self.entries if not entry.failure]

    def scores(self, task: str) -> list[TaskScore]:
        return [score for entry in self.finished if (score := entry.of(task)) is not None]

    def mean(self, task: str) -> float | None:
        found = [score.score for score in self.scores(task)]
        return float(np.mean(found)) if found else None


def save_entry(folder: Path, entry: Entry) -> None:
    path = folder / RESULTS / f"{entry.key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(dataclasses.asdict(entry), indent=1, ensure_ascii=False).encode())


def load_entries(folder: Path) -> list[Entry]:
    """By name and seed. Raises ValueError that names a file that is damaged."""
    return [_read(path) for path in sorted((folder / RESULTS).glob("*.json"))]


def _read(path: Path) -> Entry:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        scores = tuple(TaskScore(*_tupled(each)) for each in values.pop("scores"))
        curve = tuple(CurvePoint(*each) for each in values.pop("curve"))
        vectors = values.pop("vectors")
        known = None if vectors is None else Vectors(*_tupled(vectors))
        return Entry(**{k: _tupled(v) for k, v in values.items()}, scores=scores, curve=curve, vectors=known)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and it is made again") from None


def _tupled(value: Any) -> Any:
    return tuple(_tupled(each) for each in value) if isinstance(value, list) else value


def save_described(folder: Path, described: Described) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / COMPARISON, json.dumps(dataclasses.asdict(described), indent=1).encode())


def load_described(folder: Path) -> Described | None:
    """None where there is none yet. Raises ValueError where it is damaged."""
    path = folder / COMPARISON
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Described(**{**values, "planned": tuple(values["planned"])})
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}): name another folder") from None


def rows(entries: Iterable[Entry], tasks: Sequence[str]) -> list[Row]:
    """Methods by their mean place over the tasks, those that failed last; then baselines."""
    grouped: dict[str, Row] = {}
    for entry in entries:
        grouped.setdefault(entry.name, Row(entry.name, entry.kind)).entries.append(entry)
    found = list(grouped.values())
    places = {row.name: [float(place(found, row, task)) for task in tasks] for row in found}
    return sorted(found, key=lambda row: (row.kind != "method", float(np.mean(places[row.name] or [0]))))


def place(found: Sequence[Row], row: Row, task: str) -> int:
    """How many rows are better on a task; all of them where it has no score."""
    if (mine := row.mean(task)) is None:
        return len(found)
    sign = -1 if row.scores(task)[0].metric == "EER" else 1
    others = [other.mean(task) for other in found]
    return sum(mean is not None and sign * mean > sign * mine for mean in others)
