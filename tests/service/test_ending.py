"""The end of the service: nothing holds it up, nothing is left behind, and what is being read comes whole."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np

from service.jobs.store import NewJob, Store, new_id
from service.pool import Pool
from tests.service.job_client import accepted, clip
from tests.service.support import Process, children, encoded, of_models, tone, until

URL = "/v1/embeddings"
RAW = {"content-type": "audio/wav"}
FAKE = "tests.service.fakes"
SOON = {"SPEECH_SSL_DRAIN_TIMEOUT_S": "0.3"}
Start = Callable[..., Process]


def ended(process: Process, within_s: float) -> None:
    """In good order, with nothing left."""
    below = [*children(process.popen.pid), *of_models(process)]
    process.terminate()
    assert process.popen.wait(within_s) == 0
    assert "Traceback" not in process.log.read_text()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), 30)


def test_nothing_holds_it_up_and_nothing_is_left(start: Start, tmp_path: Path) -> None:
    """Two models that hang, two that are being loaded to take their place, and decoders that say nothing, one
    with a request's file and one with a job's."""
    gate, settings = tmp_path / "gate", {"SPEECH_SSL_JOBS_DIR": str(tmp_path / "jobs")} | SOON
    more = {"SPEECH_SSL_PROCESSES": "2", "SPEECH_SSL_MAX_BATCH_S": "4"}
    process = start(FAKE, "--gate", str(gate), **settings, **more)
    client = process.ready()
    hanging = np.clip(tone(4.0), -0.7, 0.7)
    hanging[100] = 0.8
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(client.post, URL, content=encoded(hanging), headers=RAW) for _ in range(2)]
        until(lambda: process.metric("queued_audio_seconds") == 8.0)
        gate.touch()
        process.popen.send_signal(signal.SIGHUP)
        until(lambda: len(of_models(process)) == 4)
        decoders = [pid for pid in children(process.popen.pid) if b"sandbox.decoder" in command(pid)]
        assert len(decoders) == 2
        for pid in decoders:
            os.kill(pid, signal.SIGSTOP)
        accepted(client, [clip()])
        answers.append(pool.submit(client.post, URL, content=clip(), headers=RAW))
        until(lambda: process.metric("in_flight_requests") == 3)
        ended(process, 9.0)
        assert [each.result().status_code for each in answers] == [503] * 3


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_results_that_are_being_read_come_whole(start: Start, tmp_path: Path) -> None:
    """By a client that takes longer than the 5 s for answers that are late, within the time to drain."""
    text = json.dumps("x" * (32 << 20))
    with closing(Store(tmp_path)) as store:
        store.opened(job := new_id())
        store.add(NewJob(job, "", None, "", "embedding", "fake", "{}", ["a"]))
        assert store.claim(job)
        (store.folder(job) / "0.json").write_text(text)
        store.end_file(job, 0, None)
        store.end(job)
    process = start(FAKE, SPEECH_SSL_JOBS_DIR=str(tmp_path))
    url = process.ready().base_url
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect((url.host, url.port))
        head = f"GET /v1/jobs/{job}/results HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        reader.sendall(head.encode())
        read = [reader.recv(1024)]
        process.terminate()
        slow_until = time.monotonic() + 5.5
        while part := reader.recv(1 << 16):
            read.append(part)
            if time.monotonic() < slow_until:
                time.sleep(0.1)
    whole = b"".join(read)
    assert len(whole) > len(text) and whole.endswith(b"0\r\n\r\n")
    assert process.popen.wait(60) == 0


def test_a_pool_runs_what_it_is_given_and_leaves_the_rest() -> None:
    pool = Pool(1, "test")
    assert pool.submit(lambda: 3).result(30) == 3
    failed = pool.submit(lambda: 1 // 0)
    assert isinstance(failed.exception(30), ZeroDivisionError)
    held = pool.submit(lambda: time.sleep(0.2) or 4)
    left = pool.submit(lambda: 5)
    until(held.running)
    pool.stop()
    assert left.cancelled() and held.result(30) == 4
