"""Write a folder as a whole: beside its place, and moved there once it is complete and on disk.

It may replace nothing, an empty folder, or an artifact with nothing else in it: other folders with a
`config.json` may hold somebody's work.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from speech_ssl.files import sync

CONFIG = "config.json"


class ArtifactError(ValueError):
    """An artifact that cannot be used. One line: which file, key or field, and what to do about it."""


def check_replaceable(folder: Path) -> None:
    """Raises ArtifactError if `new_folder` would refuse to write there."""
    place = _followed(folder)
    if place.exists() and not place.is_dir():
        raise ArtifactError(f"{folder} is a file: choose another name for the folder")
    if not place.exists() or not any(place.iterdir()):
        return
    listed = _listed(place)
    if not listed:
        raise ArtifactError(f"{folder} holds something other than an artifact: choose another folder")
    others = sorted(path.name for path in place.iterdir() if path.name not in listed or path.is_dir())
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ArtifactError(
            f"{folder} holds {others[0]!r}{more} beside an artifact: move that away, or choose another folder"
        )


def check_empty(folder: Path) -> None:
    """Raises ArtifactError unless the folder is empty or missing: exports replace nothing."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder} is not empty: choose another folder")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write an artifact into, moved into place at the end. A symbolic link is kept, and its
    target replaced. Raises as `check_replaceable`."""
    check_replaceable(folder)
    place = _followed(folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    new = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    new.mkdir()
    try:
        yield new
        for path in (*new.iterdir(), new):
            if path.is_file():  # safetensors lets only the owner read; a service may be another user
                path.chmod((new / CONFIG).stat().st_mode)
            sync(path)
        check_replaceable(place)  # again: something may have appeared there
        _move_into_place(new, place)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _followed(folder: Path) -> Path:
    try:
        return folder.resolve()
    except (OSError, RuntimeError):  # a cycle of links
        raise ArtifactError(f"{folder} is a symbolic link to nowhere: choose another folder") from None


def _listed(folder: Path) -> set[str]:
    """The files of the artifact in a folder; empty if it holds no artifact."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return set()
    if not isinstance(config, dict) or type(config.get("format_version")) is not int:
        return set()
    files = config.get("files")
    return {CONFIG, *files} if isinstance(files, dict) else set()


def _move_into_place(new: Path, folder: Path) -> None:
    old = new.with_name(new.name + ".old")
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
