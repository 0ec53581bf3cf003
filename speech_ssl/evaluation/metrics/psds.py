"""PSDS, the polyphonic sound detection score, which evaluates detected sound events over all thresholds.

Bilen et al. 2020, arXiv 1910.08440, section 3. A detection counts if enough of it lies within references of
its label; a reference is found if such detections cover enough of it. A detection that does not count is a
false alarm, and also a cross trigger if enough of it lies within references of another label. The score is
the area under the curve of references found (mean over labels minus weighted spread) against false alarms per
hour. Every score is a threshold, as in Ebbers et al. 2022, arXiv 2201.13148.

At a threshold, the detections of a label are the longest runs of frames with score >= threshold. Over all
thresholds, a file of T frames has at most T different runs, and each exists for an interval of thresholds.
All counts follow from runs that appear and vanish as the threshold falls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speech_ssl.evaluation.metrics.detection import SLACK_S, Event, check_events, check_labels

Floats: TypeAlias = NDArray[np.float64]


class TimedScores(NamedTuple):
    """Scores of K labels in the T frames of a file; frame t lasts from edges_s[t] to edges_s[t + 1].

    scores_TK: shape (T, K). edges_s: shape (T + 1,), increasing, in seconds. duration_s: of the file.
    """

    scores_TK: ArrayLike
    edges_s: ArrayLike
    duration_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """The parameters of a PSDS, with the paper's symbols.

    within: share of a detection that must lie within references of its label (rho_DTC).
    covered: share of a reference that such detections must cover (rho_GTC).
    cross: share of a detection within references of another label that makes it a cross trigger (rho_CTTC).
    cross_weight: weight of cross triggers relative to false alarms (alpha_CT).
    spread_weight: weight of the standard deviation over the labels (alpha_ST).
    most_per_hour: upper limit of the area, in false alarms per hour (e_max).
    """

    within: float
    covered: float
    cross: float = 0.3
    cross_weight: float = 0.0
    spread_weight: float = 1.0
    most_per_hour: float = 100.0

    def __post_init__(self) -> None:
        if not all(0 < share <= 1 for share in (self.within, self.covered, self.cross)):
            raise ValueError("within, covered and cross must be above 0 and at most 1")
        if not (self.cross_weight >= 0 and self.spread_weight >= 0 and 0 < self.most_per_hour < np.inf):
            raise ValueError("the weights must be at least 0, and most_per_hour above 0")


REACTION = Scenario(within=0.7, covered=0.7)
"""Scenario 1 of DCASE task 4 since 2021, "react fast": times matter."""
CONFUSION = Scenario(within=0.1, covered=0.1, cross=0.3, cross_weight=0.5)
"""Scenario 2, "avoid confusing labels": times matter less, other labels more."""


@dataclass(frozen=True, slots=True)
class Psds:
    """value: from 0 to 1. per_label: the area under each label's curve. left_out: without references."""

    value: float
    per_label: Mapping[str, float]
    left_out: tuple[str, ...]


def psds(
    references: Mapping[str, Sequence[Event]],
    scores: Mapping[str, TimedScores],
    labels: Sequence[str],
    scenario: Scenario,
    *,
    thresholds: ArrayLike | None = None,
) -> Psds:
    """PSDS of the scores of each file; `labels` names their columns. thresholds: those to use; None: all.

    A label without references is left out, as if it had no column. References of one label in a file must not
    overlap. Raises ValueError if they do, and for invalid labels, times, files and scores.
    """
    files = _files(references, scores, check_labels(labels))
    used = tuple(name for name in labels if any(len(file.references[name]) for file in files))
    if not used:
        raise ValueError("there is no reference event: PSDS is undefined")
    chosen = None if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    if chosen is not None and (chosen.ndim != 1 or np.isnan(chosen).any()):
        raise ValueError("thresholds must be a list of numbers")
    curves = [_curve(files, name, used, scenario, chosen) for name in used]
    return Psds(
        value=_area(curves, scenario),
        per_label={name: _area([curve], scenario) for name, curve in zip(used, curves, strict=True)},
        left_out=tuple(name for name in labels if name not in used),
    )


