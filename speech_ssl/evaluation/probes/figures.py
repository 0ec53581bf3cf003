"""Figures of probes: the score of each layer on each task, and its weight in the learned mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_SPAN = 0.1


@dataclass(frozen=True)
class Column:
    """One task on one data set. scores_L: each layer alone. weights_L: the learned mix, sums to 1."""

    task: str
    data: str
    lower_is_better: bool
    scores_L: Sequence[float]
    weights_L: Sequence[float]


def draw_layers(columns: Sequence[Column], out: Path, *, title: str) -> None:
    """Two heat maps, layers x tasks: scores of single layers, and learned weights.

    Scores are shaded by their distance from the best layer of the same task; the numbers are absolute. Raises
    ModuleNotFoundError if matplotlib, of the `train` extra, is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need matplotlib: install the `train` extra") from error

    scores_LK = np.array([column.scores_L for column in columns]).T
    weights_LK = np.array([column.weights_L for column in columns]).T
    layers = len(scores_LK)
    figure = Figure(figsize=(3.2 + 1.15 * len(columns), 3.4 + 0.7 * layers), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    shades_LK = nearness(scores_LK, np.array([column.lower_is_better for column in columns]))
    _heat_map(above, shades_LK, [[f"{value:.3f}" for value in row] for row in scores_LK])
    _heat_map(below, weights_LK, [[f"{value:.2f}" for value in row] for row in weights_LK])
    above.set_title(
        "one layer alone: accuracy (verification: EER); the darker, the nearer to the task's best",
        fontsize=10,
    )
    below.set_title("learned weight of each layer", fontsize=10)
    names = [f"{column.task}\n{column.data}" for column in columns]
    below.set_xticks(range(len(columns)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=9)
    figure.suptitle(title, fontsize=11)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)


def nearness(scores_LK: NDArray[np.float64], lower_K: NDArray[np.bool_]) -> NDArray[np.float64]:
    """1 for the best of a column, 0 for its worst. If those are closer than LEAST_SPAN, LEAST_SPAN is the
    scale: a difference of one clip must not look like black and white."""
    signed_LK = np.where(lower_K, -scores_LK, scores_LK)
    behind_LK = signed_LK.max(0) - signed_LK
    return np.asarray(1 - behind_LK / behind_LK.max(0).clip(LEAST_SPAN))


def _heat_map(axes: Any, shades_LK: NDArray[np.float64], texts: Sequence[Sequence[str]]) -> None:
    """Layers from the bottom up, as they are stacked."""
    axes.imshow(shades_LK, aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=1)
    for layer, row in enumerate(texts):
        for place, text in enumerate(row):
            colour = "white" if shades_LK[layer, place] > 0.6 else "black"
            axes.text(place, layer, text, ha="center", va="center", fontsize=8.5, color=colour)
    axes.set_yticks(range(len(texts)))
    axes.set_ylabel("layer")
    axes.tick_params(length=0)
