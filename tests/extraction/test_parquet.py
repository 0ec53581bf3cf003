"""The store: whole files or none, what is done, and folders of another kind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speech_ssl.extraction.parquet import Failure, Row, Settings, Shard, Store, read_rows

SETTINGS = Settings(
    model="m",
    artifact_sha256="ab",
    layer=4,
    pooling="mean",
    precision="fp32",
    width=3,
    hop=320,
    window_frames=999,
    context_frames=100,
)
WHOLE = Shard()
IDS = [f"clip{number}" for number in range(9)]


def row(number: int, values=None, **texts: str) -> Row:
    values = np.full(3, number, np.float32) if values is None else values
    return Row(IDS[number], f"/data/{IDS[number]}", number / 2, number, values, texts)


def open_store(folder: Path, settings: Settings = SETTINGS, shard: Shard = WHOLE, columns=()) -> Store:
    return Store(folder, settings, shard, ids=IDS[shard.index :: shard.count], columns=columns)


def test_rows_and_metadata(tmp_path: Path):
    store = open_store(tmp_path / "deep" / "out", columns=("text", "speaker"))
    store.add(row(1, text="hello\u2028there", speaker="A"))
    store.add(row(2, text="naïve"))
    assert store.pending_bytes == 24
    store.commit()
    store.add(row(3))
    store.commit()
    store.commit()  # nothing new: no file
    store.close()
    files = sorted(path.name for path in store.folder.glob("*.parquet"))
    assert files == [f"part-00000-of-00001-{number:06d}.parquet" for number in (0, 1)]
    table = read_rows(store.folder)
    assert table["id"].to_pylist() == IDS[1:4]
    assert table["embedding"].to_pylist() == [[1.0] * 3, [2.0] * 3, [3.0] * 3]
    assert str(table.schema.field("embedding").type).startswith("fixed_size_list<")
    assert table["duration_s"].to_pylist() == [0.5, 1.0, 1.5] and table["num_frames"].to_pylist() == [1, 2, 3]
    assert table["text"].to_pylist() == ["hello\u2028there", "naïve", None]
    assert table["speaker"].to_pylist() == ["A", None, None]
    assert set(table["model"].to_pylist()) == {"m"} and set(table["artifact_sha256"].to_pylist()) == {"ab"}
    metadata = pq.read_metadata(store.folder / files[0]).metadata
    assert metadata[b"speech_ssl.layer"] == b"4" and metadata[b"speech_ssl.sample_rate"] == b"16000"
    assert metadata[b"speech_ssl.settings_sha256"].decode() == SETTINGS.sha256


def test_frames(tmp_path: Path):
    store = open_store(tmp_path, replace(SETTINGS, pooling="none"))
    frames = [np.arange(size * 3, dtype=np.float32).reshape(size, 3) for size in (1, 5, 2)]
    for number, x_TD in enumerate(frames):
        store.add(row(number, x_TD))
    store.commit()
    store.close()
    found = read_rows(tmp_path)["frames"].to_pylist()
    assert all(np.array_equal(np.array(a, np.float32), b) for a, b in zip(found, frames, strict=True))


def test_failures_are_listed_once_and_forgotten_when_mended(tmp_path: Path):
    store = open_store(tmp_path)
    for number in (5, 6, 7):
        store.fail(Failure(IDS[number], "/p", "why\u2028not", "undecodable"))
    store.commit()
    store.close()
    store = open_store(tmp_path)
    store.fail(Failure(IDS[5], "/p", "still", "empty"))
    store.add(row(6))
    store.commit()
    store.close()
    lines = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().split("\n") if line]
    assert {(line["id"], line["reason"], line["code"]) for line in lines} == {
        (IDS[5], "still", "empty"),
        (IDS[7], "why\u2028not", "undecodable"),
    }
    assert lines[0].keys() == {"id", "path", "reason", "code"}


def test_what_is_not_committed_is_not_there(tmp_path: Path):
    store = open_store(tmp_path)
    store.add(row(0))
    store.commit()
    store.add(row(1))  # and the process dies
    (tmp_path / ".part-00000-of-00001-000001.parquet.0badcafe").write_bytes(b"half a file")
    store.close()
    again = open_store(tmp_path)
    assert again.done.keys() == {IDS[0]}
    again.add(row(1))
    again.commit()
    again.close()
    assert read_rows(tmp_path)["id"].to_pylist() == IDS[:2]
    assert not list(tmp_path.glob(".part-*"))


def test_shards_share_a_folder(tmp_path: Path):
    stores = [open_store(tmp_path, shard=Shard(index, 2)) for index in (0, 1)]
    for index, store in enumerate(stores):
        store.add(row(index))
        store.fail(Failure(IDS[4 + index], "/p", "why", "empty"))
        store.commit()
        store.close()
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    shards = ("00000-of-00002", "00001-of-00002")
    files = [f"part-{shard}-000000.parquet" for shard in shards] + [f"failures-{s}.jsonl" for s in shards]
    assert names == {"settings.json", *files}
    store = open_store(tmp_path)
    assert store.done.keys() == set(IDS[:2])
    store.close()


def failed(folder: Path) -> dict[str, list[str]]:
    """Ids by file."""
    files = {path.name: path.read_text().splitlines() for path in folder.glob("failures*.jsonl")}
    return {name: [json.loads(line)["id"] for line in lines] for name, lines in files.items()}


def test_a_folder_divided_otherwise_says_of_each_clip_once_why_it_failed(tmp_path: Path):
    store = open_store(tmp_path)
    for clip_id in IDS[:5]:
        store.fail(Failure(clip_id, "/p", "why", "empty"))
    store.commit()
    store.close()
    store = open_store(tmp_path, shard=Shard(0, 2))  # clips 0, 2 and 4
    assert failed(tmp_path) == {
        "failures.jsonl": [IDS[1], IDS[3]],
        "failures-00000-of-00002.jsonl": [IDS[0], IDS[2], IDS[4]],
    }
    store.add(row(0))
    store.add(row(2))
    store.commit()
    store.close()
    open_store(tmp_path, shard=Shard(1, 2)).close()
    assert failed(tmp_path) == {
        "failures-00000-of-00002.jsonl": [IDS[4]],
        "failures-00001-of-00002.jsonl": [IDS[1], IDS[3]],
    }
    open_store(tmp_path).close()
    assert {name: sorted(ids) for name, ids in failed(tmp_path).items()} == {
        "failures.jsonl": [IDS[1], IDS[3], IDS[4]]
    }


def test_shards_with_a_clip_in_common_are_not_written_at_once(tmp_path: Path):
    whole = open_store(tmp_path)
    with pytest.raises(ValueError, match="writing clips of this shard, as shard 00000-of-00001: wait"):
        open_store(tmp_path, shard=Shard(0, 2))
    whole.close()
    half = open_store(tmp_path, shard=Shard(0, 2))
    open_store(tmp_path, shard=Shard(1, 4)).close()  # clips 1 and 5
    with pytest.raises(ValueError, match="as shard 00000-of-00002: wait"):
        open_store(tmp_path, shard=Shard(2, 4))
    Store(tmp_path, SETTINGS, WHOLE, ids=["of another manifest"], columns=()).close()
    half.close()
    open_store(tmp_path, shard=Shard(2, 4)).close()


def test_rows_are_taken_out_and_texts_changed(tmp_path: Path):
    store = open_store(tmp_path, columns=["text"])
    for first in (0, 3):
        for number in range(first, first + 3):
            store.add(row(number, text=f"of {number}"), [Failure(IDS[number], "/p", "why", "truncated")])
        store.commit()
    store.close()
    before = {path: path.stat().st_ino for path in tmp_path.glob("part-*")}
    store = open_store(tmp_path, columns=["text", "label"])
    assert store.done[IDS[1]].texts == ("of 1", "")
    said = {"text": "corrected", "label": "dog"}
    store.mend(drop={IDS[0], IDS[1], IDS[2]}, texts={IDS[5]: said})
    assert store.done.keys() == set(IDS[3:6])
    store.close()  # killed here, nothing of them is there
    first, second = sorted(before)
    assert not first.exists() and second.stat().st_ino != before[second]
    table = read_rows(tmp_path)
    assert table.column_names[-1] == "embedding"
    assert table.select(["id", "text", "label"]).to_pylist() == [
        {"id": IDS[3], "text": "of 3", "label": None},
        {"id": IDS[4], "text": "of 4", "label": None},
        {"id": IDS[5], **said},
    ]
    assert table["embedding"].to_pylist() == [[number] * 3 for number in (3.0, 4.0, 5.0)]
    metadata = pq.read_metadata(second).metadata
    assert metadata[b"speech_ssl.settings_sha256"].decode() == SETTINGS.sha256
    open_store(tmp_path).close()
    lines = (tmp_path / "warnings.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == IDS[3:6]


def test_warnings_stay_with_their_rows(tmp_path: Path):
    """Also with those of other manifests. A row that was not committed has none."""
    store = open_store(tmp_path)
    assert not (tmp_path / "warnings.jsonl").exists()
    store.add(row(0), [Failure(IDS[0], "/p", what, "truncated") for what in ("one", "two")])
    store.commit()
    store.add(row(1), [Failure(IDS[1], "/p", "not committed", "truncated")])
    store.close()
    other = Store(tmp_path, SETTINGS, WHOLE, ids=["x"], columns=())
    other.add(replace(row(2), id="x"), [Failure("x", "/p", "three", "truncated")])
    other.commit()
    other.close()
    open_store(tmp_path).close()
    lines = (tmp_path / "warnings.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["reason"] for line in lines) == ["one", "three", "two"]


SPOILT = ["nonsense", "[1]", "3", '{"code": "empty"}', '{"id": 3}', '{"id": ["clip0"]}', "[" * 100_000, "{"]
SPOILT += ['{"id": "clip5"}', r'{"id": "clip6", "path": "\ud800", "reason": 1, "code": null, "new": {}}']


def test_spoilt_records_stop_nothing(tmp_path: Path):
    open_store(tmp_path).close()
    for name in ("failures.jsonl", "warnings.jsonl", "failures-00001-of-00002.jsonl"):
        (tmp_path / name).write_bytes("\n".join(SPOILT).encode() + b"\n\xff\xfe\n{")
    store = open_store(tmp_path)
    store.add(row(0), [Failure(IDS[0], "/p", "cut", "truncated")])
    store.commit()
    store.close()
    lines = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["clip5", "clip6"]
    lines = (tmp_path / "warnings.jsonl").read_text().splitlines()
    assert json.loads(lines[-1]) == {"id": IDS[0], "path": "/p", "reason": "cut", "code": "truncated"}
    open_store(tmp_path, shard=Shard(1, 2)).close()


def test_a_full_disk_loses_nothing_that_was_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    store = open_store(tmp_path)
    store.add(row(0))
    store.commit()
    store.add(row(1), [Failure(IDS[1], "/p", "cut", "truncated")])
    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", full)
        with pytest.raises(OSError, match=f"{tmp_path} cannot be written: .*No space left"):
            store.commit()
        with pytest.raises(OSError, match="No space left"):
            store.mend(drop=(), texts={IDS[0]: {"text": "x"}})
    assert read_rows(tmp_path)["id"].to_pylist() == IDS[:1]
    store.fail(Failure(IDS[2], "/p", "why", "empty"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match=r"No space left.*failures.jsonl"):
            store.commit()
    store.commit()  # there is room again
    store.close()
    assert read_rows(tmp_path)["id"].to_pylist() == IDS[:2] and not list(tmp_path.glob(".*.????????"))


def test_one_process_a_shard(tmp_path: Path):
    store = open_store(tmp_path)
    with pytest.raises(ValueError, match="another process is writing this shard"):
        open_store(tmp_path)
    store.close()
    open_store(tmp_path).close()
    with pytest.raises(ValueError, match="was made with"):
        open_store(tmp_path, replace(SETTINGS, hop=160))
    open_store(tmp_path).close()  # a refusal leaves no lock


@pytest.mark.parametrize("shard", [(1, 1), (-1, 2), (0, 0)])
def test_shards_that_are_none(shard: tuple[int, int]):
    with pytest.raises(ValueError, match="is not there: write i/n"):
        Shard(*shard)


def test_folders_of_another_kind(tmp_path: Path):
    open_store(tmp_path / "a").close()
    with pytest.raises(ValueError, match="was made with layer 4, not 2: choose another folder"):
        open_store(tmp_path / "a", replace(SETTINGS, layer=2))
    with pytest.raises(ValueError, match="artifact_sha256 'ab', not 'cd'"):
        open_store(tmp_path / "a", replace(SETTINGS, artifact_sha256="cd"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="holds Parquet files but no settings.json"):
        open_store(tmp_path / "b")
    for found in ("[]", "null", "\udcff"):
        (tmp_path / "b" / "settings.json").write_text(found, errors="surrogateescape")
        with pytest.raises(ValueError, match="settings.json is not a JSON object: choose another"):
            open_store(tmp_path / "b")
    (tmp_path / "a" / "part-mine.parquet").write_bytes(b"of others, who may put there what they like")
    open_store(tmp_path / "a").close()
    (tmp_path / "a" / "part-00000-of-00001-000000.parquet").write_bytes(b"damaged by others")
    with pytest.raises(ValueError, match="part-00000-of-00001-000000.parquet cannot be read .*remove it"):
        open_store(tmp_path / "a")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a" / "part-00000-of-00001-000000.parquet")
    with pytest.raises(ValueError, match="cannot be read .it has no ids.: remove it"):
        open_store(tmp_path / "a")
    with pytest.raises(ValueError, match="holds no rows"):
        read_rows(tmp_path / "b" / "nothing")


@pytest.mark.parametrize("at", range(40, 2000, 150))
def test_damage_within_a_file_of_rows_is_named(tmp_path: Path, at: int):
    """Wherever it is: in a page, or in what is said of the pages."""
    store = open_store(tmp_path)
    for number in range(9):
        store.add(row(number))
    store.commit()
    store.close()
    path = tmp_path / "part-00000-of-00001-000000.parquet"
    data = bytearray(path.read_bytes())
    data[at : at + 150] = bytes(255 - byte for byte in data[at : at + 150])
    path.write_bytes(data)
    try:
        open_store(tmp_path).close()
        read_rows(tmp_path)
    except ValueError as error:
        assert f"{path} cannot be read (" in str(error) and "\n" not in str(error)
