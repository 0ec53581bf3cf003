"""Jobs as they are kept: rows in SQLite, and what is long in a folder for each.

    lock           held by the one process that uses all this
    jobs.sqlite3   which jobs there are, and how far each of their files is
    files/ID/0     the audio of a job's first file, until that has its answer
    files/ID/0.json  the answer

What a row speaks of is on the disk before the row is: a process may be killed at any point, and the next one
finds nothing half done that it would believe. All of it belongs to one thread.
"""

from __future__ import annotations

import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from service.errors import ServiceError, bad_request
from service.jobs.files import locked, made_folder
from service.jobs.tables import opened, size_of

Status = Literal["queued", "running", "done", "failed", "cancelled"]
STATUSES: tuple[Status, ...] = get_args(Status)
_JOB = """
SELECT *,
    (SELECT count(*) FROM files WHERE job = number) AS files,
    (SELECT count(*) FROM files WHERE job = number AND status = 'done') AS answered,
    (SELECT count(*) FROM files WHERE job = number AND status = 'failed') AS refused
FROM jobs
"""
_ID = re.compile(r"job_[A-Za-z0-9_-]{24}")


@dataclass(frozen=True)
class NewJob:
    """owner: the name of a key, "" where there are none. key: the client's own, for doing it only once.
    digest: of all that was asked. options: JSON. names: of its files, which are in its folder."""

    id: str
    owner: str
    key: str | None
    digest: str
    task: str
    model: str
    options: str
    names: Sequence[str]


@dataclass(frozen=True)
class JobRow:
    """Times are Unix seconds. `answered` and `refused` are what has become of its files so far."""

    id: str
    owner: str
    task: str
    model: str
    options: str
    status: Status
    created: float
    started: float | None
    ended: float | None
    files: int
    answered: int
    refused: int

    @property
    def over(self) -> bool:
        return self.ended is not None


@dataclass(frozen=True)
class JobFile:
    """attempts: how often it was begun. error: JSON, as the body of a refusal."""

    position: int
    name: str
    attempts: int
    error: str | None


def new_id() -> str:
    return f"job_{secrets.token_urlsafe(18)}"


