"""Numbers and verdicts of a label-efficiency report, as text."""

from __future__ import annotations

from speech_ssl.evaluation.labels.efficiency import Arm
from speech_ssl.evaluation.labels.summary import Saving, TaskSummary, Verdict

ARM_NAMES: dict[Arm, str] = {"scratch": "from scratch", "frozen": "frozen", "finetuned": "fine-tuned"}
PERCENT = {"accuracy", "cer", "wer", "per", "eer", "error rate", "uar", "balanced accuracy"}
"""Metrics shown in percent, in lower case; all others get three decimals."""
POINTS = " points"


def number(value: float, metric: str) -> str:
    return f"{100 * value:.1f}%" if metric.lower() in PERCENT else f"{value:.3f}"


def change(value: float, metric: str) -> str:
    """Signed: in percentage points, or in the metric's own unit."""
    percent = metric.lower() in PERCENT
    digits = f"{abs(100 * value):.1f}" if percent else f"{abs(value):.3f}"
    sign = "\u00b1" if not digits.strip("0.") else "+" if value > 0 else "\u2212"
    return sign + digits + (POINTS if percent else "")


def percent(share: float) -> str:
    return f"{100 * share:g}%"


def verdict_lines(task: TaskSummary) -> list[str]:
    """One line per comparison with scratch, then one per arm with the labels saved."""
    lines = [verdict_line(verdict, task.metric) for verdict in task.verdicts]
    return lines + [saving_line(saving, task.metric) for saving in task.savings]


def verdict_line(verdict: Verdict, metric: str) -> str:
    difference = change(verdict.difference, metric)
    line = f"{ARM_NAMES[verdict.arm]}, {percent(verdict.share)}: {verdict.outcome}, {difference}"
    if verdict.low is None or verdict.high is None:
        return line
    low = change(verdict.low, metric).removesuffix(POINTS)
    return f"{line} (95% interval {low} to {change(verdict.high, metric)})"


def saving_line(saving: Saving, metric: str) -> str:
    name, target = ARM_NAMES[saving.arm], number(saving.target, metric)
    level = f"the {target} of scratch with all {saving.all_labels:,} labels"
    if saving.times is None or saving.labels is None:
        unfinished = f" (so far trained on at most {saving.most_labels:,})"
        return f"{name}: does not reach {level}" + unfinished * (saving.most_labels < saving.all_labels)
    labels = float(f"{saving.labels:.2g}")  # a point between two shares is known no more precisely
    need = f"{name}: {'at most' if saving.at_most else 'about'} {labels:,.0f} labels for {level}"
    if saving.times < 1.05:
        return f"{need}, no fewer"
    each = ", ".join("not reached" if times is None else f"{times:.1f}" for times in saving.by_seed)
    return f"{need}, {'at least ' * saving.at_most}{saving.times:.1f} times fewer (by seed: {each})"
