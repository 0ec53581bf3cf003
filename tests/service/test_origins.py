"""Pages of other sites, and names that are not the service's: by the headers of browsers, and in one."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from service.auth import made
from service.edge.guards import Hosts
from tests.service.browser import CHROMIUM, Page, browser
from tests.service.fakes import FakeRuntime
from tests.service.support import encoded, error_of, serving, tone

WAV = encoded(tone(1.0))
TENSOR = {"name": "audio", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(WAV).decode()]}
INFER = json.dumps({"inputs": [TENSOR]})
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/v1/embeddings", {"files": {"file": WAV}}),
    ("POST", "/v1/audio/classifications", {"files": {"file": WAV}}),
    ("POST", "/v1/jobs", {"files": {"file": WAV}, "data": {"task": "embedding"}}),
    ("POST", "/v2/models/default/infer", {"content": INFER, "headers": {"content-type": "text/plain"}}),
    ("GET", "/v1/jobs", {}),
    ("GET", "/v1/models", {}),
    ("GET", "/metrics", {}),
    ("DELETE", "/v1/jobs/0", {}),
    ("OPTIONS", "/v1/embeddings", {}),
]
FOREIGN = (
    {"origin": "http://elsewhere.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:1"},
    {"origin": "http://["},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
    {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:1"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
)
LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.fixture(scope="module")
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture(scope="module")
def client(runtime: FakeRuntime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving(runtime, jobs_dir=tmp_path_factory.mktemp("jobs")) as client:
        yield client


def ask(
    client: httpx.Client, request: tuple[str, str, dict[str, Any]], headers: dict[str, str]
) -> httpx.Response:
    method, path, body = request
    return client.request(method, path, **{**body, "headers": body.get("headers", {}) | headers})


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: f"{request[0]} {request[1]}")
def test_a_page_of_another_site_is_refused(
    client: httpx.Client, runtime: FakeRuntime, request_: tuple[str, str, dict[str, Any]]
) -> None:
    passes = len(runtime.passes)
    for headers in FOREIGN:
        answer = ask(client, request_, headers)
        assert (answer.status_code, error_of(answer)["code"]) == (403, "cross_origin"), headers
    assert len(runtime.passes) == passes and client.get("/v1/jobs").json()["data"] == []


def test_the_own_page_programs_and_links_are_answered(client: httpx.Client) -> None:
    own = f"http://{client.base_url.host}:{client.base_url.port}"
    embed = REQUESTS[0]
    for headers in (
        {},
        {"origin": own},
        {"sec-fetch-site": "same-origin", "origin": own},
        {"sec-fetch-site": "same-origin", "origin": "https://behind-a-proxy.example"},
        {"sec-fetch-site": "none"},
    ):
        assert ask(client, embed, headers).status_code == 200, headers
    assert client.get("/", headers=LINK).status_code == 200
    assert ask(client, embed, LINK).status_code == 403, "a form that is sent is no look"
    for path in ("/health/live", "/v2/health/ready"):
        assert (
            client.get(path, headers={"origin": "http://a.example", "host": "a.example"}).status_code == 200
        )


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: f"{request[0]} {request[1]}")
def test_another_name_is_refused(client: httpx.Client, request_: tuple[str, str, dict[str, Any]]) -> None:
    """A name that leads here for a moment: DNS rebinding."""
    port = client.base_url.port
    for host in (f"elsewhere.example:{port}", "elsewhere.example.", "ELSEWHERE.example", "127.0.0.1.nip.io"):
        answer = ask(
            client, request_, {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
        )
        assert (answer.status_code, error_of(answer)["code"]) == (421, "unknown_host")
        assert "SPEECH_SSL_ALLOWED_HOSTS" in str(error_of(answer)["message"])


def test_streams_too(client: httpx.Client) -> None:
    url = f"ws://127.0.0.1:{client.base_url.port}/v1/audio/stream"
    for status, options in (
        (403, {"origin": "http://elsewhere.example"}),
        (403, {"additional_headers": {"Sec-Fetch-Site": "cross-site"}}),
    ):
        with pytest.raises(InvalidStatus) as refused, connect(url, **options):  # type: ignore[arg-type]
            pass
        assert refused.value.response.status_code == status
    elsewhere = f"ws://elsewhere.example:{client.base_url.port}/v1/audio/stream"
    address = ("127.0.0.1", client.base_url.port)
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(elsewhere, address=address, proxy=None),
    ):
        pass
    assert refused.value.response.status_code == 421


def test_names_that_are_set(tmp_path: Path) -> None:
    with serving(FakeRuntime(), allowed_hosts="asr.example.org, *.example.net") as client:
        for host, status in (
            ("asr.example.org", 200),
            ("ASR.example.org:8000", 200),
            ("a.b.example.net", 200),
            ("example.net", 421),
            ("127.0.0.1", 200),
            ("localhost", 421),
        ):
            assert client.get("/v1/models", headers={"host": host}).status_code == status, host
        by_proxy = {"host": "127.0.0.1", "origin": "http://asr.example.org"}
        assert ask(client, REQUESTS[0], by_proxy).status_code == 200
    key, line = made("anna")
    (tmp_path / "keys").write_text(line)
    with serving(FakeRuntime(), api_keys=tmp_path / "keys") as client:
        asked = {"host": "asr.example.org", "x-api-key": key}
        assert client.get("/v1/models", headers=asked).status_code == 200, "a page of it has no key"
        assert client.get("/v1/models", headers=asked | {"origin": "http://a.example"}).status_code == 403


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("localhost:8000", True),
        ("a.localhost", True),
        ("speech", True),
        ("speech.default.svc.cluster.local:80", True),
        ("printer.local.", True),
        ("127.0.0.1:1", True),
        ("192.168.0.7", True),
        ("[::1]:8000", True),
        ("localhost.example.com", False),
        ("local.com", False),
        ("notlocal", True),
        ("not.alocal", False),
        ("1.2.3.4.example", False),
        ("127.0.0.1.", True),
    ],
)
def test_names_without_a_setting(host: str, allowed: bool) -> None:
    assert Hosts.of(None).allow(host) is allowed


# In a browser

ATTACK = """
const refused = async (path, options) => {
  try { const r = await fetch(SERVICE + path, options); return r.type + " " + (await r.text()); }
  catch (error) { return String(error); }
};
const form = () => { const f = new FormData(); f.append("file", new Blob([Uint8Array.from(atob(WAV),
  (c) => c.charCodeAt(0))]), "a.wav"); f.append("task", "embedding"); return f; };
