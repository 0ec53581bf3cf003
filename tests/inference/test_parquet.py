"""The store: whole files or none, what is done, and folders of another kind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from speech_ssl.inference.parquet import Failure, Row, Settings, Shard, Store, read_rows

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
    return Store(folder, settings, shard, ids=IDS, columns=columns)


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
        store.fail(Failure(IDS[5 + index], "/p", "why", "empty"))
        store.commit()
    assert open_store(tmp_path).done.keys() == set(IDS[:2])
    for store in stores:
        store.close()
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    shards = ("00000-of-00002", "00001-of-00002")
    files = [f"part-{shard}-000000.parquet" for shard in shards] + [f"failures-{s}.jsonl" for s in shards]
    assert names == {"settings.json", *files}


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
    (tmp_path / "a" / "part-00000-of-00001-000000.parquet").write_bytes(b"damaged by others")
    with pytest.raises(ValueError, match="part-00000-of-00001-000000.parquet cannot be read .*remove it"):
        open_store(tmp_path / "a")
    with pytest.raises(ValueError, match="holds no rows"):
        read_rows(tmp_path / "b" / "nothing")
