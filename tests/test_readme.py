"""The README's tour, as a newcomer would take it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import soundfile

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PROGRAMS = {"python": [sys.executable], "speech-ssl": [sys.executable, "-m", "speech_ssl.cli"]}

pytestmark = pytest.mark.slow


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory, prompts: Path) -> Path:
    """A folder with `my-audio` in it, after the commands of the tour that need neither hours nor a port."""
    folder = tmp_path_factory.mktemp("newcomer")
    shutil.copytree(prompts / "audio", folder / "my-audio")
    clip = soundfile.read(prompts / "audio" / "speed-dial.flac")
    soundfile.write(folder / "my-audio" / "clip.wav", *clip)
    soundfile.write(folder / "clip.wav", *clip)
    for line in blocks(section("Five minutes with your own files"), "sh")[0].splitlines():
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program in PROGRAMS and "tiny" not in line:
            run([*PROGRAMS[program], *arguments], folder)
    return folder


def test_tour_leaves_what_it_says(newcomer):
    assert len((newcomer / "my-audio.tsv").read_text().splitlines()) == 1 + 151
    assert (newcomer / "runs" / "smoke" / "artifact" / "config.json").exists()
    embed = [*PROGRAMS["speech-ssl"], "embed", "clip.wav", "--json", "--model", "runs/smoke/artifact"]
    assert len(json.loads(run(embed, newcomer))["embedding"]) > 1


def test_python_examples_run(newcomer):
    for code in blocks(README, "python"):
        run([sys.executable, "-c", code], newcomer)


def test_serve_answers_with_embeddings(prompts):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([ROOT / "scripts" / "serve", "--port", str(port)])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            await_ready(client, server)
            with (prompts / "audio" / "hello.flac").open("rb") as clip:
                answer = client.post("/v1/embeddings", files={"file": clip})
        assert answer.status_code == 200
        assert len(answer.json()["data"][0]["embedding"]) > 1
    finally:
        server.terminate()
        assert server.wait(timeout=60) == 0


def await_ready(client: httpx.Client, server: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            if client.get("/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError("the service did not become ready")
