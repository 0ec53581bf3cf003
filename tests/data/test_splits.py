"""Which rows train and which are held out, by name alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from speech_ssl.data.manifest import ManifestError, Utterance, part_id
from speech_ssl.data.splits import given_splits, split_utterances
from speech_ssl.evaluation.probes.tasks import keyword


def utterance(name: str, split: str = "", duration_s: float = 1.0) -> Utterance:
    return Utterance(path=Path("/audio", name), duration_s=duration_s, id=name, split=split)


KINDS = {
    "train": [
        "train",
        "train.clean.100",
        "training",
        "bal_train",
        "fold1",
        "validated",
        "contest",
        "attest",
        "",
    ],
    "valid": [
        "Dev",
        "valid",
        "validation",
        "val",
        "eval",
        "dev-clean",
        "dev_other",
        "dev.other",
        " dev",
        "DevOther",
    ],
    "test": ["test", "TEST", "test_clean", "test.clean", "test-other", "testing", "libri-test", "LibriTest2"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in KINDS[kind]])
def test_the_split_column_decides_for_all_who_ask(kind: str, name: str) -> None:
    row = utterance("a.wav", name)
    assert dict(zip(("train", "valid", "test"), given_splits([row]), strict=True))[kind] == [row]
    clips = [replace(utterance(f"{i}.wav", "train"), label="ab"[i % 2]) for i in range(6)]
    marked = [replace(clip, split=name) if i < 2 else clip for i, clip in enumerate(clips)]
    (problem,) = keyword().problems(marked)
    assert problem.tested_N is not None
    assert (problem.tested_N.tolist() == [True] * 2 + [False] * 4) == (kind != "train")


def test_rows_keep_their_order_and_test_rows_are_in_neither() -> None:
    names = ["train", "Dev", "test", "valid", "fold1", "test_other", ""]
    rows = [utterance(f"{number}.wav", split) for number, split in enumerate(names)]
    train, valid = split_utterances(rows)
    assert [row.split for row in train] == ["train", "fold1", ""]
    assert [row.split for row in valid] == ["Dev", "valid"]


@pytest.mark.parametrize(("rows", "held_out"), [(2, 1), (50, 1), (1_000, 10), (30_000, 200)])
def test_without_one_a_hundredth_is_held_out(rows: int, held_out: int) -> None:
    everything = [utterance(f"{number}.wav") for number in range(rows)]
    train, valid = split_utterances(everything)
    assert len(valid) == held_out
    assert sorted(train + valid, key=str) == sorted(everything, key=str)
    assert valid != sorted(everything, key=str)[:held_out] or rows < 100  # from all over
    again, same = split_utterances(everything[::-1])  # by the rows' names, not their order
    assert same == valid
    assert again == train[::-1]


@pytest.mark.parametrize("splits", [[], ["train"], ["dev", "dev"], ["test", "train"]])
def test_too_little_to_split(splits: list[str]) -> None:
    with pytest.raises(ManifestError, match="at least one of each"):
        split_utterances([utterance(f"{number}.wav", split) for number, split in enumerate(splits)])


def parts(file: str, count: int) -> list[Utterance]:
    whole = utterance(file)
    spans = ((float(number), number + 1.0) for number in range(count))
    return [replace(whole, start=a, end=b, id=part_id(file, a, b), file_s=float(count)) for a, b in spans]


def test_parts_of_a_file_are_held_out_together() -> None:
    rows = [row for file in range(300) for row in parts(f"{file}.wav", 7)]
    train, valid = split_utterances(rows)
    assert not {row.file_id for row in train} & {row.file_id for row in valid}
    assert 21 <= len(valid) <= 27 and len(train) + len(valid) == len(rows)


def test_one_long_file_is_divided_all_the_same() -> None:
    """Nothing else could be held out; and one of two large files would be too much."""
    for rows in (parts("a.wav", 500), parts("a.wav", 300) + parts("b.wav", 200)):
        train, valid = split_utterances(rows)
        assert len(valid) == 5 and len(train) == 495


def test_files_of_one_name_in_two_manifests_are_both_used() -> None:
    """Their ids are the same: what decides is the row, not how many share its id."""
    rows = [utterance(f"{number}.wav") for number in range(100)] * 2
    train, valid = split_utterances(rows)
    assert len(train) + len(valid) == 200 and not {r.id for r in train} & {r.id for r in valid}
