"""Metrics for the labels of clips, and for sound events with their times. Needs the `eval` extra.

N clips, K labels. Labels are texts; a matrix has a column for each, in the order of `labels`. Labels whose
value is undefined (such as the recall of a label that no clip has) are left out of means and listed in
`left_out`. PSDS, which covers all thresholds, is in `psds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speech_ssl.evaluation.extras import eval_extra

SLACK_S = 1e-6
"""Times are compared to the microsecond, so that 0.9 - 0.7 is within a collar of 0.2."""


class Event(NamedTuple):
    """A sound with a label, from `start` to `end` in seconds."""

    label: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Classification:
    """Results with one label per clip.

    balanced_accuracy: mean recall of the labels, equally weighted (unweighted average recall, UAR).
    confusion_KK: clips of label i that were classified as label j, in the order of `labels`.
    """

    labels: tuple[str, ...]
    confusion_KK: NDArray[np.int64]
    accuracy: float
    balanced_accuracy: float
    recalls: Mapping[str, float]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """mean: over the labels (macro-averaged, mAP)."""

    mean: float
    per_label: Mapping[str, float]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EventCounts:
    """hits: detections matched one to one with references."""

    hits: int
    references: int
    detections: int

    @property
    def f1(self) -> float:
        return 2 * self.hits / (self.references + self.detections)


@dataclass(frozen=True, slots=True)
class EventScores:
    """macro_f1: mean over labels. micro_f1: over all events. left_out: neither referenced nor detected."""

    macro_f1: float
    micro_f1: float
    per_label: Mapping[str, EventCounts]
    left_out: tuple[str, ...]


def classification(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> Classification:
    """Accuracy, balanced accuracy and the confusion matrix for one label per clip.

    Raises ValueError for lists that are empty or differ in length, and for labels that are not in `labels`.
    """
    names = check_labels(labels)
    if len(truth) != len(predicted) or not len(truth):
        raise ValueError(
            f"{len(truth)} true labels and {len(predicted)} predicted: give one of each per clip"
        )
    place = {label: number for number, label in enumerate(names)}
    if unknown := sorted({str(label) for label in (*truth, *predicted) if label not in place}):
        raise ValueError(f"unknown labels {', '.join(unknown)}: the labels are {', '.join(names)}")
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(confusion, ([place[label] for label in truth], [place[label] for label in predicted]), 1)
    hits, clips = confusion.diagonal(), confusion.sum(axis=1)
    recalls = {name: float(hits[k] / clips[k]) for name, k in place.items() if clips[k]}
    return Classification(
        labels=names,
        confusion_KK=confusion,
        accuracy=float(hits.sum() / clips.sum()),
        balanced_accuracy=float(np.mean(list(recalls.values()))),
        recalls=recalls,
        left_out=tuple(name for name in names if name not in recalls),
    )


def expected_calibration_error(right: ArrayLike, scores: ArrayLike, *, bins: int = 15) -> float:
    """How far scores are from the share of clips that they are right about (Guo et al. 2017, arXiv
    1706.04599, equation 3): clips are put into bins of equal width by the score of the label that was said,
    and the distances of mean score and share are averaged over the clips. From 0 to 1.

    right: whether each clip's label was the true one. Raises ValueError for lists that are empty or differ in
    length, and for scores that are not between 0 and 1.
    """
    right_N, scores_N = np.asarray(right, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if right_N.shape != scores_N.shape or right_N.ndim != 1 or not len(right_N):
        raise ValueError(f"{right_N.shape} answers and {scores_N.shape} scores: give one of each per clip")
    if not ((scores_N >= 0) & (scores_N <= 1)).all():
        raise ValueError("scores must be between 0 and 1")
    bin_N = np.minimum((scores_N * bins).astype(int), bins - 1)
    apart = np.bincount(bin_N, right_N - scores_N, minlength=bins)
    return float(np.abs(apart).sum() / len(right_N))


def mean_average_precision(
    truth_NK: ArrayLike, scores_NK: ArrayLike, labels: Sequence[str]
) -> AveragePrecision:
    """Mean average precision for any number of labels per clip. truth: true or false (1 or 0).

    The average precision of a label is the sum over the ranking of its clips of precision times the step in
    recall, without interpolation; clips of equal score enter together. Labels without a clip are left out.
    Raises ValueError for shapes that do not fit, scores that are not finite, and if no label is true.
    """
    with eval_extra("average precision"):
        from sklearn.metrics import average_precision_score

    truth, scores = _tags(truth_NK, scores_NK)
    names = check_labels(labels)
    if truth.shape[1] != len(names):
        raise ValueError(f"there are {len(names)} labels but {truth.shape[1]} columns of truth and scores")
    found = {
        name: float(average_precision_score(truth[:, k], scores[:, k]))
        for k, name in enumerate(names)
        if truth[:, k].any()
    }
    return AveragePrecision(
        mean=float(np.mean(list(found.values()))),
        per_label=found,
        left_out=tuple(name for name in names if name not in found),
    )


def lwlrap(truth_NK: ArrayLike, scores_NK: ArrayLike) -> float:
    """Label-weighted label-ranking average precision (Fonseca et al. 2019, arXiv 1906.02975).

    For each true label of each clip: the share of true labels among the clip's labels that score at least as
    high; the mean over all of them. Ties count against the label. Raises ValueError as
    `mean_average_precision` does.
    """
    with eval_extra("lwlrap"):
        from sklearn.metrics import label_ranking_average_precision_score

    truth, scores = _tags(truth_NK, scores_NK)
    weights = truth.sum(axis=1)
    return float(label_ranking_average_precision_score(truth, scores, sample_weight=weights))


def event_based_f1(
    references: Mapping[str, Sequence[Event]],
    detections: Mapping[str, Sequence[Event]],
    labels: Sequence[str],
    *,
    onset_collar_s: float = 0.2,
    offset_collar_s: float = 0.2,
    offset_share: float = 0.2,
) -> EventScores:
    """Event-based F1 of detected events, by file (Mesaros et al. 2016, Applied Sciences 6(6); DCASE task 4).

    A detection matches a reference with its label in its file if it starts within `onset_collar_s` of it and
    ends within `offset_collar_s`, or within `offset_share` of the reference's length if that is more. Each
    event is matched at most once, with as many matches as possible. A file without events has an empty list;
    a file without detections may be missing from `detections`. A label that is detected but never referenced
    has an F1 of 0. Raises ValueError for invalid labels, files or times, and if there is no reference.
    """
    names = check_labels(labels)
    check_events(references, names)
    check_events(detections, names)
    if unknown := sorted(detections.keys() - references.keys()):
        raise ValueError(f"no references for {unknown[0]}: give it an empty list if it has no events")
    if not any(references.values()):
        raise ValueError("there is no reference event: F1 is undefined")
    counts = {}
    for name in names:
        hits = found = there = 0
        for file, events in references.items():
            true = _times(events, name)
            told = _times(detections.get(file, ()), name)
            reach = np.maximum(offset_collar_s, offset_share * (true[:, 1] - true[:, 0]))
            starts = np.abs(true[:, None, 0] - told[None, :, 0]) <= onset_collar_s + SLACK_S
            ends = np.abs(true[:, None, 1] - told[None, :, 1]) <= reach[:, None] + SLACK_S
            hits, there, found = hits + _matched(starts & ends), there + len(true), found + len(told)
        if there or found:
            counts[name] = EventCounts(hits, there, found)
    everything = EventCounts(*np.sum([(c.hits, c.references, c.detections) for c in counts.values()], axis=0))
    return EventScores(
        macro_f1=float(np.mean([count.f1 for count in counts.values()])),
        micro_f1=float(everything.f1),
        per_label=counts,
        left_out=tuple(name for name in names if name not in counts),
    )


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels as a tuple. Raises ValueError if there are none, or a label occurs twice."""
    if isinstance(labels, str) or not labels or len(set(labels)) < len(labels):
        raise ValueError("labels must be a list of at least one label, each once")
    return tuple(labels)