@dataclass(frozen=True, slots=True)
class _Times:
    """Start and end of events or runs, in seconds."""

    starts: Floats
    ends: Floats

    @property
    def lengths(self) -> Floats:
        return self.ends - self.starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, chosen: NDArray[np.bool_]) -> _Times:
        return _Times(self.starts[chosen], self.ends[chosen])


class _File(NamedTuple):
    references: Mapping[str, _Times]
    columns: Mapping[str, Floats]
    edges_s: Floats
    duration_s: float


class _Runs(NamedTuple):
    """Runs of frames, and the thresholds at which each exists: above `below`, up to `level`."""

    times: _Times
    levels: Floats
    below: Floats


class _Curve(NamedTuple):
    """A step function: the rate from this many false alarms per hour on. Both increase, from 0 alarms."""

    alarms: Floats
    rate: Floats


def _files(
    references: Mapping[str, Sequence[Event]], scores: Mapping[str, TimedScores], labels: tuple[str, ...]
) -> list[_File]:
    check_events(references, labels)
    if odd := sorted(references.keys() ^ scores.keys()):
        raise ValueError(f"{odd[0]} has only one of references and scores: give both for each file")
    return [_file(name, events, scores[name], labels) for name, events in references.items()]


def _file(name: str, events: Sequence[Event], timed: TimedScores, labels: tuple[str, ...]) -> _File:
    scores_TK, edges = (np.asarray(part, dtype=np.float64) for part in timed[:2])
    if edges.ndim != 1 or scores_TK.shape != (len(edges) - 1, len(labels)):
        raise ValueError(
            f"scores of {name} are of shape {scores_TK.shape}: {len(labels)} labels and {edges.size} edges "
            "need one column per label and one row between each two edges"
        )
    if not (np.isfinite(scores_TK).all() and np.isfinite(edges).all() and (np.diff(edges) > 0).all()):
        raise ValueError(f"scores of {name} must be finite numbers, and their edges must rise")
    if not 0 < timed.duration_s < np.inf:
        raise ValueError(f"the duration of {name} must be above 0 s, not {timed.duration_s}")
    by_label = {}
    for label in labels:
        times = sorted((start, end) for own, start, end in events if own == label)
        if any(after[0] < before[1] - SLACK_S for before, after in zip(times, times[1:], strict=False)):
            raise ValueError(f"references of {label} in {name} overlap: join them")
        starts, ends = np.array(times, dtype=np.float64).reshape(-1, 2).T
        by_label[label] = _Times(starts, ends)
    return _File(by_label, dict(zip(labels, scores_TK.T, strict=True)), edges, float(timed.duration_s))


def _runs(scores_T: Floats, edges_s: Floats) -> _Runs:
    """All different runs of frames with score >= some threshold; they nest like the bars of a histogram."""
    open_runs: list[tuple[int, float]] = []  # start and level of open runs; levels rise
    found: list[tuple[int, int, float, float]] = []
    for stop, score in enumerate([*scores_T.tolist(), -np.inf]):
        start = stop
        while open_runs and open_runs[-1][1] > score:
            start, level = open_runs.pop()
            found.append((start, stop, level, max(score, open_runs[-1][1] if open_runs else -np.inf)))
        if score > (open_runs[-1][1] if open_runs else -np.inf):
            open_runs.append((start, score))
    starts, stops, levels, below = np.array(found, dtype=np.float64).reshape(-1, 4).T
    times = _Times(edges_s[starts.astype(np.intp)], edges_s[stops.astype(np.intp)])
    return _Runs(times, levels, below)


def _inside(runs: _Times, references: _Times) -> Floats:
    """Seconds of each run within references, which do not overlap."""
    knots = np.stack((references.starts, references.ends), axis=1).reshape(-1)
    if not len(knots):
        return np.zeros(len(runs))
    passed = np.cumsum(np.stack((np.zeros(len(references)), references.lengths), axis=1).reshape(-1))
    return np.asarray(np.interp(runs.ends, knots, passed) - np.interp(runs.starts, knots, passed))


