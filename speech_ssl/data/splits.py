"""Which rows of a manifest are for training, validation and test, regardless of labels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from speech_ssl.data.manifest import ManifestError, Utterance
from speech_ssl.data.split_names import SplitKind, split_kind

MOST_VALID = 200


def given_splits(
    utterances: Iterable[Utterance],
) -> tuple[list[Utterance], list[Utterance], list[Utterance]]:
    """(train, valid, test) by the column `split`, see `split_kind`. Any other split is for training."""
    rows: dict[SplitKind, list[Utterance]] = {"train": [], "valid": [], "test": []}
    for utterance in utterances:
        rows[split_kind(utterance.split)].append(utterance)
    return rows["train"], rows["valid"], rows["test"]


def split_utterances(utterances: Sequence[Utterance]) -> tuple[list[Utterance], list[Utterance]]:
    """(train, valid), by the `split` column, see `given_splits`.

    Rows of a test split are in neither. Without rows for validation, whole files are held out until they have
    a hundredth of the rows (1 to 200), in the order of a hash of their names: the same in every run. Raises
    ManifestError if no rows are left for training.
    """
    train, valid, _ = given_splits(utterances)
    if not valid and len(train) > 1:
        train, valid = _held_out(train, min(max(round(len(train) / 100), 1), MOST_VALID))
    if not train or not valid:
        raise ManifestError(
            f"{len(train)} utterances to train on and {len(valid)} to validate with: at least one of each "
            "is needed. Test rows are not used; see the column 'split' (for a fairseq .tsv, its file name)"
        )
    return train, valid


def _held_out(rows: Sequence[Utterance], count: int) -> tuple[list[Utterance], list[Utterance]]:
    """(the rest, about `count` rows). Parts of one file share voice and room, so they stay together unless
    the files are so few and large that this would cost a tenth of the rows."""
    of_file = Counter(row.file_id for row in rows)
    chosen: set[str] = set()
    held_out = 0
    for file in sorted(of_file, key=id_hash):
        if held_out + of_file[file] <= max(count, len(rows) // 10) and held_out < count:
            chosen.add(file)
            held_out += of_file[file]
    if not chosen:
        valid = sorted(rows, key=lambda row: id_hash(row.id))[:count]
        ids = {row.id for row in valid}
        return [row for row in rows if row.id not in ids], valid
    valid = sorted((row for row in rows if row.file_id in chosen), key=lambda row: id_hash(row.id))
    return [row for row in rows if row.file_id not in chosen], valid


def id_hash(name: str, seed: int = 0) -> bytes:
    """A pseudo-random sort key for rows: the same on every machine and in any order."""
    salt = seed.to_bytes(16, "little", signed=True)
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8, salt=salt).digest()
