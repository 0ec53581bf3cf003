"""Jobs over a real socket: their lives, their results beside those of the routes, and what is refused."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.app import create_app
from service.jobs.store import NewJob, Store, new_id
from service.settings import Settings
from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.inference import Runtime
from tests.service.fakes import FakeRuntime
from tests.service.job_client import URL, accepted, asked, clip, finished, kept, results, submit
from tests.service.support import encoded, error_of, serving, serving_app, tone, until

ROUTES = {
    "embedding": "/v1/embeddings",
    "transcription": "/v1/audio/transcriptions",
    "classification": "/v1/audio/classifications",
    "analysis": "/v1/audio/analyses",
}
RAW = {"content-type": "audio/wav"}


@pytest.fixture(scope="module")
def answering(answering_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A model with heads."""
    runtime = Runtime(load_artifact(answering_artifact))
    with serving(runtime, jobs_dir=tmp_path_factory.mktemp("jobs")) as client:
        yield client


def gauge(client: httpx.Client, name: str) -> float:
    found = re.search(rf"^speech_ssl_{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found, name
    return float(found[1])


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("embedding", {"layer": "1", "pooling": "max"}),
        ("embedding", {"pooling": "none", "encoding_format": "base64", "model": "default"}),
        ("transcription", {}),
        ("transcription", {"response_format": "srt"}),
        (
            "transcription",
            {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]},
        ),
        ("transcription", {"include[]": "logprobs", "model": "whisper-1", "prompt": "word " * 2000}),
        ("classification", {"head": "moods", "top_k": "2"}),
        ("analysis", {"tasks": "embedding,classification"}),
        ("analysis", {}),
    ],
)
def test_a_result_is_what_the_route_answers(
    answering: httpx.Client, prompts: Path, task: str, options: dict[str, Any]
) -> None:
    clips = [path.read_bytes() for path in sorted((prompts / "audio").glob("*.flac"))[:2]]
    job = accepted(answering, clips, task=task, **options)
    assert finished(answering, job)["status"] == "done"
    found = results(answering, job)
    assert [(entry["index"], entry["name"]) for entry in found] == [(0, "0.wav"), (1, "1.wav")]
    for entry, data in zip(found, clips, strict=True):
        said = answering.post(ROUTES[task], files={"file": ("a", data)}, data=options)
        is_json = said.headers["content-type"] == "application/json"
        assert entry["result"] == (said.json() if is_json else said.text)


def test_a_bad_file_has_its_own_error(fake: FakeRuntime, tmp_path: Path) -> None:
    with serving(fake, jobs_dir=tmp_path, max_clip_s=5.0) as client:
        files = [b"junk", clip(), b"", clip(6.0), clip()[:40], clip(frequency=300)]
        job = accepted(client, files)
        ended = finished(client, job)
        assert ended["status"] == "done"
        assert ended["progress"] == {"files": 6, "files_done": 6, "files_failed": 4, "file": None}
        for index, (entry, data) in enumerate(zip(results(client, job), files, strict=True)):
            said = client.post("/v1/embeddings", files={"file": ("a", data)})
            if said.status_code == 200:
                assert entry["result"] == said.json()
            else:
                assert entry["error"] == error_of(said) | {"param": f"file[{index}]"}
        assert kept(tmp_path) == [f"{job}/1.json", f"{job}/5.json"]
        hopeless = accepted(client, [b"junk", b"more of it"])
        assert finished(client, hopeless)["status"] == "failed"
        fake.poison = RuntimeError  # nobody's input
        unlucky = accepted(client, [encoded(tone(1.0) * 0 + 1.0), clip()])
        assert finished(client, unlucky)["status"] == "done"
        assert results(client, unlucky)[0]["error"]["code"] == "internal_error"


def test_its_life(fake: FakeRuntime, tmp_path: Path) -> None:
    with serving(fake, jobs_dir=tmp_path) as client:
        assert client.get(URL).json() == {"object": "list", "data": [], "has_more": False}
        fake.open_gate.clear()
        assert fake.entered.acquire(timeout=60)  # the warm-up
        first, second, third = (accepted(client, [clip(), clip()]) for _ in range(3))
        assert fake.entered.acquire(timeout=60)
        assert [asked(client, job)["status"] for job in (first, second)] == ["running", "queued"]
        assert (gauge(client, 'jobs{status="running"}'), gauge(client, 'jobs{status="queued"}')) == (1, 2)
        assert results(client, first) == []
        fake.open_gate.set()
        for job in (first, second, third):
            ended = finished(client, job)
            assert ended["status"] == "done" and len(results(client, job)) == 2
            assert ended["created"] <= ended["started"] <= ended["ended"] < ended["expires"]
        assert gauge(client, 'jobs{status="done"}') == 3
        assert [entry["index"] for entry in results(client, first, after=0)] == [1]
        page = client.get(URL, params={"limit": 2}).json()
        assert [job["id"] for job in page["data"]] == [third, second] and page["has_more"]
        page = client.get(URL, params={"limit": 2, "after": second}).json()
        assert [job["id"] for job in page["data"]] == [first] and not page["has_more"]
        for query in ({"limit": 0}, {"after": "nothing"}, {"order": "asc"}):
            assert client.get(URL, params=query).status_code == 400
        assert client.delete(f"{URL}/{second}").status_code == 204
        for method, path in (("GET", second), ("GET", f"{second}/results"), ("DELETE", second)):
            answer = client.request(method, f"{URL}/{path}")
            assert (answer.status_code, error_of(answer)["code"]) == (404, "job_not_found")
        assert not any(second in name for name in kept(tmp_path))


