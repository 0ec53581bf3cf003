"""Results of probes: a table, and CSV lines by representation and by layer."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from speech_ssl.evaluation.probes.figures import Column
from speech_ssl.evaluation.probes.tasks import Outcome, Problem

MIXED, BEST, RANDOM = "all layers", "best layer", "random weights"
SHOWN = ("guessing", "MFCC", "log-mel", RANDOM, BEST, MIXED)


@dataclass(frozen=True)
class ProbedProblem:
    """A problem's outcomes: for each representation, and for each layer of the encoder alone."""

    data: str
    problem: Problem
    outcomes: dict[str, Outcome]
    layers: list[Outcome]

    @property
    def best(self) -> int:
        """The layer that the held-out training clips choose."""
        return min(range(len(self.layers)), key=lambda layer: self.layers[layer].held_out)


def table(rows: Sequence[ProbedProblem]) -> str:
    """Tasks by representations: accuracy, or EER."""
    head = ["task", "data", "measure", *SHOWN]
    lines = [[row.problem.name, row.data, row.problem.metric, *_shown(row)] for row in rows]
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            field.ljust(width) if i < 3 else field.rjust(width)
            for i, (field, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (head, *lines)
    )


def _shown(row: ProbedProblem) -> list[str]:
    scores = {name: f"{outcome.score:.3f}" for name, outcome in row.outcomes.items()}
    scores["guessing"] = f"{row.problem.guessing:.3f}"
    scores[BEST] += f" ({row.best})"
    return [scores[name] for name in SHOWN]


def probe_lines(rows: Iterable[ProbedProblem]) -> Iterable[Sequence[object]]:
    yield ("task", "data", "representation", "layer", "metric", "score", "uar", "min_dcf", "tested", "note")
    for row in rows:
        problem = row.problem
        for name, outcome in row.outcomes.items():
            others = ("", f"{outcome.other:.4f}") if problem.verify else (f"{outcome.other:.4f}", "")
            layer = row.best if name == BEST else ""
            score = (problem.metric, f"{outcome.score:.4f}", *others)
            yield problem.name, row.data, name, layer, *score, len(problem.tested_labels), problem.note
        score = (problem.metric, f"{problem.guessing:.4f}", "", "")
        yield problem.name, row.data, "guessing", "", *score, len(problem.tested_labels), problem.note


def layer_lines(rows: Iterable[ProbedProblem]) -> Iterable[Sequence[object]]:
    yield (
        "task",
        "data",
        "layer",
        "metric",
        "score",
        "uar_or_min_dcf",
        "weight",
        "held_out",
        "held_out_loss",
    )
    for row in rows:
        weights_L = row.outcomes[MIXED].layer_weights_L
        for layer, outcome in enumerate(row.layers):
            numbers = (outcome.score, outcome.other, float(weights_L[layer]), *outcome.held_out)
            fields = (row.problem.name, row.data, layer, row.problem.metric, *(f"{n:.4f}" for n in numbers))
            yield (*fields, "") if row.problem.verify else fields  # an EER comes without a loss


def write_csv(path: Path, lines: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def column(row: ProbedProblem) -> Column:
    scores_L = [outcome.score for outcome in row.layers]
    weights_L = row.outcomes[MIXED].layer_weights_L.tolist()
    return Column(row.problem.name, row.data, row.problem.verify, scores_L, weights_L)
