"""The figures of a label-efficiency study, on a light or a dark ground. Needs the `train` extra.

Each panel is drawn alone for the page, where panels flow with its width, and together with its
neighbours for a PNG. Arms differ in marker as well as in colour: blue, orange and grey, which colour-blind
readers can tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from speech_ssl.evaluation.labels.efficiency import ARMS, Arm, Trial
from speech_ssl.evaluation.labels.summary import TaskSummary
from speech_ssl.evaluation.labels.words import ARM_NAMES, PERCENT, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

MARKERS: dict[Arm, str] = {"scratch": "s", "frozen": "^", "finetuned": "o"}
FONTS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Noto Sans', 'Liberation Sans', sans-serif"


@dataclass(frozen=True)
class Theme:
    ground: str
    ink: str
    soft: str
    line: str
    full: str
    arms: dict[Arm, str]


LIGHT = Theme(
    ground="#ffffff",
    ink="#1b1d21",
    soft="#5a606b",
    line="#d8dbe0",
    full="#0b4a7f",
    arms={"scratch": "#6b7079", "frozen": "#b85c00", "finetuned": "#0068ad"},
)
DARK = Theme(
    ground="#15171b",
    ink="#e8eaed",
    soft="#a4abb6",
    line="#343941",
    full="#8fd0ff",
    arms={"scratch": "#a9afb9", "frozen": "#f0a040", "finetuned": "#5db4f0"},
)

Draw = Callable[["Figure | SubFigure", Theme], None]


@dataclass(frozen=True)
class Panel:
    """size: width and height in CSS pixels, as which the type is 12 pixels high."""

    size: tuple[int, int]
    draw: Draw


def svg(panel: Panel, theme: Theme) -> str:
    """The panel with a transparent ground, in the page's own font."""
    return _saved(panel, theme, "svg").decode().replace("'DejaVu Sans'", FONTS)


def png(rows: Sequence[Sequence[tuple[str, Panel | None]]], heading: str) -> bytes:
    """Titled panels in rows of the same length, light, at twice the size; None leaves a place empty."""
    sizes = [panel.size for row in rows for _, panel in row if panel is not None]
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes) + 26

    def draw(figure: Figure | SubFigure, theme: Theme) -> None:
        figure.suptitle(heading, x=0.01, ha="left", fontsize=12, fontweight="bold", color=theme.ink)
        parts = np.ravel(figure.subfigures(len(rows), len(rows[0])))  # type: ignore[arg-type]
        for part, (title, panel) in zip(parts, (place for row in rows for place in row), strict=True):
            part.suptitle(title, x=0.02, ha="left", fontsize=9, color=theme.ink)
            if panel is not None:
                panel.draw(part, theme)

    return _saved(Panel((width * len(rows[0]), height * len(rows) + 36), draw), LIGHT, "png")


def share_panel(task: TaskSummary) -> Panel:
    """The metric against the labels: means over seeds, with bars from the worst to the best seed."""

    def draw(figure: Figure | SubFigure, theme: Theme) -> None:
        axes = axes_on(figure, theme)
        axes.set_xscale("log")
        _share_ticks(axes, task)  # first: a single share would leave the axis without a width to draw in
        ends = []
        for number, arm in enumerate(ARMS):
            cells = [cell for cell in task.cells if cell.arm == arm]
            if not cells:
                continue
            shift = 1.035 ** (number - 1)  # so that bars of like values stand beside each other
            x, y = [cell.share * shift for cell in cells], [cell.mean for cell in cells]
            bars = [[c.mean - c.low for c in cells], [c.high - c.mean for c in cells]]
            axes.errorbar(x, y, bars, color=theme.arms[arm], marker=MARKERS[arm], **_LINE)
            ends.append((y[-1], ARM_NAMES[arm], theme.arms[arm]))
        if task.guessing is not None:
            axes.axhline(task.guessing, color=theme.soft, linewidth=1, linestyle=(0, (1, 2)))
            ends.append((task.guessing, "guessing", theme.soft))
        _scale(axes.yaxis, task.metric)
        axes.set_xlabel("share of the labels, and how many", color=theme.soft)
        direction = "higher" if task.higher_is_better else "lower"
        axes.set_title(f"Test {task.metric}, {direction} is better", loc="left", color=theme.ink)
        _label_ends(axes, ends)

    return Panel((400, 310), draw)


_LINE: dict[str, Any] = {"linewidth": 1.8, "markersize": 5, "elinewidth": 1.3, "capsize": 2.5}