const socket = new Promise((done) => { const s = new WebSocket(SERVICE.replace("http", "ws") +
  "/v1/audio/stream"); s.onopen = () => done("open"); s.onerror = () => done("refused"); });
const told = [];
for (const mode of ["cors", "no-cors"]) {
  for (const path of ["/v1/embeddings", "/v1/audio/analyses", "/v1/audio/transcriptions", "/v1/jobs"])
    told.push(await refused(path, { method: "POST", body: form(), mode }));
  told.push(await refused("/v2/models/default/infer", { method: "POST", body: INFER, mode }));
  for (const path of ["/v1/jobs", "/v1/models", "/metrics", "/", "/v2"])
    told.push(await refused(path, { mode }));
}
told.push(await socket);
return told;
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


class _Empty(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """Another site's."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://elsewhere.example:{server.server_port}/"
    server.shutdown()
    server.server_close()


def outcomes(client: httpx.Client) -> dict[str, float]:
    """Of all requests so far, by their status."""
    counted: dict[str, float] = {}
    for line in client.get("/metrics").text.splitlines():
        if line.startswith("speech_ssl_requests_total{") and "/metrics" not in line:
            status = line.split('outcome="')[1].split('"')[0]
            counted[status] = counted.get(status, 0) + float(line.split()[-1])
    return counted


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_page_of_another_site_gets_nothing(page: Page, elsewhere: str, tmp_path: Path) -> None:
    runtime = FakeRuntime()
    with serving(runtime, jobs_dir=tmp_path) as client:
        service = f"http://127.0.0.1:{client.base_url.port}"
        given = {"SERVICE": service, "WAV": base64.b64encode(WAV).decode(), "INFER": INFER}
        attack = "".join(f"const {name} = {json.dumps(value)};" for name, value in given.items()) + ATTACK
        page.open(elsewhere)
        told = page.evaluate(f"(async () => {{ {attack} }})()")
        assert len(told) == 21 and told[-1] == "refused"
        assert {answer.split()[0] for answer in told[:-1]} == {"TypeError:", "opaque"}
        assert all(answer in ("opaque ", "TypeError: Failed to fetch") for answer in told[:-1])
        assert set(outcomes(client)) == {"403"} and len(runtime.passes) == 1, "the warm-up alone"
        assert client.get("/v1/jobs").json()["data"] == []
        rebound = f"http://elsewhere.example:{client.base_url.port}/v1/jobs"
        page.open(rebound)
        assert "unknown_host" in page.text("body")
