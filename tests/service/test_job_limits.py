"""What is refused of jobs, and what happens when clients die and disks are full."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service.fakes import FakeRuntime
from tests.service.job_client import URL, accepted, clip, finished, kept, results, submit
from tests.service.support import error_of, serving, until

RAW = {"content-type": "audio/wav"}
REFUSALS: list[tuple[dict[str, str], int, str | None]] = [
    ({"task": "singing"}, 400, "task"),
    ({"layer": "99"}, 400, "layer"),
    ({"pooling": "median"}, 400, "pooling"),
    ({"colour": "red"}, 400, "colour"),
    ({"model": "another"}, 404, "model"),
    ({"task": "transcription"}, 400, "model"),
    ({"task": "transcription", "stream": "true"}, 400, "stream"),
]


@pytest.mark.parametrize(("fields", "status", "param"), REFUSALS)
def test_a_wrong_option_is_refused_at_once(
    fake: FakeRuntime, tmp_path: Path, fields: dict[str, str], status: int, param: str
) -> None:
    with serving(fake, jobs_dir=tmp_path) as client:
        answer = client.post(URL, files={"file": clip()}, data={"task": "embedding"} | fields)
        assert (answer.status_code, error_of(answer)["param"]) == (status, param)
        assert client.get(URL).json()["data"] == [] and not list((tmp_path / "files").iterdir())


def test_a_form_that_is_none(fake: FakeRuntime, tmp_path: Path) -> None:
    form = {"content-type": "multipart/form-data; boundary=x"}
    long = {"content-type": f"multipart/form-data; boundary={'x' * 5000}"}
    part = b"--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n"
    with serving(fake, jobs_dir=tmp_path, max_job_files=3) as client:
        cases = [
            (client.post(URL, content=clip(), headers=RAW), 415, "unsupported_content_type"),
            (client.post(URL, content=part + clip(), headers=form), 400, "malformed_form"),
            (client.post(URL, content=b"--y\r\n", headers=form), 400, "malformed_form"),
            (client.post(URL, content=b"--x--", headers=long), 400, "malformed_form"),
            (client.post(URL, content=b"--x\r\nA: b\r\n\r\n\r\n--x--", headers=form), 400, "malformed_form"),
            (client.post(URL, data={"task": "embedding"}, files={"clip": clip()}), 400, "invalid_value"),
            (client.post(URL, data={"file": "text"}, files={"file": clip()}), 400, "invalid_value"),
            (client.post(URL, data={"task": "x" * 5000}, files={"file": clip()}), 400, "invalid_value"),
            (client.post(URL, content=b"--x--\r\n", headers=form), 400, "empty"),
            (submit(client, [clip()] * 4), 400, "invalid_value"),
        ]
        for answer, status, code in cases:
            assert (answer.status_code, error_of(answer)["code"]) == (status, code)
        assert not list((tmp_path / "files").iterdir())
        named = client.post(
            URL, params={"task": "embedding"}, files={"file": ("naïve „Ton“.wav", clip(), "text/plain")}
        )
        job = named.json()["id"]
        finished(client, job)
        assert results(client, job)[0]["name"] == "naïve „Ton“.wav"


def test_a_job_may_be_larger_than_a_request(fake: FakeRuntime, tmp_path: Path) -> None:
    limits = {"max_body_bytes": 50_000, "max_pending_bytes": 50_000, "max_job_bytes": 200_000}
    with serving(fake, jobs_dir=tmp_path, **limits) as client:
        job = accepted(client, [clip(), clip(), clip(2.0)])
        assert finished(client, job)["status"] == "done"
        for data in (clip(7.0), clip(7.0)[:199_999]):  # declared, and counted with what is around it

            def chunks(data: bytes = data) -> Iterator[bytes]:
                yield b"--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n"
                yield data

            answer = client.post(
                URL, content=chunks(), headers={"content-type": "multipart/form-data; boundary=x"}
            )
            assert (answer.status_code, error_of(answer)["code"]) == (413, "body_too_large")
        assert submit(client, [clip(7.0)]).status_code == 413
        assert client.post("/v1/embeddings", content=clip(2.0), headers=RAW).status_code == 413
        assert [path.name for path in (tmp_path / "files").iterdir()] == [job]
    with serving(fake, **limits) as client:
        answer = submit(client, [clip()])
        assert (answer.status_code, error_of(answer)["code"]) == (501, "jobs_off")
        assert "SPEECH_SSL_JOBS_DIR" in str(error_of(answer)["message"])
        assert submit(client, [clip(2.0)]).status_code == 413
        assert error_of(client.get(URL))["code"] == "jobs_off"


def test_a_client_that_dies_while_sending_leaves_nothing(fake: FakeRuntime, tmp_path: Path) -> None:
    with serving(fake, jobs_dir=tmp_path, max_jobs=1, max_pending_bytes=20_000) as client:
        head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
        head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        head += "--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n"
        with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as connection:
            connection.sendall(head.encode() + b"R" * 50_000)
            until(lambda: len(kept(tmp_path)) == 1)
            assert submit(client, [clip()]).status_code == 429  # what is being sent counts
            short = client.post("/v1/embeddings", content=clip(0.2), headers=RAW)
            assert short.status_code == 200  # what is on the disk is not pending
        until(lambda: not list((tmp_path / "files").iterdir()))
        until(lambda: submit(client, [clip()]).status_code == 202)


def test_a_full_disk_is_told(fake: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def full(path: Path, mode: str = "r", **options: Any) -> Any:
        below = path.is_relative_to(tmp_path / "files") and mode in ("w", "wb")
        return real(Path("/dev/full") if below else path, mode, **options)

    with serving(fake, jobs_dir=tmp_path) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", full)
            answer = submit(client, [clip()])
            assert (answer.status_code, error_of(answer)["code"]) == (507, "storage_full")
            assert not list((tmp_path / "files").iterdir())
        monkeypatch.setattr("service.jobs.runner.LONGEST_WAIT_S", 0.1)
        waiting = threading.Event()

        def once_full(path: Path, mode: str = "r", **options: Any) -> Any:
            if path.suffix == ".part" and not waiting.is_set():
                waiting.set()
                return real(Path("/dev/full"), mode, **options)
            return real(path, mode, **options)

        monkeypatch.setattr(Path, "open", once_full)
        job = accepted(client, [clip()])  # an answer that cannot be kept is not lost: it is made again
        assert finished(client, job)["status"] == "done" and waiting.is_set()
        assert kept(tmp_path) == [f"{job}/0.json"]
