"""HEAR's shallow heads on frozen scene embeddings, cross-validated by folds.

Each fold is tested in turn, with the next one for validation and the others to train on, as heareval does
(heareval/predictions). Its head: linear, batch norm, dropout 0.1, ReLU, linear; Adam on batches of 1,024; the
validation score is taken every 3 epochs, and training ends when it has not risen 20 times in a row. Its grid
has one and two hidden layers, 4 learning rates and 2 initialisations, 16 points; here `GRID` has 2. One thing
is added: values are standardised by the training clips, so that layers and spectra of any scale are alike.

The linear head is that of the other probes (probes/linear.py): its penalty is chosen on training folds.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from speech_ssl.evaluation.probes.linear import Standard, cross_validate, folds, scores
from speech_ssl.evaluation.probes.representations import Means


class Point(NamedTuple):
    """Of the grid."""

    rate: float
    width: int = 1_024


GRID = (Point(1e-3), Point(3.2e-4))


@dataclass(frozen=True)
class Schedule:
    """heareval's numbers."""

    epochs: int = 500
    every: int = 3
    patience: int = 20
    batch: int = 1_024
    dropout: float = 0.1


@dataclass(frozen=True)
class FoldScores:
    """accuracies: of each tested fold, by its name. skipped: folds with a single class, not tested.
    predictions: label of each clip of `tested`, a clip's number."""

    accuracies: dict[str, float]
    uar: float
    tested: NDArray[np.intp]
    predictions: list[str]
    skipped: list[str]

    @property
    def mean(self) -> float:
        """What HEAR's tables show."""
        return float(np.mean(list(self.accuracies.values())))

    @property
    def deviation(self) -> float:
        """Between folds."""
        return float(np.std(list(self.accuracies.values())))


def linear(x_NLD: Means, labels: Sequence[str], keys: Sequence[str], *, seed: int = 0) -> FoldScores:
    """keys: each clip's fold. Raises ValueError as `cross_validate`."""
    found = cross_validate(x_NLD, labels, keys, grouped=True, seed=seed)
    accuracies = {name: one.accuracy for name, one in found.folds.items()}
    return FoldScores(accuracies, found.uar, found.tested, found.predictions, found.skipped)


def shallow(
    x_NLD: Means,
    labels: Sequence[str],
    keys: Sequence[str],
    *,
    grid: Sequence[Point] = GRID,
    schedule: Schedule | None = None,
    seed: int = 0,
) -> FoldScores:
    """One hidden layer. The point of the grid and the epoch are those with the best validation score. Leaves
    torch's global state as it was. Raises ValueError for fewer than three folds, or none to test."""
    names, (parts, skipped) = sorted(set(keys)), folds(keys, labels)
    if len(names) < 3 or not parts:
        raise ValueError(
            f"to train, validate and test needs three folds, one of them with two classes; there are "
            f"{len(names)}: {', '.join(names[:5])}"
        )
    every, truth = np.array(keys, dtype=object), np.array(labels, dtype=object)
    x_ND = x_NLD.reshape(len(x_NLD), -1)
    predictions: dict[str, list[str]] = {}
    for part in parts:
        valid = np.flatnonzero(every == names[(names.index(part.name) + 1) % len(names)])
        split = Split(np.setdiff1d(part.train, valid), valid, part.test)
        predictions[part.name] = _tested(x_ND, truth, split, grid, schedule or Schedule(), seed)
    accuracies = {p.name: scores(predictions[p.name], truth[p.test].tolist())[0] for p in parts}
    tested = np.concatenate([part.test for part in parts])
    together = [label for part in parts for label in predictions[part.name]]
    return FoldScores(accuracies, scores(together, truth[tested].tolist())[1], tested, together, skipped)


class Split(NamedTuple):
    """Indices of clips."""

    train: NDArray[np.intp]
    valid: NDArray[np.intp]
    test: NDArray[np.intp]


class Rows(NamedTuple):
    x_ND: Tensor
    y_N: Tensor
    """Numbers of classes; -1 for a class that is not trained on, always an error."""


def _tested(
    x_ND: NDArray[np.float32],
    truth: NDArray[np.object_],
    split: Split,
    grid: Sequence[Point],
    schedule: Schedule,
    seed: int,
) -> list[str]:
    """Predictions for the clips that are tested."""
    classes = sorted(set(truth[split.train]))
    if len(classes) < 2:
        raise ValueError(f"without a fold to test and one to validate there is a single class: {classes}")
    number = {label: i for i, label in enumerate(classes)}
    standard = Standard.of(x_ND[split.train, None])
    train, valid, test = (
        Rows(
            torch.from_numpy(standard.apply(x_ND[part, None])[:, 0]),
            torch.tensor([number.get(label, -1) for label in truth[part]]),
        )
        for part in split
    )
    with torch.random.fork_rng(devices=[]):
        fitted = []
        for point in grid:
            torch.manual_seed(seed)
            fitted.append(_fitted(train, valid, len(classes), point, schedule))
    best = min(fitted, key=lambda one: one.score).head
    with torch.no_grad():
        return [classes[i] for i in best(test.x_ND).argmax(1).tolist()]


class Fitted(NamedTuple):
    head: nn.Module
    score: tuple[float, float]
    """Share of errors and cross-entropy on the validation fold: the lower tuple is better."""


def _fitted(train: Rows, valid: Rows, classes: int, point: Point, schedule: Schedule) -> Fitted:
    """The head of the best epoch, in eval mode."""
    head = _head(train.x_ND.shape[1], classes, point, schedule)
    optimizer = torch.optim.Adam(head.parameters(), lr=point.rate)
    best, since = Fitted(copy.deepcopy(head).eval(), (1.0, float("inf"))), 0
    for epoch in range(1, schedule.epochs + 1):
        head.train()
        for rows in _batches(torch.randperm(len(train.y_N)), schedule.batch):
            optimizer.zero_grad()
            F.cross_entropy(head(train.x_ND[rows]), train.y_N[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if epoch % schedule.every:
            continue
        score = _score(head.eval(), valid)
        since = 0 if score < best.score else since + 1
        if since == 0:
            best = Fitted(copy.deepcopy(head), score)
        elif since == schedule.patience:
            break
    return best


def _head(inputs: int, classes: int, point: Point, schedule: Schedule) -> nn.Module:
    first, last = nn.Linear(inputs, point.width), nn.Linear(point.width, classes)
    nn.init.xavier_uniform_(first.weight)
    nn.init.xavier_uniform_(last.weight, gain=nn.init.calculate_gain("relu"))
    return nn.Sequential(first, nn.BatchNorm1d(point.width), nn.Dropout(schedule.dropout), nn.ReLU(), last)


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """Of at most `size`; none of a single row, of which batch norm knows no variance."""
    parts = (order[start : start + size] for start in range(0, len(order), size))
    return [rows for rows in parts if len(rows) > 1]


@torch.no_grad()
def _score(head: nn.Module, rows: Rows) -> tuple[float, float]:
    logits_NC = head(rows.x_ND)
    known_N = rows.y_N >= 0
    loss = F.cross_entropy(logits_NC[known_N], rows.y_N[known_N], reduction="sum") / max(len(rows.y_N), 1)
    return float((logits_NC.argmax(1) != rows.y_N).double().mean()), float(loss)
