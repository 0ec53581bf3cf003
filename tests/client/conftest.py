from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.client import Client
from speech_ssl.inference import Runtime
from tests.client.scripted import ONCE
from tests.service.fakes import FakeRuntime
from tests.service.support import serving


@pytest.fixture
def fake() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def client(fake: FakeRuntime) -> Iterator[Client]:
    with serving(fake) as http, Client(str(http.base_url), retrying=ONCE) as client:
        yield client


@pytest.fixture(scope="module")
def runtime(answering_artifact: Path) -> Runtime:
    """With windows of two seconds, so that short clips have several."""
    return Runtime(load_artifact(answering_artifact), window_s=2.0, context_s=0.5)


@pytest.fixture(scope="module")
def answering(runtime: Runtime) -> Iterator[Client]:
    with serving(runtime) as http, Client(str(http.base_url), retrying=ONCE) as client:
        yield client


@pytest.fixture(scope="module")
def clip(prompts: Path) -> Path:
    return max((prompts / "audio").glob("*.flac"), key=lambda path: path.stat().st_size)
