"""Jobs through the client, against the real application."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from speech_ssl.client import (
    Analysis,
    AsyncClient,
    Audio,
    BadAudio,
    Classification,
    Client,
    Counts,
    Embedding,
    Job,
    Refused,
    ServiceError,
    TimedOut,
    Transcript,
    Unavailable,
)
from speech_ssl.inference import Runtime
from tests.client.scripted import ONCE, Clock, answer, asking, hang_up, refusal
from tests.service.fakes import FakeRuntime
from tests.service.support import encoded, serving, tone

WAVE = tone(1.5)


@pytest.fixture
def client(fake: FakeRuntime, tmp_path: Path) -> Iterator[Client]:
    with (
        serving(fake, jobs_dir=tmp_path / "jobs") as http,
        Client(str(http.base_url), retrying=ONCE) as client,
    ):
        yield client


def test_a_job_from_its_files_to_its_results(client: Client, tmp_path: Path) -> None:
    (tmp_path / "good.wav").write_bytes(encoded(WAVE))
    (tmp_path / "bad.wav").write_text("nothing")
    counted: list[Counts] = []
    job = client.submit("embedding", tmp_path / "good.wav", WAVE, tmp_path / "bad.wav", layer=2)
    assert (job.task, job.model, job.progress.files, job.over) == ("embedding", "fake", 3, False)
    over = client.wait(job.id, timeout=120, progress=counted.append)
    assert (over.id, over.status, over.over) == (job.id, "done", True)
    assert counted[-1] == Counts(3, 1, 3) and over == client.job(job.id)
    good, samples, bad = client.results(job.id, Embedding)
    assert [each.audio for each in (good, samples, bad)] == ["good.wav", "audio", "bad.wav"]
    for each in (good, samples):
        expected = FakeRuntime.frames(WAVE, 2).mean(axis=0)
        np.testing.assert_allclose(each.answer.vector, expected, rtol=1e-5, atol=1e-6)
    assert isinstance(bad.error, BadAudio) and bad.error.param == "file[2]"
    assert [each.index for each in client.results(job.id, Embedding, after=1)] == [2]
    assert client.cancel(job.id) == over, "its results are not deleted"
    assert len(list(client.results(job.id, Embedding))) == 3


def test_every_task_has_its_answers(runtime: Runtime, clip: Path, tmp_path: Path) -> None:
    with serving(runtime, jobs_dir=tmp_path) as http, Client(str(http.base_url)) as client:
        jobs = [
            client.submit("embedding", clip, pooling="none"),
            client.submit("transcription", clip),
            client.submit("classification", clip, head="moods", top_k=1),
            client.submit("analysis", clip, tasks=["embedding", "transcription"]),
        ]
        for job in jobs:
            assert client.wait(job.id, timeout=120).status == "done"
        (vectors,), (said,) = client.results(jobs[0].id, Embedding), client.results(jobs[1].id, Transcript)
        (heard,) = client.results(jobs[2].id, Classification)
        (both,) = client.results(jobs[3].id, Analysis)
        assert vectors.answer.frames.shape[1] == runtime.width and len(heard.answer.labels) == 1
        assert said.answer.text == client.transcribe(clip).text and said.answer.segments
        assert both.answer.transcription is not None and both.answer.embedding is not None
        with pytest.raises(ServiceError, match="cannot be read"):
            list(client.results(jobs[1].id, Embedding))
        http.post("/v1/jobs", files={"file": clip.read_bytes()}, data={"task": "embedding"})
        newest = http.get("/v1/jobs").json()["data"][0]["id"]
        assert client.wait(newest, timeout=120).over
        (numbers,) = client.results(newest, Embedding)  # which somebody else wanted as decimals
        np.testing.assert_allclose(numbers.answer.vector, client.embed(clip).vector, rtol=1e-5, atol=1e-5)


def test_cancelling(client: Client, fake: FakeRuntime) -> None:
    fake.open_gate.clear()
    job = client.submit("embedding", WAVE)
    with pytest.raises(TimedOut):
        client.wait(job.id, timeout=1)
    assert client.cancel(job.id).status == "cancelled"
    fake.open_gate.set()
    assert client.wait(job.id).status == "cancelled" and list(client.results(job.id, Embedding)) == []


def test_refusals(client: Client, fake: FakeRuntime) -> None:
    for id in ("unknown", "../models", "a/b?c"):
        with pytest.raises(Refused) as caught:
            client.job(id)
        assert caught.value.status == 404
    with pytest.raises(Refused) as caught:
        client.submit("embedding", WAVE, top_k=3)
    assert caught.value.param == "top_k"
    with pytest.raises(ValueError, match="Transcript"):
        list(client.results("unknown", str))
    with (
        serving(fake) as http,
        Client(str(http.base_url), retrying=ONCE) as other,
        pytest.raises(ServiceError) as off,
    ):
        other.submit("embedding", WAVE)
    assert (off.value.status, off.value.code) == (501, "jobs_off")


def test_more_files_than_a_process_may_hold(client: Client, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    paths = [tmp_path / f"{number}.wav" for number in range(300)]
    for path in paths:
        path.write_bytes(b"x")
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        job = client.submit("embedding", *cast(list[Audio], paths))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert job.progress.files == 300
    client.cancel(job.id)


JOB = {
    "id": "j",
    "status": "running",
    "task": "embedding",
    "model": "m",
    "created": 1,
    "ended": None,
    "progress": {"files": 2, "files_done": 1, "files_failed": 0},
}


def described(**fields: object) -> bytes:
    return answer("200 OK", json.dumps(JOB | fields).encode())


def test_a_job_is_not_made_twice() -> None:
    made = answer("202 Accepted", json.dumps(JOB).encode())
    with asking(Clock(), hang_up, made) as (client, server):
        client.submit("embedding", b"wave")
        client.submit("embedding", b"wave")
    first, second, other = (request.headers["idempotency-key"] for request in server.requests)
    assert first == second != other


def test_what_a_lost_answer_may_have_done_is_not_done_again() -> None:
    """The first asking cancels, a second one would delete."""
    with asking(Clock(), described(), hang_up) as (client, server), pytest.raises(Unavailable):
        client.cancel("j")
    assert [request.line.split()[0] for request in server.requests] == ["GET", "DELETE"]
    for late in (refusal("503 Service Unavailable", "storage_failed"), answer("502 Bad Gateway")):
        with asking(Clock(), described(), late) as (client, server), pytest.raises(Unavailable):
            client.cancel("j")
        assert len(server.requests) == 2, "somebody gave up waiting, and it is cancelled perhaps"
    busy = refusal("429 Too Many Requests", "overloaded", "Retry-After: 1")
    with asking(Clock(), described(), busy, answer("204 No Content")) as (client, _):
        assert client.cancel("j").status == "running", "it ended meanwhile, and is gone"


def test_a_job_that_ends_while_it_is_being_cancelled_keeps_its_results(
    client: Client, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.open_gate.clear()
    job = client.submit("embedding", WAVE)
    asked = AsyncClient.job

    async def and_it_ends(self: AsyncClient, id: str, **options: Any) -> Job:
        before = await asked(self, id, **options)
        fake.open_gate.set()
        while not (await asked(self, id)).over:
            await asyncio.sleep(0.01)
        return before

    monkeypatch.setattr(AsyncClient, "job", and_it_ends)
    assert client.cancel(job.id).status == "done"
    assert len(list(client.results(job.id, Embedding))) == 1


def test_waiting_asks_ever_more_seldom() -> None:
    clock = Clock()
    over = described(status="done", ended=9)
    with asking(clock, *[described()] * 9, over) as (client, server):
        assert client.wait("j").ended == 9
    assert len(server.requests) == 10
    assert clock.slept == sorted(clock.slept) and (clock.slept[0], clock.slept[-1]) == (0.5, 5.0)


def test_results_that_break_off_tell_what_came() -> None:
    error = {"code": "too_short", "type": "invalid_request_error", "message": "a\u2028b\x85c"}
    line = json.dumps({"index": 0, "name": "a", "error": error}, ensure_ascii=False)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    with asking(Clock(), head + line.encode() + b"\n") as (client, _):
        results = client.results("j", Embedding)
        failed = next(results).error
        assert isinstance(failed, BadAudio) and failed.message == error["message"]
        with pytest.raises(Unavailable):
            next(results)