def test_partial_results_of_a_job_that_runs(fake: FakeRuntime, tmp_path: Path) -> None:
    with serving(fake, jobs_dir=tmp_path) as client:
        assert fake.entered.acquire(timeout=60)
        fake.open_gate.clear()
        job = accepted(client, [b"junk", clip(), clip()])
        assert fake.entered.acquire(timeout=60)
        (entry,) = results(client, job)
        assert entry["index"] == 0 and entry["error"]["code"] == "unsupported_format"
        assert asked(client, job)["progress"]["files_done"] == 1
        fake.open_gate.set()
        finished(client, job)
        assert [entry["index"] for entry in results(client, job)] == [0, 1, 2]


def test_progress_within_a_long_file(fake: FakeRuntime, tmp_path: Path) -> None:
    fake.slowness = 0.02
    with serving(fake, jobs_dir=tmp_path) as client:
        job = accepted(client, [clip(400.0)])
        until(lambda: len(fake.passes) > 4)
        fake.open_gate.clear()
        until(lambda: 0 < (asked(client, job)["progress"]["file"] or 0) < 1)
        assert client.delete(f"{URL}/{job}").json()["progress"]["file"] is None
        fake.open_gate.set()


class NamedByHeader:
    """What checks keys, in short."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope.setdefault("state", {})["key"] = Headers(scope=scope).get("x-name")
        await self.app(scope, receive, send)


def test_a_job_is_its_owners(fake: FakeRuntime, tmp_path: Path) -> None:
    app = create_app(Settings(jobs_dir=tmp_path), fake)
    app.add_middleware(NamedByHeader)
    with serving_app(app) as client:
        client.headers["x-name"] = "anna"
        job = accepted(client, [clip()], key="a")
        finished(client, job)
        client.headers["x-name"] = "ben"
        for method, path in (("GET", job), ("GET", f"{job}/results"), ("DELETE", job)):
            answer = client.request(method, f"{URL}/{path}")
            assert (answer.status_code, error_of(answer)["code"]) == (404, "job_not_found")
        assert client.get(URL).json()["data"] == []
        assert client.get(URL, params={"after": job}).status_code == 400
        assert accepted(client, [clip()], key="a") != job  # keys are each owner's own
        client.headers["x-name"] = "anna"
        assert [each["id"] for each in client.get(URL).json()["data"]] == [job]
        assert len(results(client, job)) == 1


def test_cancelling_stops_the_work_and_frees_the_queue(fake: FakeRuntime, tmp_path: Path) -> None:
    with serving(fake, jobs_dir=tmp_path) as client:
        assert fake.entered.acquire(timeout=60)
        fake.open_gate.clear()
        long = accepted(client, [clip(100.0), clip()])
        waiting = accepted(client, [clip()])
        assert fake.entered.acquire(timeout=60)
        queued = gauge(client, "queued_audio_seconds")
        assert queued > 100
        answer = client.delete(f"{URL}/{long}")
        assert answer.status_code == 200 and answer.json()["status"] == "cancelled"
        assert gauge(client, "queued_audio_seconds") <= 4 * 5  # the batch under way, and the next job
        assert kept(tmp_path) == [f"{waiting}/0"]
        assert client.delete(f"{URL}/{waiting}").json()["status"] == "cancelled"
        assert kept(tmp_path) == []
        fake.open_gate.set()
        assert results(client, long) == []
        assert client.delete(f"{URL}/{long}").status_code == 204
        next = accepted(client, [clip()])
        assert finished(client, next)["status"] == "done"
        assert sum(map(sum, fake.passes)) < 30  # the rest of the long one was never run
        assert gauge(client, "queued_audio_seconds") == 0


def test_a_job_expires(fake: FakeRuntime, tmp_path: Path) -> None:
    with serving(fake, jobs_dir=tmp_path, job_keep_s=0.2) as client:
        job = accepted(client, [clip()], key="a")
        until(lambda: client.get(f"{URL}/{job}").status_code == 404)
        until(lambda: not list((tmp_path / "files").iterdir()))
        assert accepted(client, [clip()], key="a") != job  # its key went with it


def test_a_full_queue_is_waited_out(fake: FakeRuntime, tmp_path: Path) -> None:
    with serving(fake, jobs_dir=tmp_path, max_queue_s=6.0) as client, ThreadPoolExecutor(1) as pool:
        fake.open_gate.clear()
        blocking = pool.submit(client.post, "/v1/embeddings", content=clip(4.0), headers=RAW)
        until(lambda: gauge(client, "queued_audio_seconds") == 4.0)
        job = accepted(client, [clip(3.0)])
        until(lambda: asked(client, job)["status"] == "running")
        assert submit(client, [clip()]).status_code == 202  # a full queue is no reason to refuse a job
        fake.open_gate.set()
        assert blocking.result().status_code == 200
        assert finished(client, job)["status"] == "done"
        assert "result" in results(client, job)[0]


def test_a_short_request_does_not_wait_for_a_job(fake: FakeRuntime, tmp_path: Path) -> None:
    fake.slowness = 0.01
    with serving(fake, jobs_dir=tmp_path) as client:
        job = accepted(client, [clip(600.0)])
        until(lambda: len(fake.passes) > 3)
        assert client.post("/v1/embeddings", content=clip(), headers=RAW).status_code == 200
        assert asked(client, job)["ended"] is None
        assert client.delete(f"{URL}/{job}").status_code == 200


def test_the_same_key_is_the_same_job(fake: FakeRuntime, tmp_path: Path) -> None:
    with serving(fake, jobs_dir=tmp_path, max_jobs=8) as client, ThreadPoolExecutor(8) as pool:
        fake.open_gate.clear()
        sent = [pool.submit(submit, client, [clip(), clip(2.0)], key="mine") for _ in range(8)]
        ids = {each.result().json()["id"] for each in sent}
        assert len(ids) == 1
        assert len(client.get(URL).json()["data"]) == 1
        assert {name.split("/")[0] for name in kept(tmp_path)} == ids
        others = [
            submit(client, [clip()], key="mine"),
            submit(client, [clip(), clip(2.0)], key="mine", layer=1),
        ]
        for answer in others:
            assert (answer.status_code, error_of(answer)["code"]) == (409, "idempotency_key_reused")
        assert submit(client, [clip()], key="a b").status_code == 400
        for _ in range(7):
            accepted(client, [clip()])
        full = submit(client, [clip()], key="new")
        assert (full.status_code, error_of(full)["code"]) == (429, "too_many_jobs")
        assert int(full.headers["retry-after"]) > 0
        assert (
            submit(client, [clip(), clip(2.0)], key="mine").json()["id"] in ids
        )  # also when there is no room
        fake.open_gate.set()


def test_a_file_that_the_service_dies_of_is_given_up(fake: FakeRuntime, tmp_path: Path) -> None:
    id = left_by_another(tmp_path)
    for _ in range(3):
        with closing(Store(tmp_path)) as store:  # which does not leave the file, as if it had died
            assert store.claim(id) and store.begin_file(id)
    with serving(fake, jobs_dir=tmp_path) as client:
        assert finished(client, id)["status"] == "done"
        first, second = results(client, id)
        assert first["error"]["code"] == "given_up" and "result" in second


def left_by_another(folder: Path) -> str:
    """A job of two files that an earlier process took."""
    with closing(Store(folder)) as store:
        store.opened(id := new_id())
        for position in range(2):
            (store.folder(id) / str(position)).write_bytes(clip())
        store.add(NewJob(id, "", None, "", "embedding", "fake", "{}", ["a", "b"]))
    return id


def test_waiting_for_the_model_is_no_attempt(fake: FakeRuntime, tmp_path: Path) -> None:
    id = left_by_another(tmp_path)
    let_load = threading.Event()

    def load() -> FakeRuntime:
        assert let_load.wait(60)
        return fake

    with serving(load, jobs_dir=tmp_path) as client:
        until(lambda: asked(client, id)["status"] == "running")
        refused = submit(client, [clip()])
        assert (refused.status_code, error_of(refused)["code"]) == (503, "loading")
        with closing(sqlite3.connect(tmp_path / "jobs.sqlite3")) as connection:
            until(lambda: connection.execute("SELECT sum(attempts) FROM files").fetchone() == (0,))
        let_load.set()
        assert finished(client, id)["progress"]["files_failed"] == 0


def test_audio_that_is_gone_is_told(fake: FakeRuntime, tmp_path: Path) -> None:
    with serving(fake, jobs_dir=tmp_path) as client:
        fake.open_gate.clear()
        job = accepted(client, [clip(), clip()])
        (tmp_path / "files" / job / "1").unlink()
        fake.open_gate.set()
        finished(client, job)
        assert results(client, job)[1]["error"]["code"] == "file_lost"
