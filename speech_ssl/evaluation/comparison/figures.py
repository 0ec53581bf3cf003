"""The figures of a comparison, as PNG at twice the size. Needs the `train` extra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from speech_ssl.evaluation.comparison.results import Entry, Row
from speech_ssl.evaluation.pages import new_figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = ("-", "--", ":", "-.")
MAP_LABELS = 10
"""Classes that a map gives a colour of their own."""


def compute_figure(rows: Sequence[Row], task: str) -> bytes | None:
    """The linear probe's accuracy over the seconds trained, a line a method: means over seeds. None where
    there is no curve."""
    return _lines(rows, "probe", f"linear probe's accuracy on {task}", log=False)


def loss_figure(rows: Sequence[Row]) -> bytes | None:
    """Held-out losses relative to the first one: methods' losses are no like quantities."""
    return _lines(rows, "loss", "held-out loss, as a share of the first", log=True)


def _lines(rows: Sequence[Row], value: str, label: str, *, log: bool) -> bytes | None:
    figure = new_figure(7.5, 4.4)
    axes = figure.subplots()
    drawn = 0
    for row in rows:
        curves = [[(p.seconds, getattr(p, value)) for p in entry.curve] for entry in row.finished]
        curves = [[(s, v) for s, v in curve if v is not None] for curve in curves]
        if not (curves := [curve for curve in curves if curve]):
            continue
        length = min(map(len, curves))
        points = np.array([curve[:length] for curve in curves])  # seeds, points, (seconds, value)
        values = points[:, :, 1] / (points[:, :1, 1] if log else 1.0)
        axes.plot(
            points[:, :, 0].mean(0) / 60,
            values.mean(0),
            label=row.name,
            marker=".",
            color=f"C{drawn % 10}",
            linestyle=STYLES[drawn // 10 % len(STYLES)],
        )
        drawn += 1
    if not drawn:
        return None
    axes.set_xlabel("minutes of training")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=1 + drawn // 14, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return png(figure)


def layers_figure(rows: Sequence[Row], tasks: Sequence[str]) -> bytes | None:
    """The score of every layer, a panel a task, a line of cells a method: means over seeds, shaded within the
    panel. None where no encoder has layers."""
    shown = [row for row in rows if any(len(s.layers) > 1 for t in tasks for s in row.scores(t))]
    if not shown:
        return None
    figure = new_figure(1.6 + 2.4 * len(tasks), 0.9 + 0.24 * len(shown))
    grid = figure.subplots(1, len(tasks), squeeze=False)
    for axes, task in zip(grid[0], tasks, strict=True):
        _layer_cells(axes, shown, task)
    for axes in grid[0, 1:]:
        axes.set_yticks([])
    return png(figure)


def _layer_cells(axes: Axes, shown: Sequence[Row], task: str) -> None:
    deepest = max(len(score.layers) for row in shown for score in row.scores(task))
    cells = np.full((len(shown), deepest), np.nan)
    lower = False
    for place, row in enumerate(shown):
        if scores := row.scores(task):
            means = np.mean([score.layers for score in scores], axis=0)
            cells[place, : len(means)] = means
            lower = scores[0].metric == "EER"
    shades = -cells if lower else cells
    axes.imshow(shades, aspect="auto", cmap="Blues")
    middle = (np.nanmin(shades) + np.nanmax(shades)) / 2
    for place, row_of_cells in enumerate(cells):
        for layer, value in enumerate(row_of_cells):
            if np.isfinite(value):
                dark = shades[place, layer] > middle
                text = f"{value:.2f}".removeprefix("0")
                axes.text(
                    layer,
                    place,
                    text,
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="white" if dark else "black",
                )
    axes.set_xticks(range(deepest))
    axes.set_yticks(range(len(shown)), [row.name for row in shown], fontsize=7)
    axes.set_title(task, fontsize=9)
    axes.set_xlabel("layer", fontsize=8)
    axes.tick_params(labelsize=7)


def map_figure(entries: Sequence[Entry]) -> bytes | None:
    """The first seeds' clips in two dimensions, a panel an encoder, coloured by the most frequent labels."""
    shown = [entry for entry in entries if entry.vectors is not None and entry.vectors.map]
    if not shown:
        return None
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure = new_figure(2.3 * columns, 2.4 * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, entry in zip(grid.flat, shown, strict=False):
        _map(axes, entry)
    return png(figure)


def _map(axes: Axes, entry: Entry) -> None:
    assert entry.vectors is not None
    labels = np.array([label for _, _, label in entry.vectors.map], dtype=object)
    points = np.array([(x, y) for x, y, _ in entry.vectors.map])
    names, counts = np.unique(labels.astype(str), return_counts=True)
    frequent = names[np.argsort(-counts, kind="stable")][:MAP_LABELS]
    for place, name in enumerate(frequent):
        chosen = labels == name
        axes.scatter(points[chosen, 0], points[chosen, 1], s=4, color=f"C{place}", label=name)
    others = ~np.isin(labels.astype(str), frequent)
    axes.scatter(points[others, 0], points[others, 1], s=3, color="lightgray", zorder=0)
    axes.set_title(entry.name, fontsize=8)
