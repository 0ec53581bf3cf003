"""Files that are written whole or not at all, also if the power fails."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A place beside `path` to write to. At the end of the block what was written there takes its place.

    If the block fails, nothing is left of it. What a killed process leaves has always the same name, so that
    it does not pile up; `shared` gives it a name of its own: several processes may write the same file.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4) if shared else 'part'}")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """All of the data, or the old file. Its folder is made if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(data)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
