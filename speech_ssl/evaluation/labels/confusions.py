"""Confusion matrices of a label-efficiency study, as panels. Needs the `train` extra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speech_ssl.evaluation.labels.efficiency import Confusion, Trial
from speech_ssl.evaluation.labels.figures import Panel, Theme, axes_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure

MAX_NUMBERED, MAX_NAMED = 12, 30
"""Classes up to which a confusion matrix has numbers in its cells, and names at its sides."""


def confusion_panel(confusion: Confusion) -> Panel:
    """Each row is a class: of its clips, the share that was taken for each class."""
    counts = np.array(confusion.counts, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def draw(figure: Figure | SubFigure, theme: Theme) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        axes = axes_on(figure, theme)
        axes.grid(False)
        colours = LinearSegmentedColormap.from_list("shares", [theme.ground, theme.full])
        axes.set_anchor("N")
        axes.imshow(shares, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
        axes.set_xlabel("taken for", color=theme.soft)
        axes.set_ylabel("class", color=theme.soft)
        named = len(shares) <= MAX_NAMED
        places, names = (range(len(shares)), confusion.classes) if named else ([], [])
        small = 9.0 if len(shares) <= MAX_NUMBERED else 6.0
        turn = 0 if max(map(len, confusion.classes)) * len(shares) <= 30 else 90
        axes.set_xticks(places, names, rotation=turn, fontsize=small)
        axes.set_yticks(places, names, fontsize=small)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(True)
        if len(shares) <= MAX_NUMBERED:
            _write_shares(axes, shares, colours, theme)

    return Panel((330, 330), draw)


def pooled(trials: Sequence[Trial]) -> Confusion:
    """The confusions of several seeds, added. Raises ValueError where there is none."""
    found = [trial.confusion for trial in trials if trial.confusion is not None]
    if not found:
        raise ValueError("no trial has a confusion matrix")
    counts = np.sum([confusion.counts for confusion in found], axis=0)
    return Confusion(found[0].classes, tuple(tuple(row) for row in counts.tolist()))


def _write_shares(axes: Axes, shares: NDArray[np.float64], colours: Colormap, theme: Theme) -> None:
    for (row, column), value in np.ndenumerate(shares):
        if value >= 0.005:
            cell = _luminance(colours(float(value)))
            ink = max((theme.ink, theme.ground), key=lambda colour: _contrast(cell, _luminance(colour)))
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=ink, fontsize=8)


def _luminance(colour: Any) -> float:
    """Relative luminance (WCAG 2.1)."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def _contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)
