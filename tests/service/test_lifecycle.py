"""The service as a process: from loading to draining, under a flood, and its answers beside the library's."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from websockets.sync.client import connect

import speech_ssl
from tests.service.support import START_S, encoded, error_of, tone, until

URL = "/v1/embeddings"
RAW = {"content-type": "audio/wav"}
FAKE = "tests.service.fakes"


def test_answers_are_those_of_the_library(real_service, tiny_artifact, prompts):
    """Layers, pooling and windows, over a socket, from the process that `python -m service` starts."""
    client = real_service.client
    runtime = speech_ssl.load(tiny_artifact)
    paths = sorted((prompts / "audio").glob("*.flac"))[:6]
    features = runtime.encode(paths, layer=2)
    answer = client.post(
        URL,
        files=[("file", (path.name, path.read_bytes())) for path in paths],
        data={"layer": "2", "pooling": "max"},
    )
    assert answer.status_code == 200, answer.text
    for item, feature in zip(answer.json()["data"], features, strict=True):
        np.testing.assert_allclose(item["embedding"], feature.pooled("max"), atol=1e-5)
    seconds = sum(feature.duration_s for feature in features)
    assert answer.json()["usage"]["seconds"] == pytest.approx(seconds, abs=1e-4)

    speech = np.concatenate([speech_ssl.audio.decode(path) for path in paths * 6])  # several windows
    assert len(speech) / 16_000 > 45
    whole = runtime.encode([speech])[0]
    packed = client.post(
        URL,
        json={"input": base64.b64encode(encoded(speech)).decode(), "encoding_format": "base64"}
        | {"pooling": "none", "modality": "audio", "model": "tiny-random"},
    ).json()["data"][0]
    frames = np.frombuffer(base64.b64decode(packed["embedding"]), "<f4").reshape(packed["shape"])
    np.testing.assert_allclose(frames, whole.frames, atol=1e-5)
    pooled = client.post(URL, content=encoded(speech), headers=RAW).json()["data"][0]["embedding"]
    np.testing.assert_allclose(pooled, whole.pooled("mean"), atol=1e-5)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(real_service, prompts):
    client, address = real_service.client, str(real_service.client.base_url)
    clip = prompts / "audio" / "hello.flac"
    command = ["curl", "-sS", "--fail-with-body", "-F", f"file=@{clip}", f"{address}{URL}"]
    form = subprocess.run(command, capture_output=True, check=True).stdout
    command = [
        "curl",
        "-sS",
        "-H",
        "Content-Type: audio/flac",
        "--data-binary",
        f"@{clip}",
        f"{address}{URL}",
    ]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    listed = client.post(URL, json={"input": base64.b64encode(clip.read_bytes()).decode()}).content
    assert form == raw == listed
    assert len(client.post(URL, files={"file": clip.read_bytes()}).json()["data"][0]["embedding"]) > 100


def test_it_answers_while_loading_and_drains_on_sigterm(start):
    process = start(FAKE, "--load-time", "1.0", "--slowness", "0.5", SPEECH_SSL_MAX_BATCH_S="4")
    process.listening()
    answer = process.client.get("/health/ready")
    assert (answer.status_code, error_of(answer)["code"]) == (503, "loading")
    assert process.client.get("/health/live").status_code == 200
    client = process.ready()
    with ThreadPoolExecutor(3) as pool:
        running = [
            pool.submit(client.post, URL, content=encoded(tone(2.0, frequency=200 + i)), headers=RAW)
            for i in range(3)
        ]
        until(lambda: process.metric("queued_audio_seconds") == 6.0)
        process.terminate()
        until(lambda: client.get("/health/ready").status_code == 503)
        for path in ("/health/ready", "/v1/models"):
            assert error_of(client.get(path))["code"] == "draining"
        refused = client.post(URL, content=encoded(tone(1.0)), headers=RAW)
        assert (refused.status_code, error_of(refused)["code"]) == (503, "draining")
        assert client.get("/health/live").status_code == 200
        assert [each.result().status_code for each in running] == [200] * 3
    assert process.popen.wait(60) == 0
    assert "Traceback" not in process.log.read_text()


def test_drain_has_an_end(start):
    process = start(FAKE, "--slowness", "1", SPEECH_SSL_DRAIN_TIMEOUT_S="0.3", SPEECH_SSL_MAX_BATCH_S="4")
    client = process.ready()
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(client.post, URL, content=encoded(tone(3.0)), headers=RAW) for _ in range(2)]
        until(lambda: process.metric("queued_audio_seconds") == 6.0)
        process.terminate()
        for each in running:
            assert (each.result().status_code, error_of(each.result())["code"]) == (503, "draining")
        assert process.popen.wait(60) == 0


def test_what_keeps_it_from_starting_is_one_line(start, tmp_path: Path):
    long = tmp_path / ("long" * 20)
    long.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = {
            f"cannot listen on 127.0.0.1 port {port}: Address already in use": {"SPEECH_SSL_PORT": port},
            "nothing-there": {"SPEECH_SSL_MODEL": str(tmp_path / "nothing-there")},
            "SPEECH_SSL_PORT: Input should be a valid integer": {"SPEECH_SSL_PORT": "high"},
            "there is no file nowhere.toml": {"SPEECH_SSL_SETTINGS_FILE": "nowhere.toml"},
            "set TMPDIR to a shorter one": {"TMPDIR": str(long)},
        }
        for message, environment in cases.items():
            process = start("service", **environment)
            assert process.popen.wait(START_S) == 2
            log = process.log.read_text()
            assert "Traceback" not in log
            assert message in log.splitlines()[-1]
            assert log.splitlines()[-1].startswith("error: ")


def test_its_own_process_never_loads_pytorch(start, answering_artifact: Path, prompts: Path):
    """It takes seconds and hundreds of megabytes, and what computes has a process of its own."""
    process = start("service", SPEECH_SSL_MODEL=str(answering_artifact))
    client = process.ready()
    clip = next((prompts / "audio").glob("*.flac")).read_bytes()
    for path in ("/v1/embeddings", "/v1/audio/transcriptions", "/v1/audio/classifications"):
        assert client.post(path, files={"file": clip}).status_code == 200
    address = str(client.base_url).replace("http", "ws", 1).rstrip("/")
    with connect(f"{address}/v1/audio/stream", proxy=None) as stream:
        stream.send(np.zeros(16_000, "<i2").tobytes())
        stream.send(json.dumps({"type": "end"}))
        while json.loads(stream.recv(60))["type"] != "final":
            pass
    assert "libtorch" not in Path(f"/proc/{process.popen.pid}/maps").read_text()