def check_events(events_of: Mapping[str, Sequence[Event]], labels: Sequence[str]) -> None:
    """Raises ValueError naming the file of an event with an unknown label or invalid times."""
    for file, events in events_of.items():
        for label, start, end in events:
            if label not in labels:
                raise ValueError(f"unknown label {label} in {file}: the labels are {', '.join(labels)}")
            if not 0 <= start < end < np.inf:
                raise ValueError(f"{file} has an event from {start} to {end} s: 0 <= start < end must hold")


def _times(events: Sequence[Event], label: str) -> NDArray[np.float64]:
    """Start and end of the events with a label, shape (events, 2)."""
    return np.array([(start, end) for name, start, end in events if name == label]).reshape(-1, 2)


def _matched(fits: NDArray[np.bool_]) -> int:
    """The largest number of fitting pairs (row, column), with each row and column in at most one."""
    if not fits.any():
        return 0
    with eval_extra("event-based F1"):
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_bipartite_matching
    return int((maximum_bipartite_matching(csr_array(fits), perm_type="column") >= 0).sum())


def _tags(truth_NK: ArrayLike, scores_NK: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    truth, scores = np.asarray(truth_NK), np.asarray(scores_NK, dtype=np.float64)
    if truth.ndim != 2 or truth.shape != scores.shape:
        raise ValueError(
            f"truth and scores must be of one shape (clips, labels), not {truth.shape} and {scores.shape}"
        )
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("truth must be true or false (1 or 0) for each clip and label")
    if not np.isfinite(scores).all():
        raise ValueError("the scores must be finite numbers")
    if not truth.any():
        raise ValueError("no clip has a label: precision is undefined")
    return truth.astype(bool), scores
