"""The service needs no place to write but the temporary folder: containers have a read-only root."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.service import read_only
from tests.service.support import encoded, tone


@pytest.fixture
def room() -> Iterator[Path]:
    """With a path that is short enough for sockets in it."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_only_the_temporary_folder_is_written(start, tiny_artifact, room):
    process = start(
        "tests.service.read_only",
        SPEECH_SSL_MODEL=str(tiny_artifact),
        TMPDIR=str(room),
        HOME="/nonexistent",
    )
    client = process.ready()
    large = encoded(np.tile(tone(10.0), 10))
    assert len(large) > 1 << 20  # beyond that an upload is put on the disk
    files = [("file", ("large.wav", large)), ("file", ("small.wav", encoded(tone(1.0))))]
    assert client.post("/v1/embeddings", files=files).status_code == 200
    for path in ("/docs", "/metrics", "/v1/models"):
        assert client.get(path).status_code == 200
    process.terminate()
    assert process.popen.wait(60) == 0
    assert "refused" not in process.log.read_text()
    assert list(room.iterdir()) == []


def test_the_check_itself_refuses(tmp_path):
    for event, args in (("open", ("/elsewhere", "w", os.O_WRONLY)), ("os.mkdir", ("/elsewhere", 0o777, -1))):
        with pytest.raises(OSError) as refused:
            read_only.refuse(event, args)
        assert refused.value.errno == errno.EROFS
    read_only.refuse("open", ("/elsewhere", "r", os.O_RDONLY))
    read_only.refuse("open", (str(tmp_path / "file"), "w", os.O_WRONLY))
