"""Statistics of a label-efficiency study: means and spreads, verdicts, labels saved.

The verdicts compare each pre-trained arm with `scratch` at the same share, by Welch's unequal-variances t
interval for a difference of means (B. L. Welch, Biometrika 34, 1947), over seeds. With three seeds per arm
the interval is wide: only differences of about four times the seeds' standard deviation are found most of the
time. This is intended. For two equal arms of three normally distributed seeds, it finds a difference in 3 to
6 of 100 comparisons, whatever the ratio of their spreads. The other common rule, that the ranges of the seeds
do not overlap, finds one in 10 to 20 of 100.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import fmean, stdev, variance
from typing import Literal, TypeAlias

from speech_ssl.evaluation.labels.efficiency import ARMS, Arm, Key, Study, Trial

Outcome: TypeAlias = Literal["helps", "hurts", "no clear difference", "too few seeds"]
PRETRAINED: tuple[Arm, ...] = ("frozen", "finetuned")
MIN_SEEDS = 3
CONFIDENCE = 0.95
RULE = (
    "Pre-training helps, or hurts, at a share if the 95% interval for the difference of the two means over "
    "seeds excludes zero (Welch's interval: the arms may vary unequally). Otherwise there is no clear "
    f"difference. With fewer than {MIN_SEEDS} seeds in either arm there is no verdict."
)


@dataclass(frozen=True)
class Cell:
    """One arm at one share: test values in the order of the seeds. std: None for one seed."""

    arm: Arm
    share: float
    labels: int
    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return min(max(fmean(self.values), self.low), self.high)  # rounding moves the mean of equals

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    @property
    def std(self) -> float | None:
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Verdict:
    """A pre-trained arm compared with scratch at one share.

    difference: of the means, in the metric's own direction (for an error rate, below 0 is good). low, high:
    its 95 % interval; None with too few seeds.
    """

    arm: Arm
    share: float
    difference: float
    low: float | None
    high: float | None
    outcome: Outcome


@dataclass(frozen=True)
class Saving:
    """The number of labels with which a pre-trained arm matches scratch with all labels.

    target: mean of scratch with all labels. most_labels: in the arm's largest share. labels: None if no share
    reaches the target. at_most: the smallest share already reaches it, so fewer labels may do. times: all
    labels / labels. by_seed: times for each seed's own curve against the same target; None if not reached.
    """

    arm: Arm
    target: float
    all_labels: int
    most_labels: int
    labels: float | None
    at_most: bool
    by_seed: tuple[float | None, ...]

    @property
    def times(self) -> float | None:
        return None if self.labels is None else self.all_labels / self.labels


@dataclass(frozen=True)
class TaskSummary:
    """All about one task. shares ascend; cells, verdicts and savings exist only where there are trials."""

    name: str
    metric: str
    higher_is_better: bool
    guessing: float | None
    shares: tuple[float, ...]
    cells: tuple[Cell, ...]
    verdicts: tuple[Verdict, ...]
    savings: tuple[Saving, ...]

    def cell(self, arm: Arm, share: float) -> Cell | None:
        return next((c for c in self.cells if (c.arm, c.share) == (arm, share)), None)

    def labels(self, share: float) -> int | None:
        return next((c.labels for c in self.cells if c.share == share), None)


@dataclass(frozen=True)
class Summary:
    tasks: tuple[TaskSummary, ...]
    missing: tuple[Key, ...]


def summarise(trials: Sequence[Trial], study: Study | None = None) -> Summary:
    """All tasks, the study's first, then the others by name; and the planned trials that are missing.

    If the study names no shares or seeds, those of any trial count as planned. Raises ValueError if trials of
    a task differ in metric, direction, guessing or classes.
    """
    study = study or Study()
    found = sorted({trial.task for trial in trials} - set(study.tasks))
    names = [*study.tasks, *found]
    by_task = [[trial for trial in trials if trial.task == name] for name in names]
    tasks = tuple(summarise_task(of_task, study.shares) for of_task in by_task if of_task)
    shares = sorted(set(study.shares) or {t.share for t in trials})
    seeds = sorted(set(study.seeds) or {t.seed for t in trials})
    done = {trial.key for trial in trials}
    planned = (Key(name, arm, share, s) for name in names for arm in ARMS for share in shares for s in seeds)
    return Summary(tasks, tuple(key for key in planned if key not in done))


def summarise_task(trials: Sequence[Trial], planned: Iterable[float] = ()) -> TaskSummary:
    first = trials[0]
    measured = attrgetter("metric", "higher_is_better", "guessing")
    for trial in trials:
        classes = {t.confusion.classes for t in (first, trial) if t.confusion}
        if measured(trial) != measured(first) or len(classes) > 1:
            raise ValueError(f"{trial.key.name} and {first.key.name} are not measured alike: redo one")
    shares = tuple(sorted({trial.share for trial in trials} | set(planned)))
    cells = tuple(cell for arm in ARMS for share in shares if (cell := _cell(trials, arm, share)))
    by_place = {(cell.arm, cell.share): cell for cell in cells}
    verdicts = tuple(
        compare(by_place[arm, share], by_place["scratch", share], first.higher_is_better)
        for arm in PRETRAINED
        for share in shares
        if (arm, share) in by_place and ("scratch", share) in by_place
    )
    target = by_place.get(("scratch", 1.0))
    arms = [[c for c in cells if c.arm == arm] for arm in PRETRAINED] if target else []
    savings = tuple(_saving(curve, target, first.higher_is_better) for curve in arms if curve and target)
    return TaskSummary(first.task, *measured(first), shares, cells, verdicts, savings)


def compare(cell: Cell, scratch: Cell, higher_is_better: bool) -> Verdict:
    """The verdict by `RULE`."""
    difference = cell.mean - scratch.mean
    if min(len(cell.values), len(scratch.values)) < MIN_SEEDS:
        return Verdict(cell.arm, cell.share, difference, None, None, "too few seeds")
    half = welch_half_width(cell.values, scratch.values)
    low, high = difference - half, difference + half
    outcome: Outcome = "no clear difference"
    if low > 0 or high < 0:
        outcome = "helps" if (difference > 0) == higher_is_better else "hurts"
    return Verdict(cell.arm, cell.share, difference, low, high, outcome)


def welch_half_width(a: Sequence[float], b: Sequence[float]) -> float:
    """Half the width of the 95 % interval for the difference of the means of two samples, each of at least
    two values."""
    from scipy.special import stdtrit

    parts = [variance(values) / len(values) for values in (a, b)]
    if not sum(parts):
        return 0.0
    below = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    quantile = stdtrit(sum(parts) ** 2 / below, 0.5 + CONFIDENCE / 2)
    return float(quantile) * math.sqrt(sum(parts))


def labels_to_reach(
    curve: Sequence[tuple[int, float]], target: float, higher_is_better: bool
) -> float | None:
    """The fewest labels at which a curve of (labels, value), sorted by labels, reaches the target.

    Between two points the value is interpolated linearly in the logarithm of the labels.
    """
    sign = 1 if higher_is_better else -1
    gaps = [(labels, sign * (value - target)) for labels, value in curve]
    for number, (labels, gap) in enumerate(gaps):
        if gap >= 0:
            if number == 0:
                return float(labels)
            before, below = gaps[number - 1]
            way = -below / (gap - below)
            return float(before * (labels / before) ** way)
    return None


def _cell(trials: Sequence[Trial], arm: Arm, share: float) -> Cell | None:
    found = sorted((t for t in trials if (t.arm, t.share) == (arm, share)), key=lambda t: t.seed)
    if not found:
        return None
    seeds, values = tuple(t.seed for t in found), tuple(t.value for t in found)
    return Cell(arm, share, found[0].labels, seeds, values)


def _saving(cells: Sequence[Cell], scratch: Cell, higher_is_better: bool) -> Saving:
    labels = labels_to_reach([(c.labels, c.mean) for c in cells], scratch.mean, higher_is_better)
    by_seed = []
    for seed in sorted({seed for cell in cells for seed in cell.seeds}):
        curve = [
            (c.labels, value) for c in cells for s, value in zip(c.seeds, c.values, strict=True) if s == seed
        ]
        reached = labels_to_reach(curve, scratch.mean, higher_is_better)
        by_seed.append(None if reached is None else scratch.labels / reached)
    first, last = cells[0], cells[-1]
    at_most = labels == first.labels
    return Saving(first.arm, scratch.mean, scratch.labels, last.labels, labels, at_most, tuple(by_seed))
