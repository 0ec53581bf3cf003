"""Models that cannot be loaded, change on the disk, or change while their copies are being loaded."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.batcher import Away
from service.jobs.store import NewJob, Store, new_id
from service.models.model import ModelSource
from service.models.registry import DEFAULT
from service.settings import Settings
from tests.service.fakes import FakeRuntime
from tests.service.job_client import clip, finished, results
from tests.service.support import encoded, error_of, serving_app, tone, until

URL = "/v1/embeddings"
WAV = encoded(tone(1.0))


class Far(FakeRuntime):
    """As if it were in a process of its own. Its frames are `factor` times the fake's."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor, self.sha256 = factor, str(factor)  # type: ignore[misc]
        self.running, self.stale = False, False
        self.error: Exception | None = None

    def start(self, changed: Callable[[], object]) -> None:
        self.running = True

    def close(self) -> None:
        self.running = False

    def run_windows(self, *args: Any, **options: Any) -> Any:
        if not self.running:
            raise Away
        return super().run_windows(*args, **options)

    def frames(self, wave: Any, layer: int) -> Any:  # type: ignore[override]
        return FakeRuntime.frames(wave, layer) * self.factor


class Shelf:
    """Makes models, and counts how often. broken: what it raises instead, so many times. factors: of the
    next ones."""

    def __init__(self) -> None:
        self.tries = 0
        self.made: list[Far] = []
        self.broken: Exception | None = None
        self.broken_for = 1_000_000
        self.factors: list[float] = []
        self._lock = threading.Lock()

    def __call__(self) -> Far:
        with self._lock:
            self.tries += 1
            if self.broken is not None and self.tries <= self.broken_for:
                raise self.broken
            self.made.append(Far(self.factors.pop(0) if self.factors else 1.0))
            return self.made[-1]


@contextmanager
def served(
    default: ModelSource, further: ModelSource | None = None, **settings: Any
) -> Iterator[httpx.Client]:
    sources = {DEFAULT: default} if further is None else {DEFAULT: default, "further": further}
    with serving_app(create_app(Settings(**settings), sources)) as client:
        until(lambda: client.get("/health/ready").status_code == 200)
        yield client


def ask(client: httpx.Client, model: str = DEFAULT) -> httpx.Response:
    return client.post(URL, files={"file": WAV}, data={"model": model})


