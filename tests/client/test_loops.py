"""The event loop: the caller's own with `AsyncClient`, one in a thread of its own with `Client`."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from speech_ssl.client import (
    AsyncClient,
    Client,
)
from tests.client.scripted import ONCE
from tests.service.fakes import FakeRuntime
from tests.service.support import encoded, tone, until

WAVE = tone(1.5)


def test_the_async_client_does_the_same(answering: Client, clip: Path) -> None:
    async def ask() -> None:
        async with AsyncClient(answering.url, retrying=ONCE) as client:
            one, two = await asyncio.gather(client.embed(clip), client.transcribe(clip))
            np.testing.assert_allclose(one.vector, answering.embed(clip).vector, rtol=1e-5, atol=1e-5)
            assert two.text == answering.transcribe(clip).text
            assert "".join([delta async for delta in client.transcribe_stream(clip)]) == two.text
            assert (await client.models()) == answering.models()
            assert (await client.classify(clip, head="moods", top_k=1)).labels
            done = [each async for each in client.embed_many([clip, b"", clip], workers=2)]
            assert sorted(each.index for each in done if each.error is None) == [0, 2]
            async for each in client.analyze_many([clip], tasks=["embedding"]):
                assert each.answer.embedding is not None

    asyncio.run(ask())


def test_a_call_that_is_cancelled_is_cancelled(client: Client, fake: FakeRuntime) -> None:
    fake.open_gate.clear()

    async def ask() -> None:
        async with AsyncClient(client.url) as aio:
            task = asyncio.create_task(aio.embed(WAVE))
            await asyncio.to_thread(fake.entered.acquire)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            fake.open_gate.set()
            assert (await aio.embed(WAVE)).seconds == 1.5

    asyncio.run(ask())


def named_threads() -> int:
    return sum(thread.name == "speech-ssl-client" for thread in threading.enumerate())


def test_its_thread_ends_with_it(client: Client) -> None:
    before = named_threads()
    other = Client(client.url)
    assert other.models() and named_threads() == before + 1
    other.close()
    other.close()
    assert named_threads() == before
    for ask in (other.models, lambda: list(other.embed_many([WAVE]))):
        with pytest.raises(RuntimeError, match="closed"):
            ask()
    for _ in range(30):  # in one of 25 a connection was just being made, and stayed open
        with Client(client.url) as brief:
            results = brief.embed_many([WAVE] * 9)
            next(results)
        results.close()
    forgotten = Client(client.url)
    assert forgotten.models()
    del forgotten
    gc.collect()
    until(lambda: named_threads() == before)


def test_closing_ends_a_call_in_another_thread(client: Client, fake: FakeRuntime) -> None:
    fake.open_gate.clear()
    other = Client(client.url)
    caught: list[Exception] = []

    def ask() -> None:
        try:
            other.embed(WAVE)
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert fake.entered.acquire(timeout=60)
    other.close()
    thread.join(60)
    fake.open_gate.set()
    assert len(caught) == 1 and "closed" in str(caught[0])


def test_a_pipe_that_nobody_writes_to_holds_up_nothing(client: Client, tmp_path: Path) -> None:
    """Neither the timeout, nor closing, nor the end of the process."""
    os.mkfifo(tmp_path / "pipe")
    code = """
import asyncio, sys, threading
from speech_ssl.client import AsyncClient, Client, TimedOut
url, pipe = sys.argv[1:]
with Client(url) as client:
    try:
        client.embed(pipe, timeout=0.2)
    except TimedOut:
        print("timed out")
with Client(url) as client:
    results = client.embed_many([pipe])
    threading.Timer(0.2, client.close).start()
    try:
        next(results)
    except RuntimeError as error:
        print(error)
async def ask():
    async with AsyncClient(url) as client:
        try:
            await client.embed(open(0, "rb"), timeout=0.2)
        except TimedOut:
            print("timed out")
asyncio.run(ask())
"""
    command = [sys.executable, "-W", "error", "-c", code, client.url, str(tmp_path / "pipe")]
    reading, writing = os.pipe()
    try:
        done = subprocess.run(command, stdin=reading, capture_output=True, text=True, timeout=120)
    finally:
        os.close(reading)
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["timed out", "the client was closed", "timed out"]


def test_a_pipe_is_read_to_its_end(client: Client, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writing = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[encoded(WAVE)])
    writing.start()
    assert client.embed(tmp_path / "pipe").seconds == 1.5
    writing.join(60)


def run_python(code: str, *arguments: str) -> str:
    """In a process of its own, warnings as errors."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_a_forked_process_may_use_it(client: Client) -> None:
    code = """
import os, sys
from speech_ssl.client import Client
client = Client(sys.argv[1])
first = client.models()
if (child := os.fork()) == 0:
    os._exit(0 if client.models() == first else 1)
assert os.waitpid(child, 0)[1] == 0
assert client.models() == first  # and it is not closed
print("fine")
"""
    assert run_python(code, client.url) == "fine\n"


def test_it_needs_no_pytorch() -> None:
    code = "import sys, speech_ssl.client; print({'torch', 'librosa', 'fastapi'} & sys.modules.keys())"
    assert run_python(code) == "set()\n"
