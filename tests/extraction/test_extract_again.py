"""Run again after files, the manifest or the shards have changed; and what is told of rows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

import speech_ssl
from speech_ssl.extraction.extract import Extraction, Summary
from speech_ssl.extraction.parquet import Shard, read_rows
from speech_ssl.inference import Runtime


@pytest.fixture(scope="module")
def runtime(tiny_artifact: Path) -> Runtime:
    return speech_ssl.load(tiny_artifact)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with three clips of a second and their manifest."""
    for number, name in enumerate("abc"):
        write(tmp_path / f"{name}.wav", seed=number)
    manifest(tmp_path, "a.wav\t1", "b.wav\t1", "c.wav\t1")
    return tmp_path


def write(path: Path, seed: int, seconds: float = 1.0) -> None:
    wave = np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * 16_000))
    soundfile.write(path, wave, 16_000)


def manifest(data: Path, *rows: str, columns: str = "path\tduration_s") -> None:
    (data / "m.tsv").write_text("\n".join((columns, *rows)) + "\n")


def run(runtime: Runtime, data: Path, shard: str = "0/1") -> Summary:
    return Extraction(runtime, workers=1, shard=Shard.parse(shard)).run(data / "m.tsv", data / "out")


def rows(data: Path) -> dict[str, np.ndarray]:
    table = read_rows(data / "out")
    assert table["id"].to_pylist() == list(dict.fromkeys(table["id"].to_pylist()))
    return dict(zip(table["id"].to_pylist(), np.array(table["embedding"].to_pylist()), strict=True))


def told(data: Path, kind: str) -> dict[str, list[str]]:
    """The codes of each clip, of all shards."""
    said: dict[str, list[str]] = {}
    for path in (data / "out").glob(f"{kind}*.jsonl"):
        for entry in map(json.loads, path.read_text().splitlines()):
            said.setdefault(entry["id"], []).append(entry["code"])
    return said


def test_a_changed_file_is_computed_again(runtime: Runtime, data: Path, capsys: pytest.CaptureFixture[str]):
    run(runtime, data)
    before = rows(data)
    assert run(runtime, data).done_before == 3
    assert "files have changed" not in capsys.readouterr().err
    write(data / "a.wav", seed=7)  # of the same size
    write(data / "b.wav", seed=8, seconds=0.5)
    (data / "c.wav").unlink()
    summary = run(runtime, data)
    assert (summary.clips, summary.done_before) == (2, 1)
    assert "2 rows are computed again: their files have changed" in capsys.readouterr().err
    after = rows(data)
    assert np.array_equal(after["c.wav"], before["c.wav"])  # a file that is gone keeps its row
    for name in ("a.wav", "b.wav"):
        np.testing.assert_allclose(after[name], runtime.pooled(data / name), atol=1e-5)
    assert run(runtime, data).done_before == 3

    (data / "a.wav").write_text("no audio any more")
    assert run(runtime, data).failures == 1
    assert rows(data).keys() == {"b.wav", "c.wav"} and told(data, "failures").keys() == {"a.wav"}


def test_parts_of_a_changed_file_are_all_computed_again(runtime: Runtime, data: Path):
    manifest(
        data, "a.wav\t1\t0\t0.4", "a.wav\t1\t0.5\t1", "b.wav\t1\t\t", columns="path\tduration_s\tstart\tend"
    )
    run(runtime, data)
    os.utime(data / "a.wav", ns=(1, 1))
    summary = run(runtime, data, "0/2")  # the first part and b
    assert (summary.clips, summary.done_before) == (1, 1)
    assert (run(runtime, data).clips, len(rows(data))) == (1, 3)


