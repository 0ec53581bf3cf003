"""The page of a comparison: one file that asks for nothing from elsewhere, from the results in a folder. Its
template is `assets/comparison_report.html`. Needs the `train` extra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from speech_ssl.evaluation.comparison.figures import (
    compute_figure,
    layers_figure,
    loss_figure,
    map_figure,
)
from speech_ssl.evaluation.comparison.results import (
    Described,
    Entry,
    Row,
    TaskScore,
    load_described,
    load_entries,
    rows,
)
from speech_ssl.evaluation.pages import check_can_report, render_page
from speech_ssl.files import write_atomically


def write_report(folder: Path) -> Path:
    """`report.html` of a comparison's folder, whose path is returned. Raises ValueError without a result."""
    check_can_report()
    described, entries = load_described(folder), load_entries(folder)
    if described is None or not entries:
        raise ValueError(f"{folder} holds no result of a comparison: run it first")
    page = folder / "report.html"
    write_atomically(page, render(described, entries).encode())
    return page


def render(described: Described, entries: Sequence[Entry]) -> str:
    tasks = list(dict.fromkeys(score.task for entry in entries for score in entry.scores))
    found = rows(entries, tasks)
    firsts = [row.finished[0] for row in found if row.finished]
    done = {entry.key for entry in entries}
    return render_page(
        "comparison_report.html",
        {"duration": _duration},
        described=described,
        tasks={task: next(s for e in entries for s in e.scores if s.task == task) for task in tasks},
        rows=found,
        cells={(row.name, task): cell(row.scores(task)) for row in found for task in tasks},
        figures={
            name: drawn for name, drawn in _figures(found, firsts, tasks, described).items() if drawn[0]
        },
        failures=[entry for entry in entries if entry.failure],
        missing=[key for key in described.planned if key not in done],
        verdicts=[verdict(found, task) for task in tasks],
        beaten={row.name: beaten(found, row, tasks) for row in found},
    )


def _figures(
    found: Sequence[Row], firsts: Sequence[Entry], tasks: Sequence[str], described: Described
) -> dict[str, tuple[bytes | None, str]]:
    """By their headings: a PNG with its caption."""
    of = described.curve_of
    return {
        "Score against compute": (
            compute_figure(found, of),
            f"A linear probe of all layers on some clips of {of}, while the methods train: means over seeds.",
        ),
        "Losses": (
            loss_figure(found),
            "Held out, as a share of the first one: the losses of two methods are not alike.",
        ),
        "Layers": (
            layers_figure(found, tasks),
            "What each layer alone gives. 0 is what enters the first block.",
        ),
        "Map": (
            map_figure(firsts),
            "Clips of the first task, in the two directions in which the best layer's vectors vary most. "
            "Colours are the most frequent labels.",
        ),
    }


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.3g} min"


def cell(scores: Sequence[TaskScore]) -> str:
    """Mean, lowest to highest seed, and which layer is best."""
    if not scores:
        return "\u2013"
    values = [score.score for score in scores]
    text = f"{np.mean(values):.3f}"
    if len(values) > 1:
        text += f" ({min(values):.3f}\u2013{max(values):.3f})"
    if len(scores[0].layers) > 1:
        text += f", layer {'/'.join(str(layer) for layer in sorted({score.best for score in scores}))}"
    return text


def verdict(found: Sequence[Row], task: str) -> str:
    """Which method is first on a task, and which cannot be told from it by the spread of the seeds."""
    methods = [row for row in found if row.kind == "method" and row.scores(task)]
    if not methods:
        return f"{task}: no method has finished."
    lower = methods[0].scores(task)[0].metric == "EER"
    ordered = sorted(methods, key=lambda row: (row.mean(task) or 0.0) * (1 if lower else -1))
    first = ordered[0]
    seeds = {len(row.scores(task)) for row in methods}
    if max(seeds) == 1:
        return f"{task}: {first.name} is first. With one seed there is no spread: near scores may be noise."
    near = [row.name for row in ordered[1:] if overlaps(first, row, task)]
    if not near:
        return f"{task}: {first.name} is first by more than the spread of its seeds."
    others = ", ".join(near)
    return f"{task}: {first.name} is first, but the seeds of {others} reach as far: their order is noise."


def overlaps(one: Row, other: Row, task: str) -> bool:
    """Whether the seeds' ranges touch."""
    first, second = ([score.score for score in row.scores(task)] for row in (one, other))
    return min(first) <= max(second) and min(second) <= max(first)


def beaten(found: Sequence[Row], row: Row, tasks: Sequence[str]) -> int:
    """On how many tasks all of its seeds are better than every baseline."""
    count = 0
    for task in tasks:
        mine = [score.score for score in row.scores(task)]
        others = [s.score for other in found if other.kind == "baseline" for s in other.scores(task)]
        if mine and others:
            lower = row.scores(task)[0].metric == "EER"
            count += max(mine) < min(others) if lower else min(mine) > max(others)
    return count
