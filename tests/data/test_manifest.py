from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_ssl.data.manifest import (
    ManifestError,
    Utterance,
    read_manifest,
    write_manifest,
)
from speech_ssl.data.splits import given_splits


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "manifest.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def utterance(name: str, split: str = "", duration_s: float = 1.0) -> Utterance:
    return Utterance(path=Path("/audio", name), duration_s=duration_s, id=name, split=split)


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "speaker\tpath\tsomething\tduration_s\ttext\tlabel\tsplit\tlang\n"
        'anna\ta b/c.opus\tx\t2.5\tsays "hello",  twice\tjoy;fear\tdev\tde\n'
        "\t/far/d.wav\t\t1e1\t\t\t\t\n",
    )
    assert read_manifest(path) == [
        Utterance(
            path=tmp_path / "a b" / "c.opus",
            duration_s=2.5,
            id="a b/c.opus",
            text='says "hello",  twice',
            speaker="anna",
            label="joy;fear",
            split="dev",
            lang="de",
        ),
        Utterance(path=Path("/far/d.wav"), duration_s=10.0, id="/far/d.wav"),
    ]


def test_a_part_of_a_file_is_as_long_as_the_part(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "path\tduration_s\tstart\tend\na.wav\t60\t1.5\t4\na.wav\t60\t50\t\na.wav\t60\t\t9\na.wav\t60\t\t\n",
    )
    rows = [(u.id, u.start, u.end, u.duration_s, u.file_s) for u in read_manifest(path)]
    assert rows == [
        ("a.wav#1.5-4", 1.5, 4.0, 2.5, 60.0),
        ("a.wav#50-60", 50.0, 60.0, 10.0, 60.0),
        ("a.wav#0-9", 0.0, 9.0, 9.0, 60.0),
        ("a.wav", None, None, 60.0, None),
    ]
    assert {u.file_id for u in read_manifest(path)} == {"a.wav"}


def test_fairseq_form(tmp_path: Path) -> None:
    path = written(tmp_path, "/corpus/train\nspk1/a.flac\t32000\nb.flac\t8000\n")
    assert read_manifest(path) == [
        Utterance(path=Path("/corpus/train/spk1/a.flac"), duration_s=2.0, id="spk1/a.flac"),
        Utterance(path=Path("/corpus/train/b.flac"), duration_s=0.5, id="b.flac"),
    ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("train.tsv", 0), ("valid.tsv", 1), ("dev_other.tsv", 1), ("test-clean.tsv", 2), ("mine.tsv", 0)],
)
def test_the_split_of_fairseqs_form_is_its_name(name: str, kind: int, tmp_path: Path) -> None:
    (tmp_path / name).write_text("/corpus\na.flac\t32000\n")
    rows = read_manifest(tmp_path / name)
    assert rows[0].split == ("" if name == "mine.tsv" else name.removesuffix(".tsv"))
    assert given_splits(rows)[kind] == rows
    (tmp_path / name).write_text("path\tduration_s\na.flac\t2\n")
    assert read_manifest(tmp_path / name)[0].split == ""


