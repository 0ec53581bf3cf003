"""One rule for all JSON: every route that takes it refuses the same in the same words, and has one limit."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from service.v1.requests import MAX_FIELDS
from service.v1.schemas_audio import MAX_NAMES
from tests.service.fakes import FakeRuntime
from tests.service.support import encoded, error_of, serving, tone
from tests.service.tensors import INFER, ask, files, samples, tensors
from tests.service.test_json_reader import WRONG

EMBEDDINGS = "/v1/embeddings"
JSON = {"content-type": "application/json"}
LIMIT = 20_000


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving(FakeRuntime(), max_json_bytes=LIMIT) as client:
        yield client


@pytest.fixture(scope="module")
def roomy() -> Iterator[httpx.Client]:
    with serving(FakeRuntime()) as client:
        yield client


def routes(client: httpx.Client) -> list[str]:
    """All that say that they take JSON."""
    paths = client.get("/openapi.json").json()["paths"]
    return [
        path.replace("{model}", "default").replace("{version}", "1")
        for path, operations in paths.items()
        for operation in operations.values()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    ]


def test_which_routes_take_json(client: httpx.Client) -> None:
    """Another one has to go through the same reader, and belongs here then."""
    assert set(routes(client)) == {EMBEDDINGS, INFER, "/v2/models/default/versions/1/infer"}


@pytest.mark.parametrize("name", [name for name, (data, _) in WRONG.items() if 0 < len(data) <= LIMIT])
def test_what_is_wrong_is_refused_in_the_same_words(client: httpx.Client, name: str) -> None:
    data, words = WRONG[name]
    refusals = [client.post(path, content=data, headers=JSON) for path in routes(client)]
    for answer in refusals:
        assert (answer.status_code, error_of(answer)["code"]) == (400, "malformed_json")
        assert words in answer.text and answer.text == refusals[0].text


def test_nothing_is_read_beyond_the_limit(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b"[" * 1_000

    for path in routes(client):
        at_the_limit = client.post(path, content=b'{"x": 1}'.ljust(LIMIT), headers=JSON)
        assert at_the_limit.status_code == 400
        for content in (b" " * (LIMIT + 1), chunks()):
            answer = client.post(path, content=content, headers=JSON)
            assert (answer.status_code, error_of(answer)["code"]) == (413, "body_too_large")
            assert "multipart/form-data" in answer.text
    clip = encoded(tone(1.0))
    assert len(clip) > LIMIT
    assert client.post(EMBEDDINGS, content=clip, headers={"content-type": "audio/wav"}).status_code == 200


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ("", 200),
        (";charset=utf-8", 200),
        ('; Charset="UTF-8"; x=y', 200),
        (";charset=us-ascii", 200),
        (";charset=utf-16", 415),
        (";charset=", 415),
        (";charset=utf-8x", 415),
        (';charset="', 415),
        (";charset=" + "x" * 5_000, 415),
        (";=;;charset", 415),
        (";version=1", 200),
    ],
)
def test_charsets(roomy: httpx.Client, parameters: str, status: int) -> None:
    headers = {"content-type": f"application/json{parameters}"}
    clip = base64.b64encode(encoded(tone(0.5))).decode()
    bodies = {EMBEDDINGS: {"input": clip}, INFER: {"inputs": [files(encoded(tone(0.5)))]}}
    for path, body in bodies.items():
        answer = roomy.post(path, content=json.dumps(body), headers=headers)
        assert answer.status_code == status, (path, answer.text)
        if status == 415:
            assert error_of(answer)["code"] == "unsupported_charset" and len(answer.content) < 1_000


@pytest.mark.parametrize("slashes", ["/", "\\/", "\\u002F"])
def test_megabytes_of_audio_are_read(roomy: httpx.Client, slashes: str) -> None:
    """Also as PHP and .NET write base64, which escape some of its characters."""
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 60 * 16_000).astype(np.float32)
    clip = encoded(wave)
    text = base64.b64encode(clip).decode().replace("/", slashes)
    sent = roomy.post(EMBEDDINGS, content=f'{{"input": ["{text}"]}}', headers=JSON)
    whole = roomy.post(EMBEDDINGS, content=clip, headers={"content-type": "audio/wav"})
    assert sent.status_code == whole.status_code == 200 and len(sent.request.content) > 5_000_000
    assert sent.json()["data"] == whole.json()["data"]
    if slashes == "/":
        vector = tensors(ask(roomy, files(clip), "embedding"))["embedding"][0]
        np.testing.assert_allclose(vector, whole.json()["data"][0]["embedding"], rtol=1e-5)


def test_a_tensor_of_two_megabytes(roomy: httpx.Client) -> None:
    waves = np.stack([tone(4.0), tone(4.0, frequency=500.0)])
    for nested in (True, False):
        answer = ask(roomy, samples(waves, nested=nested), "embedding")
        found = tensors(answer)["embedding"]
        for row, wave in zip(found, waves, strict=True):
            expected = FakeRuntime.frames(wave, 3).mean(axis=0)
            np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)


def test_options_cannot_be_so_many_that_refusing_them_takes_long(roomy: httpx.Client) -> None:
    """pydantic says of each what is wrong with it."""
    clip = {"file": ("a.wav", encoded(tone(0.5)))}
    names = ",".join(["x"] * (MAX_NAMES + 1))
    many: dict[str, Any] = {"tasks[]": [",".join(["x"] * 2_000)] * 200}
    for answer in (
        roomy.post("/v1/audio/analyses", files=clip, data=many),
        roomy.post("/v1/audio/analyses", files=clip, params={"tasks": names}),
        roomy.post("/v1/audio/transcriptions", files=clip, data={"timestamp_granularities[]": names}),
    ):
        assert answer.status_code == 400 and f"at most {MAX_NAMES}" in answer.text
    answer = roomy.post(EMBEDDINGS, files=clip, params={f"x{index}": "" for index in range(MAX_FIELDS + 1)})
    assert answer.status_code == 400 and f"at most {MAX_FIELDS}" in answer.text
    for strategy in ('{"type": ' * 400, '{"type": "server_vad", "type": "server_vad"}'):
        data = {"chunking_strategy": strategy}
        answer = roomy.post("/v1/audio/transcriptions", files=clip, data=data)
        assert (answer.status_code, error_of(answer)["param"]) == (400, "chunking_strategy")


def test_reading_and_answering_have_one_deadline() -> None:
    """And a request has its own, not what was left of the one before on its connection."""
    runtime = FakeRuntime()
    body = {"input": base64.b64encode(encoded(tone(0.5))).decode()}
    with serving(runtime) as client:
        runtime.open_gate.clear()
        late = client.post(EMBEDDINGS, json=body, headers={"X-Request-Timeout": "0.2"})
        runtime.open_gate.set()
        assert (late.status_code, error_of(late)["code"]) == (504, "deadline_exceeded")
        assert client.post(EMBEDDINGS, json=body).status_code == 200
