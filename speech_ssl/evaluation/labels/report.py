"""The report of a label-efficiency study: a page, a table of results and figures, all from its trials.

The page is one file that asks for nothing from elsewhere: style and figures are inside, there is no script.
Its template is `assets/label_report.html`. Needs the `train` extra.
"""

from __future__ import annotations

import base64
import csv
import importlib.util
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from speech_ssl.evaluation.labels.confusions import confusion_panel, pooled
from speech_ssl.evaluation.labels.efficiency import (
    ARMS,
    Arm,
    Study,
    Trial,
    load_study,
    load_trials,
)
from speech_ssl.evaluation.labels.figures import (
    DARK,
    LIGHT,
    Limits,
    Panel,
    curves_panel,
    png,
    share_panel,
    svg,
)
from speech_ssl.evaluation.labels.summary import RULE, Summary, TaskSummary, Verdict, summarise
from speech_ssl.evaluation.labels.words import (
    ARM_NAMES,
    PERCENT,
    POINTS,
    change,
    confusion_sentence,
    curve_sentence,
    headline,
    missing_lines,
    number,
    percent,
    task_statement,
    title,
    verdict_sentences,
)
from speech_ssl.files import write_atomically

COLUMNS = (
    "task",
    "arm",
    "share",
    "labels",
    "seed",
    "metric",
    "value",
    "higher_is_better",
    "guessing",
    "best_step",
    "steps",
    "seconds",
)
SIGNS = {"helps": "\u25b2", "hurts": "\u25bc", "no clear difference": "\u2248", "too few seeds": "?"}
SHORT = {"no clear difference": "unclear", "too few seeds": "few seeds"}
CURVE_ARMS: tuple[Arm, ...] = ("scratch", "finetuned")


@dataclass(frozen=True)
class Shown:
    """A panel with its heading, its caption and what it says to those who do not see it. None: missing."""

    heading: str
    panel: Panel | None
    caption: str
    alt: str = ""


@dataclass(frozen=True)
class TaskFigures:
    """share, then rows of panels by share of the labels."""

    share: Shown
    curves: tuple[tuple[Shown, ...], ...]
    confusions: tuple[tuple[Shown, ...], ...]


def write_report(folder: Path) -> Path:
    """`report.html`, `results.csv` and `figures/*.png` of a study's folder; returns the page.

    Raises ValueError where there is no finished trial, or trials that do not belong together.
    """
    for package in ("matplotlib", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"a report needs {package}: pip install 'speech-ssl[train]'")
    trials, study = load_trials(folder), load_study(folder)
    if not trials:
        raise ValueError(f"{folder / 'trials'} holds no finished trial: run the study first")
    summary = summarise(trials, study)
    figures = [task_figures(task, [t for t in trials if t.task == task.name]) for task in summary.tasks]
    write_atomically(folder / "results.csv", results_csv(trials).encode())
    for task, drawn in zip(summary.tasks, figures, strict=True):
        write_pictures(folder / "figures", task, drawn)
    page = folder / "report.html"
    write_atomically(page, render(trials, summary, figures, study).encode())
    return page


def results_csv(trials: Iterable[Trial]) -> str:
    """A row for each trial, by task, arm, share and seed; numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for trial in sorted(trials, key=lambda t: (t.task, ARMS.index(t.arm), t.share, t.seed)):
        writer.writerow(getattr(trial, name) for name in COLUMNS)
    return text.getvalue()


def task_figures(task: TaskSummary, trials: Sequence[Trial]) -> TaskFigures:
    values = ", ".join(
        f"{ARM_NAMES[cell.arm]} {number(cell.mean, task.metric)} with {percent(cell.share)}"
        for cell in task.cells
    )
    alt = f"Line chart of {task.metric} against the share of the labels, one line for each arm: {values}."
    return TaskFigures(
        Shown(title(task.name), share_panel(task), "", alt),
        _rows(trials, CURVE_ARMS, lambda t: bool(t.curve), _shown_curves),
        _rows(trials, ARMS, lambda t: t.confusion is not None, _shown_confusions),
    )


def write_pictures(folder: Path, task: TaskSummary, figures: TaskFigures) -> None:
    rows = {"share": ((figures.share,),), "curves": figures.curves, "confusion": figures.confusions}
    for name, shown in rows.items():
        path = folder / f"{name}-{task.name}.png"
        if shown:
            panels = [[("" if name == "share" else one.heading, one.panel) for one in row] for row in shown]
            write_atomically(path, png(panels, title(task.name)))
        else:
            path.unlink(missing_ok=True)


def render(trials: Sequence[Trial], summary: Summary, figures: Sequence[TaskFigures], study: Study) -> str:
    """The page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"figure": _embedded, "percent": percent, "title": title}
    template = (files("speech_ssl") / "assets" / "label_report.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        headline=headline(summary),
        tasks=[
            _task_view(task, drawn, study.tasks) for task, drawn in zip(summary.tasks, figures, strict=True)
        ],
        missing=missing_lines(summary.missing),
        missing_count=len(summary.missing),
        planned_count=len(summary.missing) + _planned(trials, summary),
        trials=[
            _trial_view(t) for t in sorted(trials, key=lambda t: (t.task, ARMS.index(t.arm), t.share, t.seed))
        ],
        method=_method_view(trials, summary),
        study=study,
        rule=RULE,
    )


