"""The report of a label-efficiency study: a page, a table of results and figures, all from its trials.

The page is a single file that loads nothing else: style and figures are embedded, and there is no script. Its
template is `assets/label_report.html`. Needs the `train` extra.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from speech_ssl.evaluation.labels.efficiency import (
    ARMS,
    Study,
    Trial,
    load_study,
    load_trials,
)
from speech_ssl.evaluation.labels.figures import confusion_figure, curves_figure, share_figure
from speech_ssl.evaluation.labels.summary import RULE, Cell, Summary, summarise
from speech_ssl.evaluation.labels.words import ARM_NAMES, number, percent, verdict_lines
from speech_ssl.evaluation.pages import check_can_report, render_page
from speech_ssl.files import write_atomically

COLUMNS = (
    *("task", "arm", "share", "labels", "seed", "metric", "value", "higher_is_better"),
    *("guessing", "best_step", "steps", "seconds"),
)
CAPTIONS = {
    "share": "Means over the seeds; the bars reach from the lowest seed to the highest.",
    "curves": "Loss and validation metric; thin lines are the other seeds. Dashed: the checkpoint that was "
    "kept, and tested.",
    "confusion": "Each row is a class: what percentage of its test clips was taken for each class, over all "
    "seeds.",
}


def write_report(folder: Path) -> Path:
    """Write `report.html`, `results.csv` and `figures/*.png` into a study's folder; returns the page's path.

    Raises ValueError if there is no finished trial, or if trials do not belong together.
    """
    check_can_report()
    trials, study = load_trials(folder), load_study(folder)
    if not trials:
        raise ValueError(f"{folder / 'trials'} holds no finished trial: run the study first")
    summary = summarise(trials, study)
    figures = {}
    for task in summary.tasks:
        found = [trial for trial in trials if trial.task == task.name]
        drawn = (share_figure(task), curves_figure(found), confusion_figure(found))
        figures[task.name] = dict(zip(CAPTIONS, drawn, strict=True))
    write_atomically(folder / "results.csv", results_csv(trials).encode())
    for name, pictures in figures.items():
        for kind, picture in pictures.items():
            path = folder / "figures" / f"{kind}-{name}.png"
            if picture:
                write_atomically(path, picture)
            else:
                path.unlink(missing_ok=True)
    page = folder / "report.html"
    write_atomically(page, render(trials, summary, figures, study).encode())
    return page


def results_csv(trials: Iterable[Trial]) -> str:
    """One row per trial, sorted by task, arm, share and seed; numbers in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for trial in sorted(trials, key=lambda t: (t.task, ARMS.index(t.arm), t.share, t.seed)):
        writer.writerow(getattr(trial, name) for name in COLUMNS)
    return text.getvalue()


def render(
    trials: Sequence[Trial],
    summary: Summary,
    figures: Mapping[str, Mapping[str, bytes | None]],
    study: Study,
) -> str:
    """The page. figures: of each task, PNGs by their kind."""
    return render_page(
        "label_report.html",
        {"cell": _cell_text, "number": number, "percent": percent, "verdicts": verdict_lines},
        tasks=summary.tasks,
        figures=figures,
        captions=CAPTIONS,
        arms=ARM_NAMES,
        missing=[key.name for key in summary.missing],
        done=len(trials),
        study=study,
        rule=RULE,
    )


def _cell_text(cell: Cell | None, metric: str) -> str:
    """Mean, range over the seeds, and their number."""
    if cell is None:
        return "missing"
    mean, low, high = (number(value, metric) for value in (cell.mean, cell.low, cell.high))
    if len(cell.values) == 1:
        return f"{mean} (one seed)"
    return f"{mean} ({low.removesuffix('%')}\u2013{high}, {len(cell.values)} seeds)"
