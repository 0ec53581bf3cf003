"""Several models: loaded when needed, let go when idle, loaded anew, each with its own answers and queue."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.models.model import ModelSource
from service.models.registry import DEFAULT
from service.settings import Settings
from tests.service.fakes import FakeRuntime
from tests.service.support import Process, encoded, error_of, serving, serving_app, tone, until

URL = "/v1/embeddings"
WAV = encoded(tone(1.0))


class Named(FakeRuntime):
    """Its frames are `factor` times the fake's."""

    def __init__(self, name: str, factor: float = 1.0) -> None:
        super().__init__()
        self.name, self.factor = name, factor  # type: ignore[misc]

    def frames(self, wave: Any, layer: int) -> Any:  # type: ignore[override]
        return FakeRuntime.frames(wave, layer) * self.factor


class Shelf:
    """Makes models, and counts them. `broken`: what it raises instead."""

    def __init__(self) -> None:
        self.made: list[Named] = []
        self.broken: Exception | None = None

    def __call__(self) -> Named:
        if self.broken is not None:
            raise self.broken
        self.made.append(Named("double", 2.0))
        return self.made[-1]


@contextmanager
def both(shelf: Shelf, **source: Any) -> Iterator[httpx.Client]:
    sources = {DEFAULT: ModelSource(lambda: Named("single")), "twice": ModelSource(shelf, **source)}
    with serving_app(create_app(Settings(), sources)) as client:
        until(lambda: client.get("/health/ready").status_code == 200)
        yield client


def ask(client: httpx.Client, model: str | None = None) -> list[float]:
    fields = {} if model is None else {"model": model}
    answer = client.post(URL, files={"file": WAV}, data=fields)
    assert answer.status_code == 200, answer.text
    vector: list[float] = answer.json()["data"][0]["embedding"]
    return vector


def test_each_by_its_name() -> None:
    with both(Shelf(), preload=True) as client:
        single = ask(client)
        assert ask(client, "default") == ask(client, "single") == single
        assert ask(client, "twice") == pytest.approx([2 * value for value in single])
        refused = client.post(URL, files={"file": WAV}, data={"model": "thrice"})
        assert (refused.status_code, error_of(refused)["code"]) == (404, "model_not_found")


def test_aliases_are_further_names() -> None:
    aliases = {"hf.co/OWNER/NAME": "default", "other": "twice", "twice": "default"}
    sources = {DEFAULT: ModelSource(lambda: Named("single")), "twice": ModelSource(Shelf())}
    settings = Settings(models={"twice": {"source": "double"}}, aliases=aliases)
    with serving_app(create_app(settings, sources)) as client:
        until(lambda: client.get("/health/ready").status_code == 200)
        assert ask(client, "hf.co/OWNER/NAME") == ask(client)
        assert ask(client, "other") == ask(client, "twice") != ask(client)  # its own name goes first
        shown = {model["id"]: model["aliases"] for model in client.get("/v1/models").json()["data"]}
        assert shown == {"single": ["hf.co/OWNER/NAME"], "twice": ["other"]}
        assert client.get("/v1/models/hf.co/OWNER/NAME").json()["id"] == "single"
        for unknown in ("whisper-1", "hf.co"):  # those that are set take the place of the others
            assert client.get(f"/v1/models/{unknown}").status_code == 404


def test_one_is_loaded_by_its_first_request_and_let_go_when_idle() -> None:
    shelf = Shelf()
    with both(shelf, preload=False, unload_after_s=0.3) as client:
        first, second = client.get("/v1/models").json()["data"]
        assert (first["id"], first["loaded"], second["id"], second["loaded"]) == (
            "single",
            True,
            "twice",
            False,
        )
        assert second["layers"] is None and second["heads"] == []
        with ThreadPoolExecutor(4) as pool:
            assert len({tuple(each) for each in pool.map(lambda _: ask(client, "twice"), range(4))}) == 1
        assert len(shelf.made) == 1 and client.get("/v1/models/twice").json()["layers"] == 3
        until(lambda: not client.get("/v1/models/twice").json()["loaded"], 20)
        ask(client, "twice")
        assert len(shelf.made) == 2
        assert client.get("/v1/models/single").json()["loaded"]
        assert client.get("/v1/models/none").status_code == 404


def test_one_that_is_in_use_is_not_let_go() -> None:
    shelf = Shelf()
    with both(shelf, preload=False, unload_after_s=0.1) as client, ThreadPoolExecutor(1) as pool:
        ask(client, "twice")
        (model,) = shelf.made
        model.open_gate.clear()
        running = pool.submit(ask, client, "twice")
        assert model.entered.acquire(timeout=20) and model.entered.acquire(timeout=20)
        assert model.entered.acquire(timeout=20), "the warm-up, and two requests"
        time.sleep(1.5)  # longer than it looks around for idle ones
        assert client.get("/v1/models/twice").json()["loaded"]
        model.open_gate.set()
        assert len(running.result()) == 5 and len(shelf.made) == 1


