"""API keys: who is let in, how one is made, and that only hashes are kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.auth import Keys, made
from tests.service.fakes import FakeRuntime
from tests.service.support import ROOT, encoded, error_of, serving, tone

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
        ({"Authorization": "Basic YTpi"}, "missing_api_key"),
        ({"Authorization": "Bearer wrong"}, "invalid_api_key"),
        ({"X-API-Key": "wrong"}, "invalid_api_key"),
    ],
)
def test_every_route_but_the_probes_is_guarded(
    client: httpx.Client, headers: dict[str, str], code: str
) -> None:
    for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/nowhere"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert error_of(answer)["code"] == code
    assert client.post("/v1/embeddings", files={"file": WAV}, headers=headers).status_code == 401
    for path in ("/health/live", "/health/ready"):
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
