"""The figures of a label-efficiency study, as PNG at twice the size. Needs the `train` extra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from speech_ssl.evaluation.labels.efficiency import ARMS, Arm, Confusion, Trial
from speech_ssl.evaluation.labels.summary import TaskSummary
from speech_ssl.evaluation.labels.words import ARM_NAMES, number, percent
from speech_ssl.evaluation.pages import new_figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Distinguishable for colour-blind readers, and in black and white.
COLOURS: dict[Arm, str] = {"scratch": "tab:gray", "frozen": "tab:orange", "finetuned": "tab:blue"}
MARKERS: dict[Arm, str] = {"scratch": "s", "frozen": "^", "finetuned": "o"}
MAX_NUMBERED, MAX_NAMED = 12, 30
"""Most classes for which a confusion matrix has numbers in its cells, and names at its sides."""


def share_figure(task: TaskSummary) -> bytes:
    """The metric over the labels: means over seeds, with bars from the lowest to the highest seed."""
    figure = new_figure(6.0, 4.0)
    axes = figure.subplots()
    axes.set_xscale("log")
    # Before the curves: a single share would leave the axis without a width.
    axes.set_xlim(task.shares[0] / 1.2, task.shares[-1] * 1.2)
    counts = [f"{labels:,}" if (labels := task.labels(share)) else "" for share in task.shares]
    axes.set_xticks(task.shares, [f"{percent(s)}\n{n}" for s, n in zip(task.shares, counts, strict=True)])
    axes.set_xticks([], minor=True)
    for place, arm in enumerate(ARMS):
        if cells := [cell for cell in task.cells if cell.arm == arm]:
            shift = 1.035 ** (place - 1)  # so that bars with similar values stand side by side
            means = [cell.mean for cell in cells]
            bars = [[c.mean - c.low for c in cells], [c.high - c.mean for c in cells]]
            look: dict[str, Any] = {"color": COLOURS[arm], "marker": MARKERS[arm], "capsize": 2.5}
            axes.errorbar([c.share * shift for c in cells], means, bars, label=ARM_NAMES[arm], **look)
    if task.guessing is not None:
        axes.axhline(task.guessing, color="black", linewidth=1, linestyle=":", label="guessing")
    axes.yaxis.set_major_formatter(lambda value, _: number(value, task.metric))
    axes.set_xlabel("share of the labels, and how many")
    axes.set_ylabel(f"test {task.metric}, {'higher' if task.higher_is_better else 'lower'} is better")
    axes.grid(alpha=0.3)
    axes.legend()
    return png(figure)


def curves_figure(trials: Sequence[Trial]) -> bytes | None:
    """Losses and validation metric of scratch and fine-tuned over the steps, with the first seed emphasised.
    None if no curve was recorded."""
    groups = shown([trial for trial in trials if trial.curve], ("scratch", "finetuned"))
    if not groups:
        return None
    figure = new_figure(3.2 * len(groups), 5.0)
    grid = figure.subplots(2, len(groups), sharex="col", sharey="row", squeeze=False)
    for (losses, metric), group in zip(grid.T, groups, strict=True):
        for trial in group:
            first, colour = trial is group[0], COLOURS[trial.arm]
            look: dict[str, Any] = {"linewidth": 1.8 if first else 0.8, "alpha": 1.0 if first else 0.6}
            _curve(losses, trial, "train_loss", color="black", linestyle=":", label="training", **look)
            _curve(losses, trial, "valid_loss", color=colour, label="validation", **look)
            _curve(metric, trial, "valid_metric", color=colour, **look)
            if first:
                losses.legend()
        for axes in (losses, metric):
            axes.axvline(group[0].best_step, color="black", linewidth=0.8, linestyle="--")
            axes.grid(alpha=0.3)
        losses.set_title(_heading(group[0]), fontsize=10)
        metric.set_xlabel("step")
    grid[0, 0].set_ylabel("loss")
    name = groups[0][0].metric
    grid[1, 0].set_ylabel(f"validation {name}")
    grid[1, 0].yaxis.set_major_formatter(lambda value, _: number(value, name))
    return png(figure)


def confusion_figure(trials: Sequence[Trial]) -> bytes | None:
    """Confusion matrices in percent: each row is a class, and shows how its clips, over all seeds, were
    classified. None if no trial has a matrix."""
    groups = shown([trial for trial in trials if trial.confusion is not None], ARMS)
    if not groups:
        return None
    columns = min(len(ARMS), len(groups))
    rows = -(-len(groups) // columns)
    figure = new_figure(3.6 * columns, 3.8 * rows)
    for place, group in enumerate(groups, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set_title(_heading(group[0]), fontsize=10)
        _draw_confusion(axes, [t.confusion for t in group if t.confusion is not None])
    return png(figure)


def shown(trials: Sequence[Trial], arms: Sequence[Arm]) -> list[list[Trial]]:
    """The trials of each arm, over seeds, at the smallest share that all arms (else any arm) have, and at the
    largest."""
    trials = [trial for trial in trials if trial.arm in arms]
    shares = sorted({trial.share for trial in trials})
    common = [s for s in shares if {t.arm for t in trials if t.share == s} == set(arms)] or shares
    ends = dict.fromkeys((*common[:1], *shares[-1:]))
    groups = [[t for t in trials if (t.arm, t.share) == (arm, share)] for share in ends for arm in arms]
    return [sorted(group, key=lambda trial: trial.seed) for group in groups if group]


def _draw_confusion(axes: Axes, seeds: Sequence[Confusion]) -> None:
    counts = np.sum([confusion.counts for confusion in seeds], axis=0)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    names = seeds[0].classes if len(shares) <= MAX_NAMED else ()
    size = 8.0 if len(shares) <= MAX_NUMBERED else 6.0
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    for (row, column), value in np.ndenumerate(shares if len(shares) <= MAX_NUMBERED else shares[:0]):
        if value >= 0.005:
            ink = "white" if value > 0.5 else "black"
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=ink, fontsize=size)


def _heading(trial: Trial) -> str:
    return f"{ARM_NAMES[trial.arm]}, {percent(trial.share)} ({trial.labels:,} labels)"


def _curve(axes: Axes, trial: Trial, field: str, **look: Any) -> None:
    points = [(point.step, getattr(point, field)) for point in trial.curve]
    axes.plot(*np.reshape([p for p in points if p[1] is not None], (-1, 2)).T, **look)
