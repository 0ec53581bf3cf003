"""Folds: every row tested once, nothing in two sets, classes in proportion, the same on every machine."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_ssl.data.folds import Fold, folds, hold_out
from speech_ssl.data.labels import labels_of
from speech_ssl.data.manifest import ManifestError, Utterance, read_manifest, write_manifest


def row(number: int, *, split: str = "", speaker: str = "", label: str = "") -> Utterance:
    name = f"{number}.wav"
    return Utterance(Path("/audio", name), 1.0, name, split=split, speaker=speaker, label=label)


def part(utterance: Utterance, start: float) -> Utterance:
    end = start + 1.0
    return replace(utterance, id=f"{utterance.id}#{start:g}-{end:g}", start=start, end=end, file_s=20.0)


def ids(rows: list[Utterance]) -> set[str]:
    return {utterance.id for utterance in rows}


def assert_divided(fold: Fold, rows: list[Utterance]) -> None:
    """Every row in one of the three, in its order."""
    assert fold.train and fold.valid
    of = {name: ids(getattr(fold, name)) for name in ("train", "valid", "test")}
    assert len(of["train"] | of["valid"] | of["test"]) == len(rows) == sum(map(len, fold[1:]))
    for name, inside in of.items():
        assert getattr(fold, name) == [utterance for utterance in rows if utterance.id in inside]


def assert_in_proportion(train: list[Utterance], valid: list[Utterance], share: float) -> None:
    """Of each combination of labels as many as its share of what is held out, rounded up or down."""
    files = len(train) + len(valid)
    assert len(valid) == min(max(round(share * files), 1), files - 1)
    held_out = Counter(tuple(labels_of(utterance)) for utterance in valid)
    for labels, count in Counter(tuple(labels_of(utterance)) for utterance in train + valid).items():
        assert abs(held_out[labels] - count * len(valid) / files) < 1


labels = st.sampled_from(["dog", "cat", "owl", "dog;cat", ""])


@settings(deadline=None)
@given(data=st.data(), by=st.sampled_from(["split", "speaker"]))
def test_every_row_is_tested_once_and_never_trained_on(data: st.DataObject, by: str) -> None:
    values = data.draw(st.lists(st.sampled_from("abc"), min_size=4, max_size=80))
    rows = [
        replace(row(number, label=data.draw(labels)), **{by: value}) for number, value in enumerate(values)
    ]
    if max(Counter(values).values()) > len(values) - 2:
        with pytest.raises(ManifestError):
            folds(rows, by)
        return
    found = folds(rows, by)
    assert [fold.name for fold in found] == sorted(set(values))
    assert Counter(u.id for fold in found for u in fold.test) == Counter(u.id for u in rows)
    for fold in found:
        assert {getattr(u, by) for u in fold.test} == {fold.name}
        assert_divided(fold, rows)
        assert_in_proportion(fold.train, fold.valid, 0.1)


def test_the_protocol_of_esc() -> None:
    rows = [row(n, split=f"fold{n % 5 + 1}", label=f"class {n // 5 % 10}") for n in range(400)]
    found = folds(rows, "split")
    assert [fold.name for fold in found] == ["fold1", "fold2", "fold3", "fold4", "fold5"]
    for fold in found:
        assert len(fold.test) == 80 and len(fold.valid) == 32
        assert set(Counter(u.label for u in fold.valid).values()) <= {3, 4}
    assert folds(rows[::-1], "split")[0].valid == found[0].valid[::-1]  # by the names, not the order
    assert found[0].valid != rows[: len(found[0].valid)]


def test_a_fold_is_the_same_after_writing(tmp_path: Path) -> None:
    rows = [
        replace(row(n, split=f"fold{n % 3}", label="ab"[n % 2]), path=tmp_path / f"{n}.wav")
        for n in range(60)
    ]
    rows += [part(row(90 + n, split="fold0", label="a"), 3.5) for n in range(5)]
    rows = [replace(u, path=tmp_path / u.file_id) for u in rows]
    write_manifest(tmp_path / "m.tsv", rows)
    assert folds(read_manifest(tmp_path / "m.tsv"), "split") == folds(rows, "split")


def test_the_rows_chosen_are_the_same_on_every_machine() -> None:
    fold = hold_out([row(n, label="ab"[n % 2]) for n in range(40)])
    assert [u.id for u in fold.valid] == ["4.wav", "7.wav", "31.wav", "36.wav"]


@settings(deadline=None)
@given(
    drawn=st.lists(labels, min_size=2, max_size=60),
    share=st.floats(0.01, 0.9),
    seed=st.integers(-3, 1 << 60),
)
def test_a_share_of_each_class_is_held_out(drawn: list[str], share: float, seed: int) -> None:
    rows = [row(number, label=label) for number, label in enumerate(drawn)]
    fold = hold_out(rows, share=share, seed=seed)
    assert_divided(fold, rows)
    assert fold.test == []
    assert_in_proportion(fold.train, fold.valid, share)


def test_seeds_hold_out_other_rows_and_each_row_as_often() -> None:
    rows = [row(n, label="ab"[n % 2]) for n in range(20)]
    chosen = [ids(hold_out(rows, seed=seed, share=0.25).valid) for seed in range(400)]
    assert len(set(map(frozenset, chosen))) > 300
    often = Counter(name for names in chosen for name in names)
    assert sum(often.values()) == 400 * 5
    assert all(65 < often[u.id] < 135 for u in rows)
    single = [row(n, label=str(n)) for n in range(20)]  # classes of one row: the start decides
    assert len({tuple(ids(hold_out(single, seed=seed).valid)) for seed in range(40)}) > 5


def test_parts_of_a_file_stay_together() -> None:
    rows = [part(row(n, label="dog"), start) for start in (1.0, 5.5, 9.25) for n in range(30)]
    fold = hold_out(rows, share=0.2)
    assert_divided(fold, rows)
    assert len(fold.valid) == 18
    assert not {u.file_id for u in fold.train} & {u.file_id for u in fold.valid}


def test_given_splits_are_kept() -> None:
    names = ["train", "dev", "test", "", "train", "test-other", "valid"]
    rows = [row(number, split=name) for number, name in enumerate(names)]
    fold = hold_out(rows)
    assert [len(part) for part in fold[1:]] == [3, 2, 2]
    assert [u.split for u in fold.valid] == ["dev", "valid"]
    without = hold_out([u for u in rows if u not in fold.valid])
    assert [len(part) for part in without[1:]] == [2, 1, 2]
    assert [u.split for u in without.test] == ["test", "test-other"]


def test_what_cannot_be_divided() -> None:
    rows = [row(n, split=f"fold{n % 2}", speaker="anna" if n else "") for n in range(8)]
    with pytest.raises(ManifestError, match=r"^1 of 8 rows have no speaker, such as 0\.wav: fill the column"):
        folds(rows, "speaker")
    with pytest.raises(ManifestError, match=r"two values of the column 'speaker' at least, not \['anna'\]"):
        folds(rows[1:], "speaker")
    with pytest.raises(ManifestError, match=r"at least, not \[\]"):
        folds([], "split")
    with pytest.raises(ValueError, match="by 'split' or 'speaker', not 'label'"):
        folds(rows, "label")  # type: ignore[arg-type]
    with pytest.raises(ManifestError, match="^1 files to train on: at least two"):
        hold_out([row(0, split="test"), row(1)])
    with pytest.raises(ManifestError, match="^1 rows to validate with, and none to train on"):
        hold_out([row(0, split="test"), row(1, split="dev")])
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            hold_out(rows, share=share)