def test_rows_of_before_sizes_and_times_were_kept(
    runtime: Runtime, data: Path, capsys: pytest.CaptureFixture[str]
):
    run(runtime, data)
    part = next((data / "out").glob("part-*"))
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["file_size", "file_mtime_ns"]), part)
    write(data / "a.wav", seed=7)
    write(data / "d.wav", seed=9)
    manifest(data, "a.wav\t1", "b.wav\t1", "c.wav\t1", "d.wav\t1")
    capsys.readouterr()
    summary = run(runtime, data)
    assert (summary.clips, summary.done_before) == (1, 3)
    assert "3 rows are of a version that did not note size and time of files" in capsys.readouterr().err
    assert len(rows(data)) == 4
    assert read_rows(data / "out")["file_size"].null_count == 3


def test_a_changed_manifest_gives_its_rows_their_texts(runtime: Runtime, data: Path):
    columns = "path\tduration_s\ttext\tspeaker"
    manifest(data, "a.wav\t1\tone\tA", "b.wav\t1\ttwo\t", "c.wav\t1\tthree\tA", columns=columns)
    run(runtime, data)
    before = rows(data)
    manifest(data, "a.wav\t1\tone\tx", "b.wav\t1\tzwei\t", columns="path\tduration_s\ttext\tlabel")
    assert run(runtime, data).clips == 0
    texts = read_rows(data / "out").select(["id", "text", "speaker", "label"]).to_pylist()
    assert sorted(texts, key=lambda row: row["id"]) == [
        {"id": "a.wav", "text": "one", "speaker": "A", "label": "x"},
        {"id": "b.wav", "text": "zwei", "speaker": "", "label": ""},
        {"id": "c.wav", "text": "three", "speaker": "A", "label": None},
    ]
    assert all(np.array_equal(before[name], vector) for name, vector in rows(data).items())
    inode = next((data / "out").glob("part-*")).stat().st_ino
    run(runtime, data)
    assert next((data / "out").glob("part-*")).stat().st_ino == inode  # nothing to do


def test_parts_that_a_file_does_not_have(runtime: Runtime, data: Path):
    """Half there: a row, and a warning. Not there: a failure. Rounded times are nothing to tell."""
    parts = ("0.5\t1.2", "0.5\t1.04", "0\t1", "1.5\t2")
    manifest(data, *(f"a.wav\t9\t{part}" for part in parts), columns="path\tduration_s\tstart\tend")
    summary = run(runtime, data)
    assert (summary.clips, summary.failures, summary.warned) == (3, 1, 1)
    assert told(data, "warnings") == {"a.wav#0.5-1.2": ["truncated"]}
    assert told(data, "failures") == {"a.wav#1.5-2": ["empty"]}
    (line,) = (data / "out" / "warnings.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["path"] == str(data / "a.wav")
    assert entry["reason"].endswith("a.wav: the audio ends at 1.00 s, the manifest says 1.20 s")

    write(data / "a.wav", seed=0, seconds=2)
    run(runtime, data)
    assert told(data, "warnings") == told(data, "failures") == {}


def test_what_is_wrong_with_audio_stands_beside_its_row(runtime: Runtime, data: Path):
    left = np.random.default_rng(0).uniform(-0.3, 0.3, 16_000)
    soundfile.write(data / "a.wav", np.stack([left, -left], axis=1), 16_000)
    manifest(data, "a.wav\t1", "b.wav\t1.4", "c.wav\t9")
    assert run(runtime, data, "0/2").warned == 2
    assert run(runtime, data, "1/2").warned == 0
    assert told(data, "warnings") == {"a.wav": ["opposite_phase"], "c.wav": ["truncated"]}
    assert run(runtime, data).done_before == 3  # the whole takes over what the halves said
    assert [path.name for path in (data / "out").glob("warnings*")] == ["warnings.jsonl"]
    assert told(data, "warnings") == {"a.wav": ["opposite_phase"], "c.wav": ["truncated"]}


def test_columns_that_say_what_a_row_was_made_of(runtime: Runtime, data: Path):
    run(runtime, data)
    table = read_rows(data / "out")
    assert table.schema.field("file_size").type == table.schema.field("file_mtime_ns").type == pa.int64()
    for row in table.to_pylist():
        status = (data / row["id"]).stat()
        assert (row["file_size"], row["file_mtime_ns"]) == (status.st_size, status.st_mtime_ns)
