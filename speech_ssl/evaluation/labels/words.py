"""The numbers and the sentences of a label-efficiency report, each made from the trials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from speech_ssl.evaluation.labels.efficiency import Arm, Confusion, Key, Point, Trial
from speech_ssl.evaluation.labels.summary import PRETRAINED, Outcome, Saving, Summary, TaskSummary

ARM_NAMES: dict[Arm, str] = {"scratch": "from scratch", "frozen": "frozen", "finetuned": "fine-tuned"}
OUTCOMES: dict[Outcome, str] = {
    "helps": "helped",
    "hurts": "hurt",
    "no clear difference": "made no clear difference",
    "too few seeds": "has too few seeds for a verdict",
}
PERCENT = {"accuracy", "cer", "wer", "per", "eer", "error rate", "uar", "balanced accuracy"}
"""Metrics that are read in percent, in lower case; all others are shown with three decimals."""
POINTS = " points"
OVERFIT_RISE = 0.05


def number(value: float, metric: str) -> str:
    return f"{100 * value:.1f}%" if metric.lower() in PERCENT else f"{value:.3f}"


def change(value: float, metric: str) -> str:
    """With its sign: in percentage points, or as the metric itself."""
    percent = metric.lower() in PERCENT
    digits = f"{abs(100 * value):.1f}" if percent else f"{abs(value):.3f}"
    sign = "\u00b1" if not digits.strip("0.") else "+" if value > 0 else "\u2212"
    return sign + digits + (POINTS if percent else "")


def percent(share: float) -> str:
    return f"{100 * share:g}%"


def title(task: str) -> str:
    words = task.replace("_", " ")
    return words[:1].upper() + words[1:]


def listed(parts: Iterable[str]) -> str:
    """a; a and b; a, b and c."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def headline(summary: Summary) -> str:
    """How often pre-training helped, over all tasks."""
    said = []
    for arm, doing in (("finetuned", "fine-tuning a pre-trained network"), ("frozen", "keeping it frozen")):
        outcomes = [
            v.outcome for t in summary.tasks for v in t.verdicts if v.arm == arm and v.low is not None
        ]
        if outcomes:
            helped, hurt, unclear = (outcomes.count(o) for o in ("helps", "hurts", "no clear difference"))
            parts = [f"helped in {helped} of {len(outcomes)} comparisons", f"hurt in {hurt or 'none'}"]
            parts += [f"made no clear difference in {unclear}"] if unclear else []
            said.append(f"{doing} {listed(parts)}")
    if not said:
        return (
            "No comparison of a pre-trained network with one from scratch has enough seeds for a verdict yet."
        )
    return sentence(f"compared with training from scratch, {'; '.join(said)}")


def task_statement(task: TaskSummary) -> str:
    """What the first paragraph says of a task: where fine-tuning helped, and the ends of the curves."""
    verdicts = [v for v in task.verdicts if v.arm == "finetuned" and v.low is not None]
    said = []
    if verdicts:
        clear: tuple[Outcome, ...] = ("helps", "hurts")
        places = {outcome: [percent(v.share) for v in verdicts if v.outcome == outcome] for outcome in clear}
        parts = [f"{OUTCOMES[o]} with {listed(found)} of the labels" for o, found in places.items() if found]
        said.append(
            f"fine-tuning {listed(parts or ['made no clear difference with any share of the labels'])}"
        )
    said += _values_at_ends(task)
    return " ".join(map(sentence, said))


def verdict_sentences(task: TaskSummary) -> list[str]:
    """One for each arm, with the differences; one for each on the labels that it saves."""
    said = []
    for arm in reversed(PRETRAINED):
        verdicts = [v for v in task.verdicts if v.arm == arm]
        grouped = [(outcome, [v for v in verdicts if v.outcome == outcome]) for outcome in OUTCOMES]
        parts = [
            f"{OUTCOMES[outcome]} with {listed(percent(v.share) for v in found)} "
            f"({_span([v.difference for v in found], task.metric)})"
            for outcome, found in grouped
            if found
        ]
        if parts:
            doing = "fine-tuning" if arm == "finetuned" else "the frozen network"
            said.append(sentence(f"{doing} {'; '.join(parts)}"))
    return said + [saving_sentence(saving, task.metric) for saving in reversed(task.savings)]


def saving_sentence(saving: Saving, metric: str) -> str:
    name, target = ARM_NAMES[saving.arm], number(saving.target, metric)
    level = f"the {target} that scratch reaches with all {saving.all_labels:,} labels"
    if saving.times is None or saving.labels is None:
        so_far = f" with {saving.most_labels:,} or fewer, the most that it was trained on so far"
        unfinished = so_far if saving.most_labels < saving.all_labels else ""
        return sentence(f"{name}, the network does not reach {level}{unfinished}")
    reached = [times for times in saving.by_seed if times is not None]
    spread = ""
    if len(saving.by_seed) > 1:
        few = f"{len(reached)} of {len(saving.by_seed)} seeds reach it, " if None in saving.by_seed else ""
        spread = f" ({few}{_between(reached)} seed by seed)" if reached else " (no single seed reaches it)"
    need = "at most" if saving.at_most else "about"
    ratio = f"{'at least ' if saving.at_most else ''}{saving.times:.1f} times fewer{spread}"
    ratio = ratio if saving.times >= 1.05 else "no fewer"
    return sentence(
        f"{name}, the network needs {need} {rounded(saving.labels):,} labels for {level}: {ratio}"
    )


