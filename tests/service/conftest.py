from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.service.fakes import FakeRuntime
from tests.service.support import Process


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts service processes, and ends them after the test."""
    running: list[Process] = []

    def starting(*command: str, **environment: str) -> Process:
        process = Process(list(command), tmp_path / f"log{len(running)}", **environment)
        running.append(process)
        return process

    yield starting
    for process in running:
        process.close()


@pytest.fixture
def fake() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture(scope="session")
def real_service(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """`python -m service` on the tiny model: one process for the tests that only ask it."""
    log = tmp_path_factory.mktemp("service") / "log"
    process = Process(["service"], log, SPEECH_SSL_MODEL=str(tiny_artifact), SPEECH_SSL_MAX_CLIP_S="120")
    try:
        process.ready()
        yield process
    finally:
        process.close()
