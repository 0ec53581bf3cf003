"""Labels as classes, events as windows: exact times, nothing lost, and errors that say which row."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_ssl.data.labels import (
    ClipTargets,
    TimedTargets,
    balanced_weights,
    label_names,
    labels_of,
    timed_windows,
    whole_files,
)
from speech_ssl.data.manifest import ManifestError, Utterance, read_manifest, write_manifest


def clip(label: str, name: str = "a.wav") -> Utterance:
    return Utterance(path=Path("/audio", name), duration_s=1.0, id=name, label=label)


def manifest(folder: Path, *lines: str, columns: str = "path duration_s start end label") -> list[Utterance]:
    """Columns and fields are separated by spaces here; a dot is an empty one."""
    text = "\n".join("\t".join("" if f == "." else f for f in line.split(" ")) for line in (columns, *lines))
    (folder / "m.tsv").write_text(text + "\n")
    return read_manifest(folder / "m.tsv")


# Clips


def test_names_are_all_labels_sorted() -> None:
    rows = [clip("owl; cat "), clip(""), clip("dog;;cat"), clip(" ; ")]
    assert label_names(rows) == ("cat", "dog", "owl")
    assert label_names(iter(rows[::-1])) == ("cat", "dog", "owl")
    assert labels_of(rows[2]) == ["cat", "dog"]
    with pytest.raises(ValueError, match="column 'label'"):
        label_names([clip(""), clip(";")])


def test_targets_are_positions_among_the_names() -> None:
    one, many = (ClipTargets(("cat", "dog", "owl"), multilabel=multilabel) for multilabel in (False, True))
    assert one(clip(" dog ")) == [1] and one(clip("owl;owl")) == [2]
    assert many(clip("owl;cat;owl")) == [0, 2] and many(clip("")) == []
    assert ClipTargets(("owl", "dog", "cat"), multilabel=True)(clip("cat;owl")) == [0, 2]
    assert pickle.loads(pickle.dumps(many)) == many
    for label in ("", "cat;dog"):
        with pytest.raises(ValueError, match=r"^a\.wav: [02] labels, but exactly one"):
            one(clip(label))
    for targets in (one, many):
        with pytest.raises(ValueError, match=r"^a\.wav: 'cow' is not one of the 3 labels"):
            targets(clip("cow"))


@pytest.mark.parametrize("names", [(), ("cat", "cat")])
def test_classes_have_names_of_their_own(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="each once"):
        ClipTargets(names)
    with pytest.raises(ValueError, match="each once"):
        TimedTargets(names, {})


@given(counts=st.lists(st.integers(0, 1_000), min_size=1, max_size=8).filter(any))
def test_balanced_weights(counts: list[int]) -> None:
    weights = balanced_weights(counts)
    products = [weight * count for weight, count in zip(weights, counts, strict=True)]
    assert sum(products) == pytest.approx(sum(counts))  # 1 in the mean over the samples
    present = [product for product, count in zip(products, counts, strict=True) if count]
    assert present == pytest.approx([present[0]] * len(present))  # each class weighs the same
    assert all((weight > 0) == (count > 0) for weight, count in zip(weights, counts, strict=True))


@pytest.mark.parametrize("counts", [[], [0, 0], [3, -1]])
def test_counts_that_cannot_be_balanced(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="counts of at least 0"):
        balanced_weights(counts)


# Events


def test_events_are_cut_to_the_windows_and_count_from_their_start(tmp_path: Path) -> None:
    rows = manifest(
        tmp_path,
        "a.wav 30 2.5 4.25 dog",
        "b.wav 4 1 2 owl",
        "a.wav 30 9.5 21 dog;cat",
        "a.wav 30 29 30.005 cat",  # rounded by its writer
        "c.wav 8 . . .",
        "d.wav 8 . . rain",
        "d.wav 8 1 2 dog",
    )
    windows, events = timed_windows(rows, window_s=12)
    assert [(w.id, w.start, w.end, w.duration_s, w.file_s) for w in windows] == [
        ("a.wav#0-10", 0.0, 10.0, 10.0, 30.0),
        ("a.wav#10-20", 10.0, 20.0, 10.0, 30.0),
        ("a.wav#20-30", 20.0, 30.0, 10.0, 30.0),
        ("b.wav", None, None, 4.0, None),
        ("c.wav", None, None, 8.0, None),
        ("d.wav", None, None, 8.0, None),
    ]
    assert events == {
        "a.wav#0-10": [("dog", 2.5, 4.25), ("cat", 9.5, 10.0), ("dog", 9.5, 10.0)],
        "a.wav#10-20": [("cat", 0.0, 10.0), ("dog", 0.0, 10.0)],
        "a.wav#20-30": [("cat", 0.0, 1.0), ("dog", 0.0, 1.0), ("cat", 9.0, 10.0)],
        "b.wav": [("owl", 1.0, 2.0)],
        "c.wav": [],
        "d.wav": [("rain", 0.0, 8.0), ("dog", 1.0, 2.0)],
    }


def test_windows_keep_what_the_rows_agree_on(tmp_path: Path) -> None:
    columns = "path duration_s start end label speaker split lang"
    lines = ["a.wav 9 1 2 dog anna train de", "a.wav 9 3 4 cat ben train de"]
    windows, _ = timed_windows(manifest(tmp_path, *lines, columns=columns), window_s=5)
    assert {(w.label, w.speaker, w.split, w.lang) for w in windows} == {("", "", "train", "de")}
    assert {w.path for w in windows} == {tmp_path / "a.wav"}


def test_events_of_one_label_that_overlap_are_one(tmp_path: Path) -> None:
    lines = ["a.wav 9 1 3 dog", "a.wav 9 2 2.5 dog", "a.wav 9 3 4 dog", "a.wav 9 2 5 cat", "a.wav 9 6 7 dog"]
    _, events = timed_windows(manifest(tmp_path, *lines), window_s=10)
    assert events["a.wav"] == [("dog", 1.0, 4.0), ("cat", 2.0, 5.0), ("dog", 6.0, 7.0)]


def union(spans: list[list[float]]) -> float:
    """Seconds that lie in at least one span."""
    edges = sorted({edge for span in spans for edge in span})
    return sum(b - a for a, b in pairwise(edges) if any(span[0] <= a and b <= span[1] for span in spans))


@settings(deadline=None, max_examples=60)
@given(data=st.data(), window_s=st.floats(0.1, 40), file_s=st.floats(0.5, 100))
def test_windows_cover_the_file_and_events_lose_nothing(
    data: st.DataObject, window_s: float, file_s: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bounds = st.lists(st.floats(0, file_s), min_size=2, max_size=2, unique=True).map(sorted)
    drawn = data.draw(st.lists(bounds, max_size=4, unique_by=tuple))
    folder = tmp_path_factory.getbasetemp()
    whole = Utterance(path=folder / "a.wav", duration_s=file_s, id="a.wav")
    rows = [whole] + [
        replace(whole, duration_s=end - start, start=start, end=end, file_s=file_s, label="dog", id=str(n))
        for n, (start, end) in enumerate(drawn)
    ]
    windows, events = timed_windows(rows, window_s=window_s)
    edges = [w.start or 0.0 for w in windows] + [windows[-1].end or file_s]
    assert edges[0] == 0 and edges[-1] == file_s
    assert all((w.end or file_s) == edge for w, edge in zip(windows, edges[1:], strict=True))
    sizes = [w.duration_s for w in windows]
    assert max(sizes) <= window_s + 1 / 16_000 and max(sizes) - min(sizes) < 2.5 / 16_000
    assert len(windows) == 1 or sum(sizes) / (len(sizes) - 1) > window_s - 1 / 16_000, "no more than needed"
    assert [*events] == [w.id for w in windows]
    assert all(0 <= a < b <= w.duration_s + 1e-9 for w in windows for _, a, b in events[w.id])
    seconds = sum(b - a for found in events.values() for _, a, b in found)
    assert seconds == pytest.approx(union(drawn), abs=1e-6)
    assert all(one[2] < other[1] for found in events.values() for one, other in pairwise(found))
    (file,), of_file = whole_files(windows, events)
    assert file == replace(whole, file_s=file.file_s)
    _, uncut = timed_windows(rows, window_s=file_s + 1)
    expected = [span for _, *span in uncut["a.wav"] if span[1] - span[0] > 2e-6]
    found = [span for _, *span in of_file["a.wav"] if span[1] - span[0] > 2e-6]
    assert found == [pytest.approx(span, abs=1e-6) for span in expected]
    write_manifest(folder / "windows.tsv", windows)
    assert read_manifest(folder / "windows.tsv") == windows


def test_rounding_makes_no_second_window_and_no_quarrel(tmp_path: Path) -> None:
    windows, _ = timed_windows(manifest(tmp_path, "a.wav 2.01 1 2 dog"), window_s=2.01)
    assert [w.id for w in windows] == ["a.wav"]  # 2.01 s are 32159.999999999996 samples
    lines = ["a.wav 9 1 2 dog", "a.wav 9.005 3 9.005 dog", "a.wav 9.001 4 5 dog"]
    windows, events = timed_windows(manifest(tmp_path, *lines), window_s=10)
    assert windows[0].duration_s == 9.005 and events["a.wav"][1] == ("dog", 3.0, 9.005)


def test_a_written_manifest_of_events_gives_the_same_ones(tmp_path: Path) -> None:
    rows = manifest(tmp_path, "a.wav 30.5 2.5 4.25 dog", "a.wav 30.5 9.5 21 cat", "b.wav 4 . . owl")
    write_manifest(tmp_path / "again.tsv", rows)
    assert read_manifest(tmp_path / "again.tsv") == rows
    assert timed_windows(read_manifest(tmp_path / "again.tsv"), window_s=7) == timed_windows(rows, window_s=7)


def test_targets_are_flat_and_in_milliseconds(tmp_path: Path) -> None:
    rows = manifest(tmp_path, "a.wav 20 2.5004 12.25 dog", "a.wav 20 0.0156 3 cat", "b.wav 4 . . .")
    windows, events = timed_windows(rows, window_s=10)
    targets = TimedTargets(label_names(rows), events)
    assert [targets(window) for window in windows] == [[0, 16, 3_000, 1, 2_500, 10_000], [1, 0, 2_250], []]
    assert pickle.loads(pickle.dumps(targets))(windows[0]) == targets(windows[0])
    with pytest.raises(ValueError, match=r"^x\.wav: no such window"):
        targets(clip("dog", "x.wav"))
    with pytest.raises(ValueError, match=r"^a\.wav#0-10: 'cat' is not one of the 1 labels"):
        TimedTargets(("dog",), events)(windows[0])


def test_what_is_left_of_an_event_by_rounding_is_none() -> None:
    targets = TimedTargets(
        ("dog",), {"a.wav": [("dog", 0.0, 0.0004), ("dog", 0.9996, 1.0), ("dog", 0.5, 0.501)]}
    )
    assert targets(clip("")) == [0, 500, 501]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.wav 9 1 2 dog", "a.wav 8 3 4 dog"], r"^a\.wav: its rows have the durations 8 and 9 s"),
        (["a.wav 9 1 2 dog", "a.wav 8 . . ."], r"^a\.wav: its rows have the durations 8 and 9 s"),
        (["a.wav 9 1 9.1 dog"], r"^a\.wav#1-9\.1: it ends beyond the file's 9 s; duration_s"),
        (["a.wav 9 1 2 ."], r"^a\.wav#1-2: an event without a label"),
    ],
)
def test_rows_that_contradict(lines: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        timed_windows(manifest(tmp_path, *lines), window_s=5)
    assert "\n" not in str(caught.value)


def test_a_file_is_in_one_split_and_its_length_is_known(tmp_path: Path) -> None:
    columns = "path duration_s start end label split"
    rows = manifest(tmp_path, "a.wav 9 1 2 dog train", "a.wav 9 3 4 dog test", columns=columns)
    with pytest.raises(ManifestError, match=r"^a\.wav: its rows are in the splits \['test', 'train'\]"):
        timed_windows(rows, window_s=5)
    with pytest.raises(ManifestError, match=r"^a\.wav: the duration of the file is unknown"):
        timed_windows([replace(rows[0], file_s=None)], window_s=5)
    same = [clip("dog"), replace(clip("dog", "b.wav"), id="a.wav")]
    with pytest.raises(ManifestError, match=r"^a\.wav: two files with this id"):
        timed_windows(same, window_s=5)


@pytest.mark.parametrize("window_s", [0.0, -1.0, float("nan")])
def test_windows_have_a_length(window_s: float) -> None:
    with pytest.raises(ValueError, match="window_s must be"):
        timed_windows([clip("dog")], window_s=window_s)