def rounded(labels: float) -> int:
    """To two digits: more are not known of a point between two shares."""
    return int(float(f"{labels:.2g}"))


def _between(times: Sequence[float]) -> str:
    low, high = f"{min(times):.1f}", f"{max(times):.1f}"
    return f"{low} times" if low == high else f"{low} to {high} times"


def missing_lines(missing: Sequence[Key]) -> list[str]:
    """One line for each task and arm: its shares with their seeds."""
    lines = []
    for (task, arm), keys in groupby(missing, key=lambda key: (key.task, key.arm)):
        shares = [
            f"{percent(share)} (seed {listed(str(key.seed) for key in same)})"
            for share, same in groupby(keys, key=lambda key: key.share)
        ]
        lines.append(f"{title(task)}, {ARM_NAMES[arm]}: {', '.join(shares)}")
    return lines


@dataclass(frozen=True)
class Ends:
    """Where the validation loss began, where it was lowest, and where training ended."""

    first: Point
    lowest: Point
    last: Point
    train_at_lowest: float | None
    train_at_end: float | None

    @property
    def overfits(self) -> bool:
        """The validation loss ends above its lowest by 5 % of that and of what it had fallen, and the
        training loss went on falling."""
        first, low, last = (p.valid_loss or 0.0 for p in (self.first, self.lowest, self.last))
        rises = last - low > OVERFIT_RISE * max(low, first - low)
        falls = (
            self.train_at_lowest is not None
            and self.train_at_end is not None
            and self.train_at_end < self.train_at_lowest
        )
        return rises and falls


def ends(curve: Sequence[Point]) -> Ends | None:
    """None where there is no validation loss."""
    valid = [point for point in curve if point.valid_loss is not None]
    train = [point for point in curve if point.train_loss is not None]
    if not valid:
        return None
    lowest = min(valid, key=lambda point: point.valid_loss or 0.0)
    near = min(train, key=lambda point: abs(point.step - lowest.step), default=None)
    return Ends(
        valid[0],
        lowest,
        valid[-1],
        near.train_loss if near else None,
        train[-1].train_loss if train else None,
    )


def curve_sentence(trial: Trial) -> str:
    """What the loss curves of a trial show."""
    who = ARM_NAMES[trial.arm]
    found = ends(trial.curve)
    if found is None:
        return sentence(f"{who}: no validation loss was kept")
    low, last = found.lowest, found.last
    text = f"{who}: the validation loss is lowest at step {low.step:,} ({low.valid_loss:.2f})"
    if found.overfits:
        text += (
            f" and ends at {last.valid_loss:.2f}, while the training loss falls on from "
            f"{found.train_at_lowest:.2f} to {found.train_at_end:.2f}: it overfits"
        )
    elif last.step > low.step:
        text += f" and ends at {last.valid_loss:.2f}"
    return sentence(f"{text}. The checkpoint of step {trial.best_step:,} was kept")


def confusion_sentence(confusion: Confusion) -> str:
    """How much is right, and the confusion that is most frequent among a class's clips."""
    counts = confusion.counts
    total, right = sum(map(sum, counts)), sum(row[i] for i, row in enumerate(counts))
    text = f"{right:,} of {total:,} test clips are right"
    wrong = [
        (count / sum(row), count, confusion.classes[i], confusion.classes[j])
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
        if i != j and count
    ]
    if wrong:
        share, _, said, taken = max(wrong)
        text += f"; most often \u201c{said}\u201d is taken for \u201c{taken}\u201d ({share:.0%} of its clips)"
    return sentence(text)


def _values_at_ends(task: TaskSummary) -> list[str]:
    """The arms at the smallest and at the largest share; they are named once if they are the same."""
    parts: list[str] = []
    named: list[Arm] = []
    for share in dict.fromkeys((task.shares[0], task.shares[-1])):
        cells = [cell for cell in task.cells if cell.share == share]
        arms = [cell.arm for cell in cells]
        if not cells:
            continue
        count = f"all {cells[0].labels:,}" if share == 1 else f"{percent(share)} ({cells[0].labels:,})"
        values = [number(cell.mean, task.metric) for cell in cells]
        if arms != named:
            values = [f"{value} {ARM_NAMES[arm]}" for value, arm in zip(values, arms, strict=True)]
        verb = "" if parts else f"{task.metric} is "
        parts.append(f"with {count}, {verb}{listed(values)}")
        named = arms
    return ["; ".join(parts)] if parts else []


def _span(differences: Sequence[float], metric: str) -> str:
    """One difference, or the lowest to the highest."""
    low, high = change(min(differences), metric), change(max(differences), metric)
    return low if low == high else f"{low.removesuffix(POINTS)} to {high}"
