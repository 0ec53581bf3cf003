"""The tables of jobs, and how those that an earlier version wrote become them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

VERSION = 2
SCHEMA = f"""
BEGIN;
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    key TEXT,
    digest TEXT NOT NULL,
    task TEXT NOT NULL,
    model TEXT NOT NULL,
    options TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'queued',
    created REAL NOT NULL,
    started REAL,
    ended REAL
);
CREATE UNIQUE INDEX by_key ON jobs (owner, key) WHERE key IS NOT NULL;
CREATE INDEX by_owner ON jobs (owner, number);
CREATE INDEX by_status ON jobs (status, number);
CREATE TABLE files (
    job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    name TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'waiting',
    attempts INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    bytes INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, position)
) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
COMMIT;
"""


def opened(path: Path, files: Path) -> sqlite3.Connection:
    """files: the folder with those of each job. Raises ValueError for what a later version wrote, and
    sqlite3.Error."""
    connection = sqlite3.connect(path)
    try:
        connection.row_factory = sqlite3.Row
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.executescript(SCHEMA)
        elif version == 1:
            _with_sizes(connection, files)
        elif version != VERSION:
            raise ValueError(f"it was written by another version of the service (its form is {version})")
    except BaseException:
        connection.close()
        raise
    return connection


def size_of(folder: Path, position: int) -> int:
    """Bytes of a file's answer."""
    try:
        return (folder / f"{position}.json").stat().st_size
    except FileNotFoundError:
        return 0


def _with_sizes(connection: sqlite3.Connection, files: Path) -> None:
    """Version 1 did not know how long answers are. All of it, or nothing."""
    with connection:
        connection.execute("BEGIN")
        connection.execute("ALTER TABLE files ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0")
        done = connection.execute(
            "SELECT job, position, id FROM files JOIN jobs ON number = job WHERE files.status = 'done'"
        ).fetchall()
        connection.executemany(
            "UPDATE files SET bytes = ? WHERE job = ? AND position = ?",
            [(size_of(files / row["id"], row["position"]), row["job"], row["position"]) for row in done],
        )
        connection.execute(f"PRAGMA user_version = {VERSION}")