def vector(answer: httpx.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"][0]["embedding"])


def test_one_that_cannot_be_loaded_is_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.models.registry.PAUSE_S", 3600.0)
    shelf = Shelf()
    shelf.broken = ValueError("its folder is gone")
    with (
        caplog.at_level(logging.ERROR),
        served(ModelSource(Far), ModelSource(shelf, preload=False)) as client,
    ):
        with ThreadPoolExecutor(4) as pool:
            refused = list(pool.map(lambda _: ask(client, "further"), range(20)))
        for answer in refused:
            assert (answer.status_code, error_of(answer)["code"]) == (503, "not_loaded")
            assert int(answer.headers["retry-after"]) >= 1 and "folder" not in answer.text
        assert shelf.tries == 1
        assert [record.getMessage() for record in caplog.records].count(
            "the model further cannot be loaded: its folder is gone"
        ) == 1
        assert ask(client).status_code == 200


def test_its_pauses_grow_and_the_same_cause_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.models.registry.PAUSE_S", 0.1)
    shelf = Shelf()
    shelf.broken = ValueError("its folder is gone")
    with (
        caplog.at_level(logging.ERROR),
        served(ModelSource(Far), ModelSource(shelf, preload=False)) as client,
    ):
        began = time.monotonic()
        while shelf.tries < 4:
            assert ask(client, "further").status_code == 503
        assert time.monotonic() - began >= 0.1 + 0.2 + 0.4
        assert caplog.text.count("cannot be loaded") == 1
        shelf.broken = None
        until(lambda: ask(client, "further").status_code == 200)


def left_by_another(folder: Path, files: int) -> str:
    """A job for the further model that an earlier process took."""
    with closing(Store(folder)) as store:
        store.opened(id := new_id())
        for position in range(files):
            (store.folder(id) / str(position)).write_bytes(clip())
        store.add(NewJob(id, "", None, "", "embedding", "further", "{}", ["a"] * files))
    return id


def test_a_job_waits_for_a_model_that_could_not_be_loaded(tmp_path: Path) -> None:
    shelf = Shelf()
    shelf.broken, shelf.broken_for = ValueError("no memory left"), 2
    id = left_by_another(tmp_path, 2)
    with served(ModelSource(Far), ModelSource(shelf, preload=False), jobs_dir=tmp_path) as client:
        assert finished(client, id)["progress"]["files_failed"] == 0 and shelf.tries == 3


def test_but_not_for_one_that_never_can(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("service.models.registry.PAUSE_S", 3600.0)
    shelf = Shelf()
    shelf.broken = ValueError("its folder is gone")
    id = left_by_another(tmp_path, 20)
    with served(ModelSource(Far), ModelSource(shelf, preload=False), jobs_dir=tmp_path) as client:
        assert finished(client, id)["status"] == "failed" and shelf.tries == 1
        assert {line["error"]["code"] for line in results(client, id)} == {"not_loaded"}


class Endless(Far):
    """Is loaded until it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.closed = threading.Event(), threading.Event()

    def start(self, changed: Callable[[], object]) -> None:
        self.begun.set()
        assert self.closed.wait(60)
        raise OSError("closed")

    def close(self) -> None:
        self.closed.set()


def test_the_end_does_not_wait_for_what_is_being_loaded_nor_takes_it_for_a_failure() -> None:
    model, further = Endless(), Endless()
    app = create_app(
        Settings(), {DEFAULT: ModelSource(lambda: model), "further": ModelSource(lambda: further)}
    )
    with serving_app(app):
        assert model.begun.wait(30) and further.begun.wait(30)
    assert model.closed.is_set() and further.closed.is_set()
    assert app.state.engine.load_error is None


def test_a_full_queue_is_told_beside_a_model_that_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.models.registry.PAUSE_S", 3600.0)
    shelf, default = Shelf(), Far()
    shelf.broken = ValueError("its folder is gone")
    further = ModelSource(shelf, preload=False)
    with (
        served(ModelSource(lambda: default), further, max_queue_s=1.5) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        assert error_of(ask(client, "further"))["code"] == "not_loaded"
        default.open_gate.clear()
        held = pool.submit(ask, client)
        until(lambda: "speech_ssl_queued_audio_seconds 1.0" in client.get("/metrics").text)
        full = ask(client)
        assert (full.status_code, error_of(full)["code"]) == (429, "overloaded")
        default.open_gate.set()
        assert held.result().status_code == 200


def test_only_the_one_that_has_changed_is_loaded_anew_and_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of its copies goes on answering; then none is left; then it can be loaded."""
    monkeypatch.setattr("service.models.registry.LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("service.models.registry.PAUSE_S", 0.1)
    default, shelf = Shelf(), Shelf()
    with served(ModelSource(default), ModelSource(shelf, copies=2)) as client:
        right = vector(ask(client, "further"))
        shelf.broken = ValueError("half of it is missing")
        shelf.made[0].running, shelf.made[0].stale = False, True
        shelf.made[0].error = ValueError("another model")
        until(lambda: shelf.tries >= 6)
        assert shelf.tries < 20 and default.tries == 1
        assert vector(ask(client, "further")) == right
        shelf.made[1].running, shelf.made[1].stale = False, True
        shelf.made[1].error = ValueError("another model")
        refused = ask(client, "further")
        assert (refused.status_code, error_of(refused)["code"]) == (503, "restarting")
        assert client.get("/health/ready").status_code == 503
        shelf.factors, shelf.broken = [3.0] * 100, None
        until(lambda: client.get("/health/ready").status_code == 200)
        assert vector(ask(client, "further")) == pytest.approx([3 * value for value in right])
        assert default.tries == 1


def test_copies_of_different_weights_do_not_serve_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is replaced between their loads: one of them serves until the model has been loaded anew."""
    monkeypatch.setattr("service.models.registry.LOOK_EVERY_S", 0.1)
    shelf = Shelf()
    shelf.factors = [1.0, 2.0, 2.0, 2.0]
    with served(ModelSource(shelf, copies=2)) as client:
        first = vector(ask(client))
        answers = [first]
        with ThreadPoolExecutor(4) as pool:
            while len(answers) < 100 and answers[-1] == first:
                answers += map(vector, pool.map(lambda _: ask(client), range(4)))
        until(lambda: len(shelf.made) >= 4 and not shelf.made[0].running and not shelf.made[1].running)
        fresh = vector(ask(client))
        factors = {round(answer[0] / fresh[0], 3) for answer in answers}
        changes = sum(one != other for one, other in zip(answers, answers[1:], strict=False))
        assert fresh == pytest.approx([2 * value for value in FakeRuntime.frames(tone(1.0), 3).mean(0)], 1e-3)
        assert factors <= {0.5, 1.0} and changes <= 4
        assert all(vector(ask(client)) == fresh for _ in range(20)) and len(shelf.made) == 4
