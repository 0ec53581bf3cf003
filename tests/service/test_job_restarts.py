"""Jobs of real processes that are killed, ended and started again on the same folder."""

from __future__ import annotations

import os
import signal
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from service.jobs.store import Store
from speech_ssl.types import SAMPLE_RATE
from tests.service.fakes import FakeRuntime
from tests.service.job_client import URL, accepted, asked, clip, finished, kept, results
from tests.service.support import START_S, Process, until

FAKE = "tests.service.fakes"
Start = Callable[..., Process]


def started(start: Start, folder: Path, slowness: float = 0.0, **environment: str) -> Process:
    command = (FAKE, "--slowness", str(slowness))
    process = start(*command, SPEECH_SSL_JOBS_DIR=str(folder), **environment)
    process.ready()
    return process


def until_done(process: Process, job: str, files: int) -> None:
    until(lambda: asked(process.client, job)["progress"]["files_done"] >= files)


def test_killed_and_ended_in_the_middle_each_file_is_run_once(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    files = [clip(1.0, frequency=200.0 + 10 * number) for number in range(6)]
    files[4] = clip(120.0)
    process = started(start, folder, slowness=0.3)
    job = accepted(process.client, [*files, b"junk"], key="once")
    until_done(process, job, 2)
    os.kill(process.popen.pid, signal.SIGKILL)
    process.popen.wait(60)

    process = started(start, folder, slowness=0.3)
    assert accepted(process.client, [*files, b"junk"], key="once") == job
    until_done(process, job, 4)
    process.terminate()  # with half a minute's work under way
    assert process.popen.wait(20) == 0
    assert "Traceback" not in process.log.read_text()
    assert kept(folder) == sorted([f"{job}/{n}.json" for n in range(4)] + [f"{job}/{n}" for n in (4, 5, 6)])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}

    process = started(start, folder)
    ended = finished(process.client, job)
    assert ended["status"] == "done" and ended["progress"]["files_failed"] == 1
    windows = FakeRuntime().chunker.plan(120 * SAMPLE_RATE)
    run_s = 1.0 + sum(window.stop - window.start for window in windows) / SAMPLE_RATE
    assert process.metric("audio_seconds_total") == pytest.approx(run_s)  # of the last two, and no other
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    found = results(process.client, job)
    assert [entry["index"] for entry in found] == list(range(7))
    for entry, data in zip(found, files, strict=False):
        said = process.client.post("/v1/embeddings", files={"file": ("a", data)})
        assert entry["result"] == said.json()
    assert found[-1]["error"]["code"] == "unsupported_format"
    assert kept(folder) == sorted(f"{job}/{number}.json" for number in range(6))


@pytest.fixture
def stray(tmp_path: Path) -> Iterator[Path]:
    """A folder with what a process leaves that died while it was sent a job, and what is somebody else's."""
    folder = tmp_path / "jobs"
    half = folder / "files" / f"job_{'a' * 24}"
    half.mkdir(parents=True)
    (half / "0").write_bytes(b"half of it")
    (folder / "files" / "notes.txt").write_text("somebody's")
    yield folder


def test_what_belongs_to_no_job_goes_and_a_second_process_does_not_start(start: Start, stray: Path) -> None:
    first = started(start, stray)
    assert kept(stray) == ["notes.txt"]
    second = start(FAKE, SPEECH_SSL_JOBS_DIR=str(stray))
    assert second.popen.wait(START_S) != 0
    assert f"jobs cannot be kept in {stray}: another process uses this folder" in second.log.read_text()
    assert finished(first.client, accepted(first.client, [clip()]))["status"] == "done"
    before = peak_kib(first)
    with tempfile.TemporaryFile() as file:
        file.truncate(300 << 20)
        answer = first.client.post(URL, files={"file": ("a", file)}, data={"task": "embedding"})
    assert answer.status_code == 202
    assert peak_kib(first) - before < 100 << 10  # a job is never whole in memory


def peak_kib(process: Process) -> int:
    status = Path(f"/proc/{process.popen.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def test_a_folder_that_cannot_be_used_is_one_line(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broken, newer = tmp_path / "broken", tmp_path / "newer"
    for folder in (broken, newer):
        folder.mkdir()
    (broken / "jobs.sqlite3").write_text("not a database " * 100)
    with closing(sqlite3.connect(newer / "jobs.sqlite3")) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ValueError, match="Not a directory"):
        Store(tmp_path / "file")
    with pytest.raises(ValueError, match="written by another version of the service"):
        Store(newer)
    process = start("service", SPEECH_SSL_JOBS_DIR=str(broken))
    assert process.popen.wait(START_S) == 2
    log = process.log.read_text()
    assert "Traceback" not in log
    assert log.splitlines()[-1] == f"error: jobs cannot be kept in {broken}: file is not a database"
