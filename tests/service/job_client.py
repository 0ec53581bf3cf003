"""What the tests of jobs share: a client's side of them, and a look into their folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.service.support import encoded, tone, until

URL = "/v1/jobs"


def clip(seconds: float = 1.0, frequency: float = 220.0) -> bytes:
    return encoded(tone(seconds, frequency=frequency), subtype="PCM_16")


def submit(
    client: httpx.Client,
    files: Sequence[bytes],
    task: str = "embedding",
    key: str | None = None,
    **options: Any,
) -> httpx.Response:
    named = [("file", (f"{number}.wav", data)) for number, data in enumerate(files)]
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post(URL, files=named, data={"task": task, **options}, headers=headers)


def accepted(client: httpx.Client, files: Sequence[bytes], **options: Any) -> str:
    """The id of a job that was taken."""
    answer = submit(client, files, **options)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"{URL}/{job['id']}"
    assert (job["object"], job["files"]) == ("job", len(files))
    return str(job["id"])


def asked(client: httpx.Client, job: str) -> dict[str, Any]:
    answer = client.get(f"{URL}/{job}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def finished(client: httpx.Client, job: str) -> dict[str, Any]:
    until(lambda: asked(client, job)["ended"] is not None)
    return asked(client, job)


def results(client: httpx.Client, job: str, **query: Any) -> list[dict[str, Any]]:
    answer = client.get(f"{URL}/{job}/results", params=query)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/x-ndjson"
    assert answer.text == "" or answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text.splitlines()]


def kept(folder: Path) -> list[str]:
    """The files of all jobs."""
    below = folder / "files"
    return sorted(str(path.relative_to(below)) for path in below.rglob("*") if path.is_file())
