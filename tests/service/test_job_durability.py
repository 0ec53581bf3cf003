"""What a 202 promises is on the disk: files, and the folders that lead to them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.service.fakes import FakeRuntime
from tests.service.job_client import accepted, clip
from tests.service.support import serving


def test_all_that_leads_to_a_job_is_synced_before_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries: dict[Path, set[str]] = {}
    sync = os.fsync

    def noted(descriptor: int) -> None:
        """A folder with what is in it by then, a file with its size."""
        sync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        entries[path] = (
            {each.name for each in path.iterdir()} if path.is_dir() else {str(path.stat().st_size)}
        )

    monkeypatch.setattr(os, "fsync", noted)
    folder, audio = tmp_path / "deep" / "jobs", clip()
    fake = FakeRuntime()
    with serving(fake, jobs_dir=folder) as client:
        fake.open_gate.clear()
        job = accepted(client, [audio, audio])
        try:
            path = folder / "files" / job / "1"
            assert entries[path] == {str(len(audio))}
            while path != tmp_path:
                assert path.name in entries[path.parent], path
                path = path.parent
        finally:
            fake.open_gate.set()
