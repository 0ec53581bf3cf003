"""API keys: who is let in, how one is made, and that only hashes are kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.auth import Keys, made
from service.edge.guards import OPEN
from tests.service.fakes import FakeRuntime
from tests.service.support import ROOT, encoded, error_of, serving, tone, until

WAV = encoded(tone(1.0))


@pytest.fixture(scope="module")
def key_and_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    (key, line), (_, other) = made("anna"), made("ben")
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text(f"# ours\n{line}\n\n{other}  # until May\n")
    assert key not in file.read_text()
    return key, file


@pytest.fixture(scope="module")
def client(key_and_file: tuple[str, Path]) -> Iterator[httpx.Client]:
    with serving(FakeRuntime(), api_keys=key_and_file[1]) as client:
        yield client


def test_a_key_opens_in_both_headers(client: httpx.Client, key_and_file: tuple[str, Path]) -> None:
    key, _ = key_and_file
    for headers in (
        {"Authorization": f"Bearer {key}"},
        {"authorization": f"bearer {key}"},
        {"X-API-Key": key},
    ):
        assert client.post("/v1/embeddings", files={"file": WAV}, headers=headers).status_code == 200
        assert client.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"Authorization": "Digest YTpi"}, "missing_api_key"),
        ({"Authorization": "Basic ?"}, "missing_api_key"),
        ({"Authorization": "Basic YTpi"}, "invalid_api_key"),
        ({"Authorization": "Bearer wrong"}, "invalid_api_key"),
        ({"X-API-Key": "wrong"}, "invalid_api_key"),
    ],
)
def test_every_route_but_the_probes_is_guarded(
    client: httpx.Client, key_and_file: tuple[str, Path], headers: dict[str, str], code: str
) -> None:
    described = client.get("/openapi.json", headers={"X-API-Key": key_and_file[0]}).json()["paths"]
    assert "/v1/embeddings" in described
    for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/nowhere"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert error_of(answer)["code"] == code
    assert client.post("/v1/embeddings", files={"file": WAV}, headers=headers).status_code == 401
    for path, operations in described.items():
        for method in operations if path not in OPEN else ():
            assert client.request(method, path, headers=headers).status_code == 401, path
    for path in OPEN:
        assert client.get(path, headers=headers).status_code == 200


def test_whose_it_is() -> None:
    (first, line), (second, other) = made("anna"), made("ben")
    keys = Keys.of([line, other], "keys")
    assert (keys.name_of(first), keys.name_of(second)) == ("anna", "ben")
    assert keys.name_of("") is None and keys.name_of(line.split()[1]) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("anna secret\n", "line 1: a key's line"),
        (made("anna")[1] + "\n" + made("anna")[1], "line 2: anna is already there"),
        ("# none\n", "no key in it"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Keys.of(text.splitlines(), "keys.txt")


def test_one_is_made_by_a_command() -> None:
    command = [sys.executable, "-m", "service.auth"]
    ended = subprocess.run([*command, "anna"], cwd=ROOT, capture_output=True, text=True, check=True)
    key = ended.stderr.split()[-1]
    assert Keys.of(ended.stdout.splitlines(), "keys").name_of(key) == "anna" and key not in ended.stdout
    wrong = subprocess.run([*command, "a b"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: 'a b'")
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 2


def test_a_browser_may_ask_its_user(client: httpx.Client, key_and_file: tuple[str, Path]) -> None:
    key, _ = key_and_file
    page = client.get("/metrics", headers={"accept": "text/html,*/*"})
    assert page.status_code == 401 and page.headers["www-authenticate"].startswith("Basic realm=")
    basic = httpx.BasicAuth("whoever", key)
    assert client.get("/metrics", auth=basic).status_code == 200
    assert client.get("/metrics", auth=basic, headers={"sec-fetch-site": "same-origin"}).status_code == 200
    own = f"http://{client.base_url.host}:{client.base_url.port}"
    assert client.get("/metrics", auth=basic, headers={"origin": own}).status_code == 200
    for origin in ("http://elsewhere.example", "null", "http://[", own.replace("http", "https") + "1"):
        assert client.get("/metrics", auth=basic, headers={"origin": origin}).status_code == 403
    for elsewhere in ("cross-site", "same-site"):
        link = {"sec-fetch-site": elsewhere, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
        assert client.get("/metrics", auth=basic, headers=link).status_code == 401, "the user is asked again"


def test_limits_of_each_key(tmp_path: Path) -> None:
    """Two requests of anna's, three seconds of ben's; what they have is given back when they end."""
    (anna, line), (ben, other) = made("anna"), made("ben")
    (tmp_path / "keys").write_text(f"{line}\n{other}\n")
    fake = FakeRuntime()
    limits = {"key_max_requests": 2, "key_max_queue_s": 3.0}
    with serving(fake, api_keys=tmp_path / "keys", **limits) as client, ThreadPoolExecutor(3) as pool:

        def ask(key: str, seconds: float) -> httpx.Response:
            data = encoded(tone(seconds))
            return client.post("/v1/embeddings", files={"file": data}, headers={"X-API-Key": key})

        fake.open_gate.clear()
        held = [pool.submit(ask, anna, 1.0) for _ in range(2)]
        metrics = {"Authorization": f"Bearer {anna}"}
        until(lambda: "speech_ssl_queued_audio_seconds 2.0" in client.get("/metrics", headers=metrics).text)
        refused = ask(anna, 1.0)
        assert (refused.status_code, error_of(refused)["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert ask(ben, 3.5).status_code == 429
        held.append(pool.submit(ask, ben, 2.5))
        until(lambda: "speech_ssl_queued_audio_seconds 4.5" in client.get("/metrics", headers=metrics).text)
        fake.open_gate.set()
        assert [each.result().status_code for each in held] == [200] * 3
        assert ask(anna, 2.9).status_code == ask(ben, 2.9).status_code == 200