def _rows(
    trials: Sequence[Trial],
    arms: Sequence[Arm],
    drawable: Callable[[Trial], bool],
    show: Callable[[Mapping[Arm, list[Trial]]], Mapping[Arm, Shown]],
) -> tuple[tuple[Shown, ...], ...]:
    """For the smallest share that all the arms have, or any has, and for the largest: a row of panels."""
    found = [t for t in trials if t.arm in arms and drawable(t)]
    if not found:
        return ()
    shares = sorted({t.share for t in found})
    common = [s for s in shares if {t.arm for t in found if t.share == s} == set(arms)] or shares
    rows = []
    for share in dict.fromkeys((common[0], shares[-1])):
        shown = show({arm: by_arm for arm in arms if (by_arm := _of(found, arm, share))})
        labels = next(t.labels for t in found if t.share == share)
        rows.append(
            tuple(shown.get(arm) or Shown(_heading(arm, share, labels), None, "Missing.") for arm in arms)
        )
    return tuple(rows)


def _of(trials: Sequence[Trial], arm: Arm, share: float) -> list[Trial]:
    return sorted((t for t in trials if (t.arm, t.share) == (arm, share)), key=lambda t: t.seed)


def _heading(arm: Arm, share: float, labels: int) -> str:
    many = f"all {labels:,} labels" if share == 1 else f"{percent(share)} ({labels:,} labels)"
    return f"{title(ARM_NAMES[arm])}, {many}"


def _shown_curves(by_arm: Mapping[Arm, list[Trial]]) -> dict[Arm, Shown]:
    limits = Limits.of([trial for trials in by_arm.values() for trial in trials])
    shown = {}
    for arm, (first, *others) in by_arm.items():
        said = curve_sentence(first)
        alt = f"Line charts of the losses and of the validation {first.metric} over the steps. {said}"
        heading = _heading(arm, first.share, first.labels)
        shown[arm] = Shown(heading, curves_panel(first, others, limits), said, alt)
    return shown


def _shown_confusions(by_arm: Mapping[Arm, list[Trial]]) -> dict[Arm, Shown]:
    shown = {}
    for arm, trials in by_arm.items():
        confusion = pooled(trials)
        said = confusion_sentence(confusion)
        heading = _heading(arm, trials[0].share, trials[0].labels)
        shown[arm] = Shown(heading, confusion_panel(confusion), said, f"Confusion matrix. {said}")
    return shown


def _embedded(shown: Shown) -> dict[str, Any]:
    assert shown.panel is not None
    pictures = {
        name: "data:image/svg+xml;base64," + base64.b64encode(svg(shown.panel, theme).encode()).decode()
        for name, theme in (("light", LIGHT), ("dark", DARK))
    }
    width, height = shown.panel.size
    return {"width": width, "height": height, "alt": shown.alt, **pictures}


def _task_view(task: TaskSummary, figures: TaskFigures, about: Mapping[str, str]) -> dict[str, Any]:
    rows = [
        {
            "share": percent(share),
            "labels": task.labels(share),
            "cells": [_cell_view(task, arm, share) for arm in ARMS],
        }
        for share in task.shares
    ]
    return {
        "name": task.name,
        "title": title(task.name),
        "about": about.get(task.name, ""),
        "metric": task.metric,
        "unit": " in points" if task.metric.lower() in PERCENT else "",
        "better": "higher" if task.higher_is_better else "lower",
        "guessing": None if task.guessing is None else number(task.guessing, task.metric),
        "statement": task_statement(task),
        "verdicts": verdict_sentences(task),
        "rows": rows,
        "figures": figures,
    }


def _cell_view(task: TaskSummary, arm: Arm, share: float) -> dict[str, Any] | None:
    cell = task.cell(arm, share)
    if cell is None:
        return None
    several = len(cell.values) > 1
    low, high = number(cell.low, task.metric), number(cell.high, task.metric)
    return {
        "mean": number(cell.mean, task.metric),
        "spread": f"{low.removesuffix('%')}\u2013{high}" if several else f"seed {cell.seeds[0]} only",
        "verdict": _verdict_view(task, verdict) if (verdict := task.verdict(arm, share)) else None,
    }


def _verdict_view(task: TaskSummary, verdict: Verdict) -> dict[str, str]:
    return {
        "sign": SIGNS[verdict.outcome],
        "outcome": SHORT.get(verdict.outcome, verdict.outcome),
        "change": change(verdict.difference, task.metric).removesuffix(POINTS),
    }


def _trial_view(trial: Trial) -> dict[str, Any]:
    return {
        "task": title(trial.task),
        "arm": ARM_NAMES[trial.arm],
        "share": percent(trial.share),
        "labels": trial.labels,
        "seed": trial.seed,
        "value": number(trial.value, trial.metric),
        "best_step": trial.best_step,
        "steps": trial.steps,
        "seconds": round(trial.seconds),
    }


def _planned(trials: Sequence[Trial], summary: Summary) -> int:
    return len({trial.key for trial in trials} - set(summary.missing))


def _method_view(trials: Sequence[Trial], summary: Summary) -> dict[str, Any]:
    steps = sorted({trial.steps for trial in trials})
    verdicts = [v for task in summary.tasks for v in task.verdicts if v.low is not None]
    return {
        "trials": len(trials),
        "seeds": sorted({trial.seed for trial in trials}),
        "shares": [percent(share) for share in sorted({trial.share for trial in trials})],
        "steps": f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}",
        "hours": f"{sum(trial.seconds for trial in trials) / 3600:.1f}",
        "comparisons": len(verdicts),
    }
