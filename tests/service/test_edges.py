"""HTTP at its edges: what other programs, proxies and probes send that no client of ours would."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.auth import made
from tests.service.fakes import FakeRuntime
from tests.service.support import encoded, error_of, serving, tone
from tests.service.tensors import INFER

URL = "/v1/embeddings"
WAV = encoded(tone(1.0))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving(FakeRuntime(), jobs_dir=tmp_path_factory.mktemp("jobs")) as client:
        yield client


def filled(path: str) -> str:
    return path.format(model="default", version="1", id="none", file="main.js")


def reading(client: httpx.Client) -> list[str]:
    described = client.get("/openapi.json").json()["paths"]
    paths = [path for path, operations in described.items() if "get" in operations]
    return [*paths, "/", "/docs", "/openapi.json", "/playground/{file}", "/nothing"]


def raw(client: httpx.Client, data: bytes) -> bytes:
    """All that is answered until the service hangs up."""
    address = (client.base_url.host, client.base_url.port or 80)
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_head_is_get_without_its_body(client: httpx.Client) -> None:
    for path in map(filled, reading(client)):
        whole, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (whole.status_code, b""), path
        assert head.headers["content-type"] == whole.headers["content-type"]
        if path != "/metrics":  # which changes
            assert head.headers.get("content-length") == whole.headers.get("content-length")
    assert client.head(URL).status_code == 405
    for path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"):
        assert client.head(path).status_code == 200


BOTH = b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"


@pytest.mark.parametrize(
    ("line", "headers"),
    [
        ("POST /v1/embeddings HTTP/1.1", BOTH),
        ("POST /health/live HTTP/1.1", BOTH),
        ("GET /v1/models HTTP/1.1", b"content-length: 4\r\ntransfer-encoding: chunked\r\n"),
        ("POST /v1/embeddings HTTP/1.0", b"Transfer-Encoding: chunked\r\n"),
    ],
)
def test_a_body_with_two_ends_is_refused_and_nothing_after_it_answered(
    client: httpx.Client, line: str, headers: bytes
) -> None:
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = b"4\r\nRIFF\r\n0\r\n\r\n" + hidden
    answer = raw(client, line.encode() + b"\r\nHost: localhost\r\n" + headers + b"\r\n" + body)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"400"], answer
    assert b'"code": "malformed_http"' in answer and b"connection: close" in answer.lower()


def test_it_is_refused_to_those_without_a_key_too(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(made("anna")[1])
    with serving(FakeRuntime(), api_keys=tmp_path / "keys") as client:
        answer = raw(client, b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\n" + BOTH + b"\r\n0\r\n\r\n")
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"400"]


def test_pieces_alone_and_a_length_alone_are_taken(client: httpx.Client) -> None:
    kind = {"content-type": "audio/wav"}
    assert client.post(URL, content=iter([WAV[:100], WAV[100:]]), headers=kind).status_code == 200
    assert client.post(URL, content=WAV, headers=kind).status_code == 200


def test_nobody_is_led_elsewhere(client: httpx.Client) -> None:
    elsewhere = {"host": "evil.localhost"}
    for path in map(filled, [*reading(client), URL, "/v1/jobs/none/results", INFER]):
        for method in ("GET", "POST"):
            answer = client.request(method, f"{path}/", headers=elsewhere, follow_redirects=False)
            assert "location" not in answer.headers and not answer.is_redirect, path


@pytest.mark.parametrize(
    "charset", ["undefined", "idna", "punycode", "utf-16", "hex", "unicode_escape", "nothing", '"', "utf-8"]
)
def test_a_charset_changes_nothing(client: httpx.Client, charset: str) -> None:
    form = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="\xff\xc3\xbc.wav"\r\n\r\n%s\r\n' % WAV
    )
    form += b'--x\r\nContent-Disposition: form-data; name="user"\r\n\r\n\xff\xfe\r\n--x--\r\n'
    kinds = {
        f"multipart/form-data; boundary=x; charset={charset}": form,
        f"audio/wav; charset={charset}": WAV,
    }
    for kind, body in kinds.items():
        answer = client.post(URL, content=body, headers={"content-type": kind})
        assert answer.status_code == 200, (kind, answer.text)
    for kind in (f"application/json; charset={charset}", f"text/plain; charset={charset}"):
        answer = client.post(URL, content=WAV, headers={"content-type": kind})
        assert answer.status_code in (400, 415) and error_of(answer)
    job = client.post("/v1/jobs", content=form, headers={"content-type": next(iter(kinds))})
    assert job.status_code == 400 and error_of(job)["param"] == "task"


@pytest.mark.parametrize(
    "query",
    [
        "tasks=embedding&tasks[]=embedding",
        "tasks[]=embedding&tasks=embedding",
        "tasks[x]=embedding",
        "tasks[0]=embedding&tasks[x]=embedding",
        "tasks[x]=1&tasks[]=embedding",
        "include[x]=1",
        "timestamp_granularities[x]=1",
        "known_speaker_names[x]=1",
        "top_k[x]=1",
        "model[]=a",
        "chunking_strategy[x]=1",
    ],
)
def test_lists_in_any_form_are_read_or_refused(client: httpx.Client, query: str) -> None:
    fields = dict(pair.split("=") for pair in query.split("&"))
    for route in ("/v1/audio/analyses", "/v1/audio/transcriptions", URL):
        answers = [
            client.post(f"{route}?{query}", files={"file": WAV}),
            client.post(route, files={"file": WAV}, data=fields),
        ]
        for answer in answers:
            assert answer.status_code == 400 and error_of(answer)["type"] == "invalid_request_error"


def test_errors_of_the_protocol_are_strings_where_that_is_set(tmp_path: Path) -> None:
    key, line = made("anna")
    (tmp_path / "keys").write_text(line)
    with serving(FakeRuntime(), v2_errors="string", api_keys=tmp_path / "keys") as client:
        assert client.get("/v2").json()["error"].startswith("an API key is needed")
        client.headers["authorization"] = f"Bearer {key}"
        answers = [
            (client.post(INFER, content=b"{"), 400, "not JSON"),
            (client.get("/v2/models/none"), 404, "no model"),
            (client.get("/v2/models/default/versions/7"), 404, "version"),
            (client.get("/v2/nothing"), 404, "Not Found"),
            (client.put("/v2"), 405, "Method Not Allowed"),
        ]
        for answer, status, words in answers:
            assert answer.status_code == status and set(answer.json()) == {"error"}
            assert words in answer.json()["error"]
        for path in ("/v1/models/none", "/v20", "/nothing"):
            assert error_of(client.get(path))["code"]


def test_the_description_of_the_api_runs_nothing_foreign(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r"https?:|//", page.text) and 'src="playground/docs.js"' in page.text
    for path in ("/redoc", "/docs/oauth2-redirect"):
        assert client.get(path).status_code == 404


CONTENT_TYPES: list[tuple[dict[str, Any], int]] = [
    ({"content_type": "np"}, 200),
    ({"content_type": "str"}, 400),
    ({"content_type": "pd"}, 400),
    ({"content_type": None}, 200),
]


@pytest.mark.parametrize(("parameters", "status"), CONTENT_TYPES)
def test_content_types_of_mlserver(client: httpx.Client, parameters: dict[str, Any], status: int) -> None:
    tensor = {"name": "audio", "shape": [16_000], "datatype": "FP32", "data": tone(1.0).tolist()}
    body = {
        "inputs": [tensor | {"parameters": parameters}],
        "parameters": {"content_type": "np"},
        "outputs": [{"name": "embedding", "parameters": {"content_type": "np"}}],
    }
    answer = client.post(INFER, content=json.dumps(body))
    assert answer.status_code == status, answer.text