def curves_panel(shown: Trial, others: Sequence[Trial], limits: Limits) -> Panel:
    """Losses above, the validation metric below, over the steps of a trial, its other seeds thin."""

    def draw(figure: Figure | SubFigure, theme: Theme) -> None:
        axes = [axes_on(figure, theme, place) for place in (211, 212)]
        for trial in (*others, shown):
            _draw_losses(axes[0], trial, theme, strong=trial is shown)
            _draw_metric(axes[1], trial, theme, strong=trial is shown)
        for one in axes:
            one.axvline(shown.best_step, color=theme.ink, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            one.set_xlim(left=0)
        axes[0].set_ylim(*limits.loss)
        axes[1].set_ylim(*limits.metric)
        axes[0].tick_params(labelbottom=False)
        axes[1].set_title(f"Validation {shown.metric}", loc="left", color=theme.ink)
        axes[1].set_xlabel("step", color=theme.soft)
        _scale(axes[1].yaxis, shown.metric)
        axes[0].legend(labelcolor=theme.ink, **_LEGEND)

    return Panel((285, 335), draw)


_LEGEND: dict[str, Any] = {  # on the line of the title, off the curves
    "loc": "lower right",
    "bbox_to_anchor": (1.0, 1.0),
    "ncols": 3,
    "frameon": False,
    "fontsize": 7.5,
    "handlelength": 1.1,
    "handletextpad": 0.4,
    "columnspacing": 0.8,
    "borderpad": 0.3,
    "borderaxespad": 0.0,
}


@dataclass(frozen=True)
class Limits:
    """The ranges of the axes that panels side by side share, so that heights compare."""

    loss: tuple[float, float]
    metric: tuple[float, float]

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> Limits:
        """All values; but where the losses of the first tenth of a training are more than twice as high as
        any later one, they would flatten the rest, and run out at the top."""
        early, late, metrics = [0.0], [0.0], [0.0]
        for trial in trials:
            for point in trial.curve:
                losses = late if point.step >= trial.steps / 10 else early
                losses += [v for v in (point.train_loss, point.valid_loss) if v is not None]
                metrics += [v for v in (point.valid_metric,) if v is not None]
        kept = late if max(late) and max(early) > 2 * max(late) else early + late
        return cls(_padded(kept), _padded(metrics))


def _saved(panel: Panel, theme: Theme, kind: str) -> bytes:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "label efficiency", "font.size": 9, "axes.titlesize": 9}
    ):
        figure = Figure(figsize=(panel.size[0] / 96, panel.size[1] / 96), layout="constrained")
        FigureCanvasAgg(figure)
        panel.draw(figure, theme)
        file = io.BytesIO()
        if kind == "svg":
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        else:
            figure.savefig(file, format="png", dpi=192, facecolor=theme.ground)
    return file.getvalue()


def axes_on(figure: Figure | SubFigure, theme: Theme, place: int = 111) -> Axes:
    """Plain axes in the theme's colours."""
    axes = figure.add_subplot(place)
    axes.set_facecolor("none")
    axes.grid(color=theme.line, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.soft, labelsize=9, length=0, which="both")
    for side, spine in axes.spines.items():
        spine.set_color(theme.line)
        spine.set_visible(side == "bottom")
    return axes


def _share_ticks(axes: Axes, task: TaskSummary) -> None:
    counts = [task.labels(share) for share in task.shares]
    names = [
        percent(s) if n is None else f"{percent(s)}\n{n:,}" for s, n in zip(task.shares, counts, strict=True)
    ]
    axes.set_xticks(task.shares, names)
    axes.set_xticks([], minor=True)
    axes.set_xlim(task.shares[0] / 1.2, task.shares[-1] * 1.2)


def _scale(axis: Any, metric: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(5))
    if metric.lower() in PERCENT:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names at the right of the lines' ends, moved apart where they would touch."""
    low, high = axes.get_ylim()
    apart = 0.062 * (high - low)
    ordered = sorted(ends)
    heights = [value for value, _, _ in ordered]
    for _ in range(50):
        for lower, upper in pairwise(range(len(heights))):
            if (overlap := apart - (heights[upper] - heights[lower])) > 1e-9:
                heights[lower] -= overlap / 2
                heights[upper] += overlap / 2
    for height, (_, name, colour) in zip(heights, ordered, strict=True):
        axes.text(1.01, height, name, color=colour, va="center", transform=axes.get_yaxis_transform())


def _draw_losses(axes: Axes, trial: Trial, theme: Theme, *, strong: bool) -> None:
    train = [(p.step, p.train_loss) for p in trial.curve if p.train_loss is not None]
    valid = [(p.step, p.valid_loss) for p in trial.curve if p.valid_loss is not None]
    look: dict[str, Any] = {"linewidth": 1.8 if strong else 0.8, "alpha": 1 if strong else 0.6}
    for name, points, colour, style in (
        ("training loss", train, theme.soft, (0, (2, 1.2))),
        ("validation loss", valid, theme.arms[trial.arm], "-"),
    ):
        if points:
            label = name if strong else None
            axes.plot(*zip(*points, strict=True), color=colour, linestyle=style, label=label, **look)
    if strong:
        _mark_kept(axes, trial, valid, theme)


def _draw_metric(axes: Axes, trial: Trial, theme: Theme, *, strong: bool) -> None:
    points = [(p.step, p.valid_metric) for p in trial.curve if p.valid_metric is not None]
    if points:
        look: dict[str, Any] = {"linewidth": 1.8 if strong else 0.8, "alpha": 1 if strong else 0.6}
        axes.plot(*zip(*points, strict=True), color=theme.arms[trial.arm], **look)
    if strong:
        _mark_kept(axes, trial, points, theme)


def _mark_kept(axes: Axes, trial: Trial, points: Sequence[tuple[int, float]], theme: Theme) -> None:
    kept = [point for point in points if point[0] == trial.best_step]
    if kept:
        axes.plot(
            *kept[0], "o", color=theme.ink, markersize=6, label="kept", linestyle="", clip_on=False, zorder=5
        )


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.06 * (high - low or 1.0)
    return low - (room if low else 0.0), high + room
