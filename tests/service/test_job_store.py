"""The store of jobs beside a plain model of it, through any sequence of what may happen, deaths included; and
the form, cut anywhere."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.errors import ServiceError
from service.jobs.store import NewJob, Store, new_id
from service.jobs.uploads import Form
from tests.service.job_client import kept

ANY = strategies.integers(0, 1 << 16)


@dataclass
class Expected:
    """What a job has to be; files: how each is, "waiting", "done" or "failed"."""

    owner: str
    status: str = "queued"
    files: list[str] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.status not in ("queued", "running")


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.place = tempfile.TemporaryDirectory()
        self.folder = Path(self.place.name)
        self.store = Store(self.folder)
        self.jobs: dict[str, Expected] = {}

    @rule(files=strategies.integers(1, 3), owner=strategies.sampled_from(["", "anna"]))
    def add(self, files: int, owner: str) -> None:
        self.store.opened(id := new_id())
        for position in range(files):
            (self.store.folder(id) / str(position)).write_bytes(b"audio")
        names = [f"{position}.wav" for position in range(files)]
        self.store.add(NewJob(id, owner, None, "", "embedding", "fake", "{}", names))
        self.jobs[id] = Expected(owner, files=["waiting"] * files)

    @rule()
    def claim(self) -> None:
        live = [(job.owner, id) for id, job in self.jobs.items() if not job.over]
        assert self.store.waiting() == live
        for owner in ("", "anna"):
            assert self.store.live(owner) == [each for each, _ in live].count(owner)
        for id, expected in self.jobs.items():
            if expected.status == "queued":
                job = self.store.claim(id)
                assert job is not None and (job.status, job.owner) == ("running", expected.owner)
                expected.status = "running"
                break
        assert not any(self.store.claim(id) for id, job in self.jobs.items() if job.over)

    @precondition(lambda self: any(job.status == "running" for job in self.jobs.values()))
    @rule(which=ANY, ok=strategies.booleans())
    def run_file(self, which: int, ok: bool) -> None:
        running = [id for id, job in self.jobs.items() if job.status == "running"]
        id = running[which % len(running)]
        job, file = self.jobs[id], self.store.begin_file(id)
        self.store.end(id)  # only if nothing waits
        if file is None:
            assert "waiting" not in job.files
            job.status = "done" if "done" in job.files else "failed"
            return
        assert file.position == job.files.index("waiting")
        if ok:
            (self.store.folder(id) / f"{file.position}.json").write_text('{"a": 1}')
        self.store.end_file(id, file.position, None if ok else '{"error": {}}')
        job.files[file.position] = "done" if ok else "failed"

    @precondition(lambda self: any(job.status == "running" for job in self.jobs.values()))
    @rule(which=ANY)
    def leave_file(self, which: int) -> None:
        running = [id for id, job in self.jobs.items() if job.status == "running"]
        id = running[which % len(running)]
        if (file := self.store.begin_file(id)) is not None:
            self.store.leave_file(id, file.position)
            again = self.store.begin_file(id)
            assert again == file
            self.store.leave_file(id, file.position)

    @precondition(lambda self: self.jobs)
    @rule(which=ANY)
    def remove(self, which: int) -> None:
        id = list(self.jobs)[which % len(self.jobs)]
        if self.jobs[id].over:
            self.store.delete(id)
            del self.jobs[id]
        else:
            self.store.cancel(id)
            self.store.end_file(id, 0, None)  # an answer that comes too late changes nothing
            self.store.end(id)
            self.store.tidy(id)
            self.jobs[id].status = "cancelled"

    @rule()
    def die(self) -> None:
        self.store.opened(new_id())  # a job that was being sent
        for id, job in self.jobs.items():
            (self.store.folder(id) / "0.part").write_text("half")
            if job.status == "running":
                self.store.begin_file(id)
                job.status = "queued"
        self.store.close()
        self.store = Store(self.folder)

    @rule()
    def expire(self) -> None:
        self.store.expire(1e12)
        self.jobs = {id: job for id, job in self.jobs.items() if not job.over}

    @invariant()
    def is_as_expected(self) -> None:
        for owner in ("", "anna"):
            own = [id for id, job in self.jobs.items() if job.owner == owner]
            assert [job.id for job in self.store.page(owner, 100, None)] == own[::-1]
        wanted = []
        for id, job in self.jobs.items():
            found = self.store.find(id, job.owner)
            assert (found.status, found.over) == (job.status, job.over)
            assert (found.answered, found.refused) == (job.files.count("done"), job.files.count("failed"))
            ended = [position for position, status in enumerate(job.files) if status != "waiting"]
            assert [file.position for file in self.store.ended_files(id, -1)] == ended
            with pytest.raises(ServiceError):
                self.store.find(id, "ben")
            for position, status in enumerate(job.files):
                if status == "done":
                    wanted.append(f"{id}/{position}.json")
                elif status == "waiting" and not job.over:
                    wanted.append(f"{id}/{position}")
        assert kept(self.folder) == sorted(wanted)
        answers = {
            owner: 8 * sum(j.files.count("done") for j in self.jobs.values() if j.owner == owner)
            for owner in ("", "anna")
        }
        for owner, size in answers.items():
            assert self.store.result_bytes(owner) == (size, sum(answers.values()))
        assert sum(self.store.counts().values()) == len(self.jobs)

    def teardown(self) -> None:
        self.store.close()
        self.place.cleanup()


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_sizes_of_results_that_an_earlier_version_left(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.opened(id := new_id())
        store.add(NewJob(id, "anna", None, "", "embedding", "fake", "{}", ["a", "b"]))
        assert store.claim(id) and store.begin_file(id)
        (store.folder(id) / "0.json").write_text("12345")
        store.end_file(id, 0, None)
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite3")) as connection:
        connection.executescript("ALTER TABLE files DROP COLUMN bytes; PRAGMA user_version = 1")
    with closing(Store(tmp_path)) as store:
        assert store.result_bytes("anna") == (5, 5) and store.result_bytes("ben") == (0, 5)
        assert store.get(id).files == 2


PARTS = [b"", b"\r\n--x", b"\r\n--xx\r\n", b"RIFF" * 40, b"-" * 70, b"\r\n\r\n--"]


@settings(max_examples=60, deadline=None)
@given(
    contents=strategies.lists(
        strategies.sampled_from(PARTS) | strategies.binary(max_size=80), min_size=1, max_size=4
    ),
    cuts=strategies.lists(strategies.integers(1, 50), min_size=1, max_size=20),
)
def test_a_form_cut_anywhere_is_the_same(contents: list[bytes], cuts: list[int]) -> None:
    boundary = b"boundary-that-is-in-none-of-them"
    body = b"--" + boundary + b'\r\nContent-Disposition: form-data; name="task"\r\n\r\nembedding'
    for number, data in enumerate(contents):
        head = f'\r\nContent-Disposition: form-data; name="file"; filename="{number}.wav"\r\n\r\n'
        body += b"\r\n--" + boundary + head.encode() + data
    body += b"\r\n--" + boundary + b"--\r\n"
    with tempfile.TemporaryDirectory() as folder:
        form = Form(f"multipart/form-data; boundary={boundary.decode()}", Path(folder), 4)
        start = 0
        for step in cuts * len(body):
            form.write(body[start : start + step])
            start += step
            if start >= len(body):
                break
        form.finish()
        assert form.fields == [("task", "embedding")]
        assert [file.name for file in form.files] == [f"{number}.wav" for number in range(len(contents))]
        for number, data in enumerate(contents):
            assert (Path(folder) / str(number)).read_bytes() == data