def _changes(file: _File, label: str, used: tuple[str, ...], scenario: Scenario) -> Floats:
    """Changes as the threshold falls to a level: rows (level, found, false alarms, cross triggers...), with
    one column of cross triggers for each other label."""
    runs = _runs(file.columns[label], file.edges_s)
    own = file.references[label]
    counts = _inside(runs.times, own) >= scenario.within * runs.times.lengths - SLACK_S
    triggers = [
        ~counts
        & (_inside(runs.times, file.references[other]) >= scenario.cross * runs.times.lengths - SLACK_S)
        for other in used
        if other != label
    ]
    made = np.stack([np.zeros(len(counts)), ~counts, *triggers], axis=1)
    rows = [np.column_stack((runs.levels, made)), np.column_stack((runs.below, -made))]
    good = _Runs(runs.times[counts], runs.levels[counts], runs.below[counts])
    for start, end in zip(own.starts, own.ends, strict=True):
        levels, steps = _found(good, start, end, scenario.covered)
        rows.append(np.column_stack((levels, steps, np.zeros((len(levels), made.shape[1] - 1)))))
    return np.concatenate(rows)


def _found(good: _Runs, start: float, end: float, covered: float) -> tuple[Floats, Floats]:
    """Levels at which a reference becomes found (+1) or is no longer found (-1)."""
    over = np.minimum(good.times.ends, end) - np.maximum(good.times.starts, start)
    touching = over > 0
    ends = np.concatenate((good.levels[touching], good.below[touching]))
    seconds = np.concatenate((over[touching], -over[touching]))
    levels, place = np.unique(ends, return_inverse=True)
    total = np.bincount(place, weights=seconds, minlength=len(levels))[::-1].cumsum()
    found = total >= covered * (end - start) - SLACK_S
    return levels[::-1], np.diff(found.astype(np.float64), prepend=0.0)


def _curve(
    files: Sequence[_File], label: str, used: tuple[str, ...], scenario: Scenario, thresholds: Floats | None
) -> _Curve:
    """The rate of a label's references that are found, against false alarms per hour, over thresholds."""
    changes = np.concatenate([_changes(file, label, used, scenario) for file in files])
    changes = changes[changes[:, 0] > -np.inf]  # below all thresholds
    levels, place = np.unique(changes[:, 0], return_inverse=True)
    steps = np.zeros((len(levels) + 1, changes.shape[1] - 1))  # the last row: a threshold above all scores
    np.add.at(steps, place, changes[:, 1:])
    at_least = steps[::-1].cumsum(axis=0)[::-1]
    points = at_least if thresholds is None else at_least[np.searchsorted(levels, thresholds)]
    hours = sum(file.duration_s for file in files) / 3600
    alarms = points[:, 1] / hours
    others = [sum(file.references[other].lengths.sum() for file in files) for other in used if other != label]
    if others:
        alarms = alarms + scenario.cross_weight * (points[:, 2:] / others).mean(axis=1) * 3600
    rate = points[:, 0] / sum(len(file.references[label]) for file in files)
    alarms, rate = np.append(alarms, 0.0), np.append(rate, 0.0)  # no detection
    order = np.argsort(alarms, kind="stable")
    return _Curve(alarms[order], np.asarray(np.maximum.accumulate(rate[order])))


def _area(curves: Sequence[_Curve], scenario: Scenario) -> float:
    """The normalised area under the mean of the curves minus their weighted spread."""
    most = scenario.most_per_hour
    grid = np.unique(np.concatenate([*(curve.alarms for curve in curves), [most]]))
    grid = grid[grid <= most]
    rates = np.array([curve.rate[np.searchsorted(curve.alarms, grid, side="right") - 1] for curve in curves])
    effective = np.maximum(rates.mean(axis=0) - scenario.spread_weight * rates.std(axis=0), 0.0)
    return float((effective[:-1] * np.diff(grid)).sum() / most)