def test_one_that_cannot_be_loaded_is_tried_again_later() -> None:
    shelf = Shelf()
    shelf.broken = ValueError("its folder is gone")
    with both(shelf, preload=False) as client:
        refused = client.post(URL, files={"file": WAV}, data={"model": "twice"})
        assert (refused.status_code, error_of(refused)["code"]) == (503, "not_loaded")
        assert "folder" not in refused.text, "what is where is for the log"
        assert client.get("/health/ready").status_code == 200 and len(ask(client)) == 5
        shelf.broken = None
        twice = {"files": {"file": WAV}, "data": {"model": "twice"}}
        until(lambda: client.post(URL, **twice).status_code == 200)
        assert len(ask(client, "twice")) == 5


class Broken(Named):
    """Cannot be warmed up, and is elsewhere."""

    running, stale, closed = True, False, False
    error = None

    def start(self, changed: Any) -> None:
        pass

    def run_windows(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    def close(self) -> None:
        Broken.closed = True


def test_whatever_keeps_a_further_model_from_loading_is_its_own_matter() -> None:
    """The service goes on, and no process of it is left."""
    sources = {
        DEFAULT: ModelSource(lambda: Named("single")),
        "bad": ModelSource(lambda: Broken("bad"), preload=False),
    }
    with serving_app(create_app(Settings(), sources)) as client:
        until(lambda: client.get("/health/ready").status_code == 200)
        for _ in range(2):
            refused = client.post(URL, files={"file": WAV}, data={"model": "bad"})
            assert (refused.status_code, error_of(refused)["code"]) == (503, "not_loaded")
        assert Broken.closed
        assert client.get("/health/ready").status_code == 200 and len(ask(client)) == 5


def test_one_that_is_preloaded_is_not_let_go() -> None:
    with pytest.raises(ValueError, match="leave out preload or unload_after_s"):
        Settings(models={"a": {"source": "x", "preload": True, "unload_after_s": 5}})


def test_a_full_queue_is_its_models_own() -> None:
    shelf = Shelf()
    sources = {DEFAULT: ModelSource(lambda: Named("single")), "twice": ModelSource(shelf)}
    with serving_app(create_app(Settings(max_queue_s=1.5), sources)) as client, ThreadPoolExecutor(1) as pool:
        until(lambda: client.get("/health/ready").status_code == 200)
        shelf.made[0].open_gate.clear()
        held = pool.submit(ask, client, "twice")
        until(lambda: "speech_ssl_queued_audio_seconds 1.0" in client.get("/metrics").text)
        full = client.post(URL, files={"file": WAV}, data={"model": "twice"})
        assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
        assert len(ask(client)) == 5
        shelf.made[0].open_gate.set()
        assert len(held.result()) == 5


def test_sighup_loads_anew_and_no_request_is_dropped(start: Any) -> None:
    """A real process, with a model process that is replaced while forty requests are under way."""
    settings = {"SPEECH_SSL_MODELS": json.dumps({"twice": {"source": "x", "preload": True}})}
    process: Process = start("tests.service.fakes", "--slowness", "0.05", **settings)
    client = process.ready()
    right = ask(client)
    stop, answers = threading.Event(), []

    def go_on() -> None:
        while not stop.is_set():
            answers.append(ask(client))

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(go_on) for _ in range(8)]
        try:
            for times in (1, 2):
                process.popen.send_signal(signal.SIGHUP)
                until(lambda n=2 * times: process.log.read_text().count("has been loaded anew") == n, 60)
            after = len(answers)
            until(lambda: len(answers) > after + 16, 60)
        finally:
            stop.set()
            wait(asking)
    assert [each.exception() for each in asking] == [None] * 8
    assert all(answer == right for answer in answers)


def test_a_deadline_of_the_client(fake: FakeRuntime) -> None:
    with serving(fake) as client:
        assert client.post(URL, files={"file": WAV}).status_code == 200  # its decoder has started
        fake.open_gate.clear()
        late = client.post(URL, files={"file": WAV}, headers={"X-Request-Timeout": "1"})
        assert (late.status_code, error_of(late)["code"]) == (504, "deadline_exceeded")
        behind = client.post(URL, files={"file": WAV}, headers={"X-Request-Timeout": "0.1"})
        assert behind.status_code == 504
        fake.open_gate.set()
        until(lambda: "speech_ssl_queued_audio_seconds 0.0" in client.get("/metrics").text)
        assert len(fake.passes) == 3, "the warm-up and the first two: what nobody waits for is not run"
        for nonsense in ("soon", "-1", "0", "nan", "inf"):
            refused = client.post(URL, files={"file": WAV}, headers={"X-Request-Timeout": nonsense})
            assert (refused.status_code, error_of(refused)["param"]) == (400, "X-Request-Timeout")
        assert client.post(URL, files={"file": WAV}, headers={"X-Request-Timeout": "1e9"}).status_code == 200