class Store:
    """Raises sqlite3.Error and OSError where the disk is full or gone."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError, with why, for a folder that cannot be used."""
        self.files = folder / "files"
        try:
            made_folder(self.files)
            self._lock = locked(folder)
            self._db = opened(folder / "jobs.sqlite3", self.files)
            self._recover()
        except (OSError, sqlite3.Error, ValueError) as error:
            self.close()
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"jobs cannot be kept in {folder}: {reason}") from error

    def close(self) -> None:
        for name in ("_db", "_lock"):
            if (each := getattr(self, name, None)) is not None:
                each.close()

    def folder(self, job: str) -> Path:
        """`job`: an id of ours, never what a client named."""
        return self.files / job

    def opened(self, job: str) -> Path:
        """The folder of a job to come."""
        made_folder(self.folder(job))
        return self.folder(job)

    def forget(self, job: str) -> None:
        """The folder of a job that did not come to be."""
        if self._db.execute("SELECT 1 FROM jobs WHERE id = ?", (job,)).fetchone() is None:
            self._remove(job)

    def add(self, new: NewJob) -> JobRow:
        """It, or the one that was asked with the same key before. Raises ServiceError if that was another."""
        if new.key is not None and (earlier := self._by_key(new.owner, new.key)) is not None:
            if earlier["digest"] != new.digest:
                message = "this Idempotency-Key was sent with another job before: a new job needs a new key"
                raise ServiceError(409, "idempotency_key_reused", message, param="Idempotency-Key")
            return self.get(earlier["id"])
        with self._db:
            row = (new.id, new.owner, new.key, new.digest, new.task, new.model, new.options, time.time())
            number = self._db.execute(
                "INSERT INTO jobs (id, owner, key, digest, task, model, options, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            ).lastrowid
            self._db.executemany(
                "INSERT INTO files (job, position, name) VALUES (?, ?, ?)",
                [(number, position, name) for position, name in enumerate(new.names)],
            )
        return self.get(new.id)

    def has_key(self, owner: str, key: str) -> bool:
        return self._by_key(owner, key) is not None

    def get(self, job: str) -> JobRow:
        return self._job("id = ?", (job,))

    def find(self, job: str, owner: str) -> JobRow:
        """Raises ServiceError, 404 for those of others too."""
        return self._job("id = ? AND owner = ?", (job, owner))

    def page(self, owner: str, limit: int, after: str | None) -> list[JobRow]:
        """Newest first. Raises ServiceError if there is no job `after`."""
        last = 1 << 62
        if after is not None:
            found = self._db.execute(
                "SELECT number FROM jobs WHERE id = ? AND owner = ?", (after, owner)
            ).fetchone()
            if found is None:
                raise bad_request("after: there is no such job", "after")
            last = found["number"]
        rows = self._db.execute(
            f"{_JOB} WHERE owner = ? AND number < ? ORDER BY number DESC LIMIT ?", (owner, last, limit)
        )
        return [_as_job(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """Jobs by status."""
        return dict(self._db.execute("SELECT status, count(*) FROM jobs GROUP BY status").fetchall())

    def live(self, owner: str) -> int:
        """Jobs that wait or run."""
        (count,) = self._db.execute(
            "SELECT count(*) FROM jobs WHERE owner = ? AND ended IS NULL", (owner,)
        ).fetchone()
        return int(count)

    def result_bytes(self, owner: str) -> tuple[int, int]:
        """Of the answers that are kept: an owner's, and all."""
        own, every = self._db.execute(
            "SELECT coalesce(sum(bytes) FILTER (WHERE owner = ?), 0), coalesce(sum(bytes), 0)"
            " FROM files JOIN jobs ON number = job WHERE bytes > 0",
            (owner,),
        ).fetchone()
        return int(own), int(every)

    def waiting(self) -> list[tuple[str, str]]:
        """Owner and id of each job that waits or runs, the oldest first."""
        rows = self._db.execute("SELECT owner, id FROM jobs WHERE ended IS NULL ORDER BY number")
        return [(row["owner"], row["id"]) for row in rows]

    def claim(self, job: str) -> JobRow | None:
        """It runs now; None if it has ended."""
        with self._db:
            changed = self._db.execute(
                "UPDATE jobs SET status = 'running', started = coalesce(started, ?)"
                " WHERE id = ? AND ended IS NULL",
                (time.time(), job),
            ).rowcount
        return self.get(job) if changed else None

    def begin_file(self, job: str) -> JobFile | None:
        """The next without an answer, of a job that runs; this attempt is counted."""
        row = self._db.execute(
            "SELECT job, position, name, attempts + 1 AS attempts, error FROM files WHERE status = 'waiting'"
            " AND job = (SELECT number FROM jobs WHERE id = ? AND status = 'running')"
            " ORDER BY position LIMIT 1",
            (job,),
        ).fetchone()
        if row is None:
            return None
        with self._db:
            self._db.execute(
                "UPDATE files SET attempts = ? WHERE job = ? AND position = ?",
                (row["attempts"], row["job"], row["position"]),
            )
        return JobFile(row["position"], row["name"], row["attempts"], row["error"])

    def leave_file(self, job: str, position: int) -> None:
        """The attempt ended in good order, and does not count."""
        with self._db:
            self._db.execute(
                "UPDATE files SET attempts = attempts - 1 WHERE status = 'waiting' AND position = ?"
                " AND job = (SELECT number FROM jobs WHERE id = ?)",
                (position, job),
            )

    def end_file(self, job: str, position: int, error: str | None) -> None:
        """Its answer is on the disk, or there is an error; neither, if the job has been cancelled."""
        size = 0 if error is not None else size_of(self.folder(job), position)
        with self._db:
            self._db.execute(
                "UPDATE files SET status = ?, error = ?, bytes = ? WHERE status = 'waiting' AND position = ?"
                " AND job = (SELECT number FROM jobs WHERE id = ? AND status = 'running')",
                ("done" if error is None else "failed", error, size, position, job),
            )
        (self.folder(job) / str(position)).unlink(missing_ok=True)

    def end(self, job: str) -> None:
        """If all its files have been through; failed is a job of which none has an answer."""
        with self._db:
            self._db.execute(
                "UPDATE jobs SET ended = ?, status = CASE WHEN EXISTS"
                " (SELECT 1 FROM files WHERE job = number AND status = 'done') THEN 'done' ELSE 'failed' END"
                " WHERE id = ? AND status = 'running'"
                " AND NOT EXISTS (SELECT 1 FROM files WHERE job = number AND status = 'waiting')",
                (time.time(), job),
            )

    def cancel(self, job: str) -> None:
        with self._db:
            self._db.execute(
                "UPDATE jobs SET status = 'cancelled', ended = ? WHERE id = ? AND ended IS NULL",
                (time.time(), job),
            )

    def tidy(self, job: str) -> None:
        """Leaves in its folder what is still to be read: audio of a job that goes on, and answers."""
        wanted = {
            f"{position}.json" if status == "done" else str(position)
            for position, status in self._db.execute(
                "SELECT position, files.status FROM files JOIN jobs ON number = job WHERE id = ?"
                " AND (files.status = 'done' OR files.status = 'waiting' AND ended IS NULL)",
                (job,),
            )
        }
        for path in self.folder(job).iterdir():
            if path.name not in wanted:
                path.unlink()

    def delete(self, job: str) -> None:
        with self._db:
            self._db.execute("DELETE FROM jobs WHERE id = ?", (job,))
        self._remove(job)

    def expire(self, before: float) -> None:
        """Delete the jobs that ended before that time."""
        for row in self._db.execute("SELECT id FROM jobs WHERE ended < ?", (before,)).fetchall():
            self.delete(row["id"])

    def ended_files(self, job: str, after: int) -> list[JobFile]:
        """Those with an answer or an error, whose positions are greater."""
        rows = self._db.execute(
            "SELECT position, name, attempts, error FROM files WHERE status != 'waiting' AND position > ?"
            " AND job = (SELECT number FROM jobs WHERE id = ?) ORDER BY position",
            (after, job),
        )
        return [JobFile(**dict(row)) for row in rows]

    def _by_key(self, owner: str, key: str) -> Any:
        return self._db.execute("SELECT * FROM jobs WHERE owner = ? AND key = ?", (owner, key)).fetchone()

    def _job(self, where: str, values: tuple[str, ...]) -> JobRow:
        row = self._db.execute(f"{_JOB} WHERE {where}", values).fetchone()
        if row is None:
            raise ServiceError(404, "job_not_found", "there is no such job: it may have been deleted")
        return _as_job(row)

    def _remove(self, job: str) -> None:
        shutil.rmtree(self.folder(job), ignore_errors=True)  # what is left goes at the next start

    def _recover(self) -> None:
        """What ran when the last process ended waits again, and what belongs to no job goes."""
        with self._db:
            self._db.execute("UPDATE jobs SET status = 'queued' WHERE status = 'running'")
        known = {row["id"] for row in self._db.execute("SELECT id FROM jobs")}
        for path in self.files.iterdir():
            if path.name in known:
                self.tidy(path.name)
            elif _ID.fullmatch(path.name):  # other names are not ours
                self._remove(path.name)


def _as_job(row: sqlite3.Row) -> JobRow:
    return JobRow(**{name: row[name] for name in JobRow.__dataclass_fields__})
