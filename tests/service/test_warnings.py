"""What is wrong with a file that is used all the same is told, in every form that an answer has."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.inference import Runtime
from tests.service.job_client import accepted, finished, results
from tests.service.support import encoded, serving, tone

TRANSCRIPTIONS = "/v1/audio/transcriptions"
HEADER = "x-audio-warnings"
GOOD = encoded(tone(1.0))


def opposite() -> bytes:
    """Channels that cancel each other out but for a twentieth."""
    left = np.random.default_rng(0).uniform(-0.3, 0.3, 32_000).astype(np.float32)
    return encoded(np.stack([left, -0.95 * left], axis=1))


BAD = opposite()


@pytest.fixture(scope="module")
def client(answering_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    runtime = Runtime(load_artifact(answering_artifact))
    with serving(runtime, jobs_dir=tmp_path_factory.mktemp("jobs")) as client:
        yield client


def ask(client: httpx.Client, route: str, data: bytes = BAD, **fields: Any) -> httpx.Response:
    answer = client.post(route, files={"file": data}, data=fields)
    assert answer.status_code == 200, answer.text
    return answer


def check(warnings: list[dict[str, str]]) -> None:
    (warning,) = warnings
    assert warning.keys() == {"code", "message"} and warning["code"] == "opposite_phase"
    assert "opposite phase" in warning["message"]


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        (TRANSCRIPTIONS, {}),
        (TRANSCRIPTIONS, {"response_format": "verbose_json"}),
        ("/v1/audio/classifications", {}),
        ("/v1/audio/analyses", {}),
    ],
)
def test_json_has_them_and_nothing_of_the_kind_without(
    client: httpx.Client, route: str, fields: dict[str, str]
) -> None:
    told = ask(client, route, **fields)
    check(told.json()["warnings"])
    assert told.headers[HEADER] == "opposite_phase"
    silent = ask(client, route, GOOD, **fields)
    assert "warnings" not in silent.json() and HEADER not in silent.headers


@pytest.mark.parametrize("format", ["text", "srt", "vtt"])
def test_text_has_a_header(client: httpx.Client, format: str) -> None:
    assert ask(client, TRANSCRIPTIONS, response_format=format).headers[HEADER] == "opposite_phase"


@pytest.mark.parametrize("fields", [{}, {"pooling": "none"}, {"encoding_format": "base64"}])
def test_each_vector_has_its_own(client: httpx.Client, fields: dict[str, str]) -> None:
    files = [("file", ("a", GOOD)), ("file", ("b", BAD))]
    answer = client.post("/v1/embeddings", files=files, data=fields)
    good, bad = answer.json()["data"]
    assert "warnings" not in good and answer.headers[HEADER] == "opposite_phase"
    check(bad["warnings"])


def test_the_end_of_a_stream_has_them(client: httpx.Client) -> None:
    answer = ask(client, TRANSCRIPTIONS, stream="true")
    *_, done, end = [line for line in answer.text.split("\n\n") if line]
    assert end == "data: [DONE]" and answer.headers[HEADER] == "opposite_phase"
    check(json.loads(done.removeprefix("data: "))["warnings"])


def test_results_of_jobs_have_them(client: httpx.Client) -> None:
    for options in ({}, {"response_format": "verbose_json"}, {"response_format": "srt"}):
        job = accepted(client, [GOOD, BAD], task="transcription", **options)
        assert finished(client, job)["status"] == "done"
        good, bad = results(client, job)
        assert "warnings" not in good
        check(bad["warnings"] if isinstance(bad["result"], str) else bad["result"]["warnings"])


def test_tensors_have_them_as_a_parameter(client: httpx.Client) -> None:
    data = [base64.b64encode(file).decode() for file in (GOOD, BAD)]
    tensor = {"name": "audio", "shape": [2], "datatype": "BYTES", "data": data}
    asked = {"inputs": [tensor], "outputs": [{"name": "embedding"}]}
    answer = client.post("/v2/models/default/infer", json=asked)
    assert answer.json()["parameters"]["warnings"].startswith("audio[1]: opposite_phase: ")
    silent = client.post(
        "/v2/models/default/infer", json=asked | {"inputs": [{**tensor, "shape": [1], "data": data[:1]}]}
    )
    assert silent.status_code == 200 and "parameters" not in silent.json()


def test_they_are_counted(client: httpx.Client) -> None:
    ask(client, "/v1/audio/classifications")
    assert 'speech_ssl_decode_warnings_total{code="opposite_phase"}' in client.get("/metrics").text
