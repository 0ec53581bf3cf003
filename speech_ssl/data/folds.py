"""Which labelled rows are for training, for choosing the checkpoint, and for testing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from speech_ssl.data.labels import labels_of
from speech_ssl.data.manifest import ManifestError, Utterance
from speech_ssl.data.splits import given_splits, id_hash

VALID_SHARE = 0.1


class Fold(NamedTuple):
    """Rows to train on, to choose the checkpoint with, and to test on. No row is in two of them."""

    name: str
    train: list[Utterance]
    valid: list[Utterance]
    test: list[Utterance]


def folds(utterances: Sequence[Utterance], by: Literal["split", "speaker"]) -> list[Fold]:
    """One fold for each value of a column; its test set is the rows with that value. Every row is tested
    once.

    By `split`: the folds that a data set defines, such as ESC's (Piczak 2015). By `speaker`: leave one
    speaker out. `valid` is a tenth of the other rows, see `hold_out`.

    Raises ManifestError if a row has no value, or if all rows have the same one.
    """
    if by not in ("split", "speaker"):
        raise ValueError(f"folds are by 'split' or 'speaker', not {by!r}")
    without = [utterance for utterance in utterances if not getattr(utterance, by)]
    if without:
        raise ManifestError(
            f"{len(without)} of {len(utterances)} rows have no {by}, such as {without[0].id}: "
            f"fill the column {by!r}, or leave these rows out"
        )
    names = sorted({getattr(utterance, by) for utterance in utterances})
    if len(names) < 2:
        raise ManifestError(f"folds need two values of the column {by!r} at least, not {names}")
    return [_fold(utterances, by, name) for name in names]


def hold_out(utterances: Sequence[Utterance], *, share: float = VALID_SHARE, seed: int = 0) -> Fold:
    """Rows for training, validation and test by the column `split`. The test set may be empty.

    Without rows for validation, a share of the other rows is held out: whole files, chosen by the hash of
    their ids, with the same share, rounded up or down, of each combination of labels.

    Raises ManifestError if fewer than two files are left to divide, or if none are left for training.
    """
    train, valid, test = given_splits(utterances)
    if not valid:
        train, valid = _held_out(train, share, seed)
    if not train:
        raise ManifestError(
            f"{len(valid)} rows to validate with, and none to train on; see the manifest's column 'split'"
        )
    return Fold("hold-out", train, valid, test)


def _fold(utterances: Iterable[Utterance], by: str, name: str) -> Fold:
    test: list[Utterance] = []
    others: list[Utterance] = []
    for utterance in utterances:
        (test if getattr(utterance, by) == name else others).append(utterance)
    train, valid = _held_out(others, VALID_SHARE, seed=0)
    return Fold(name, train, valid, test)


def _held_out(
    utterances: Sequence[Utterance], share: float, seed: int
) -> tuple[list[Utterance], list[Utterance]]:
    """(the rest, the share), each in the order of the rows. Parts of one file stay together."""
    if not 0 < share < 1:
        raise ValueError(f"the share to hold out must be between 0 and 1, not {share}")
    labels: dict[str, set[str]] = {}
    for utterance in utterances:
        labels.setdefault(utterance.file_id, set()).update(labels_of(utterance))
    if len(labels) < 2:
        raise ManifestError(f"{len(labels)} files to train on: at least two are needed to hold one out")
    # Systematic sampling: in a list sorted by labels, then by hash, every n-th file from a random start.
    files = sorted(labels, key=lambda file: (sorted(labels[file]), id_hash(file, seed)))
    count = min(max(round(share * len(files)), 1), len(files) - 1)
    start, turn = int.from_bytes(id_hash("start", seed), "big"), 1 << 64
    chosen = {files[(turn * number + start) * len(files) // (turn * count)] for number in range(count)}
    rest = [utterance for utterance in utterances if utterance.file_id not in chosen]
    return rest, [utterance for utterance in utterances if utterance.file_id in chosen]