def test_a_relative_fairseq_root_is_beside_the_manifest(tmp_path: Path) -> None:
    (row,) = read_manifest(written(tmp_path, "wavs\na.flac\t16000\n"))
    assert row.path == tmp_path / "wavs" / "a.flac"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("path\tduration_s\ttext\r\na.wav\t1\thi\r\n", id="crlf"),
        pytest.param("\ufeffpath\tduration_s\ttext\na.wav\t1\thi", id="byte-order-mark"),
        pytest.param("path\tduration_s\ttext\n\na.wav\t1\thi\n\n\n", id="blank-lines"),
    ],
)
def test_what_editors_leave_behind(text: str, tmp_path: Path) -> None:
    (row,) = read_manifest(written(tmp_path, text))
    assert (row.id, row.duration_s, row.text) == ("a.wav", 1.0, "hi")


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    text = "one\u2028two\x0bthree\x85four\rfive"
    (row,) = read_manifest(written(tmp_path, f"path\tduration_s\ttext\na.wav\t1\t{text}\n"))
    assert row.text == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: no column 'path'.*tab-separated"),
        ("path\ttext\na.wav\thi\n", r"line 1: no column 'duration_s'"),
        ("path,duration_s\na.wav,1\n", r"line 2: expected a path, a tab and a number of samples"),
        ("path\tduration_s\tpath\n", r"line 1: a column is named twice"),
        ("path\tduration_s\na.wav\t1\nb.wav\n", r"line 3: 1 fields, but the first line names 2"),
        ("path\tduration_s\na.wav\t1\tx\n", r"line 2: 3 fields"),
        ("path\tduration_s\na.wav\tlong\n", r"line 2: duration_s is 'long', not a number"),
        ("path\tduration_s\n\na.wav\t-1\n", r"line 3: duration_s is -1"),
        ("path\tduration_s\na.wav\tnan\n", r"line 2: duration_s is nan"),
        ("path\tduration_s\na.wav\tinf\n", r"line 2: duration_s is inf"),
        ("path\tduration_s\na.wav\t4e7\n", r"line 2: duration_s is 4e7 s, more than 11 days"),
        ("path\tduration_s\n\t1\n", r"line 2: the path is empty"),
        ("path\tduration_s\tstart\tend\na.wav\t9\t4\t3\n", r"line 2: start, 4 s, is not before end, 3 s"),
        ("path\tduration_s\tstart\na.wav\t9\tx\n", r"line 2: start is 'x'"),
        ("path\tduration_s\na.wav\t1\nb.wav\t1\na.wav\t1\n", r"line 4: a.wav is already in line 2"),
        ("/root\na.wav\t-5\n", r"line 2: expected"),
        ("/root\na.wav\t16000\nb.wav\t2.5\n", r"line 3: expected"),
    ],
)
def test_errors_name_the_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(written(tmp_path, text))
    assert "manifest.tsv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_text_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="UTF-8"):
        read_manifest(written(tmp_path, b"path\tduration_s\n\xe9.wav\t1\n"))
    with pytest.raises(ManifestError, match="nowhere.tsv: cannot be read"):
        read_manifest(tmp_path / "nowhere.tsv")
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(tmp_path)


fields = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]))
seconds = st.floats(0, 4e5)  # two of them are still within LONGEST_S


@st.composite
def utterances_in(draw: st.DrawFn, folder: Path) -> list[Utterance]:
    rows = []
    for number in range(draw(st.integers(0, 5))):
        start = draw(st.none() | seconds)
        end = None if start is None else start + draw(st.floats(0.001, 1e4))
        inside = draw(st.booleans())
        name = f"clips/{number}.wav" if inside else f"/far/away/{number}.wav"
        rows.append(
            Utterance(
                path=folder / name,
                duration_s=draw(seconds) if end is None else end - (start or 0),
                id=name if end is None else f"{name}#{start:.10g}-{end:.10g}",
                text=draw(fields),
                speaker=draw(fields),
                label=draw(fields),
                split=draw(fields),
                lang=draw(fields),
                start=start,
                end=end,
                file_s=None if end is None else end + draw(seconds),
            )
        )
    return rows


@settings(deadline=None)
@given(data=st.data())
def test_what_is_written_reads_back_equal(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "round-trip"
    folder.mkdir(exist_ok=True)
    rows = data.draw(utterances_in(folder))
    write_manifest(folder / "manifest.tsv", rows)
    assert read_manifest(folder / "manifest.tsv") == rows
    assert [path.name for path in folder.iterdir()] == ["manifest.tsv"]


def test_only_columns_in_use_are_written_and_paths_are_relative(tmp_path: Path) -> None:
    row = Utterance(path=tmp_path / "a" / "b.wav", duration_s=1.5, id="x", text="hi")
    write_manifest(tmp_path / "m.tsv", [row])
    assert (tmp_path / "m.tsv").read_text() == "path\tduration_s\ttext\na/b.wav\t1.5\thi\n"


def test_a_part_of_a_file_of_unknown_length_claims_to_be_its_end(tmp_path: Path) -> None:
    part = Utterance(path=tmp_path / "b.wav", duration_s=1.5, id="b.wav#2-3.5", start=2.0, end=3.5)
    write_manifest(tmp_path / "m.tsv", [part])
    assert read_manifest(tmp_path / "m.tsv") == [replace(part, file_s=3.5)]


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    old = written(tmp_path, "path\tduration_s\na.wav\t1\n")
    bad = Utterance(path=tmp_path / "b.wav", duration_s=1, id="b.wav", text="two\nlines")
    with pytest.raises(ManifestError, match="b.wav: a tab or line break"):
        write_manifest(old, [utterance("fine.wav"), bad])
    assert [row.id for row in read_manifest(old)] == ["a.wav"]
    assert list(tmp_path.iterdir()) == [old]
    with pytest.raises(ManifestError, match="no such folder"):
        write_manifest(tmp_path / "nowhere" / "m.tsv", [])


def test_only_a_regular_file_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ManifestError, match="pipe is not a regular file"):
        write_manifest(tmp_path / "pipe", [])
    assert (tmp_path / "pipe").is_fifo()
