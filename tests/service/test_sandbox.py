"""Decoders that die, hang or are killed: what a file loses by it, and that nothing else does."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pytest

from speech_ssl.audio import AudioError, AudioWarning, Limits, decode
from speech_ssl.sandbox import pool as pooling
from speech_ssl.sandbox.pool import Sandbox
from speech_ssl.sandbox.process import DecoderProcess
from tests.service.fakes import FakeRuntime
from tests.service.support import ROOT, encoded, error_of, serving, tone, until

MIB = 1 << 20
LONG = encoded(np.zeros(600 * 8000, np.int16), rate=8000, format="FLAC", subtype="PCM_16")
WAV = encoded(tone(1.0))


class Counted:
    """A sandbox of one decoder, and how many it lost."""

    def __init__(self, memory: int = 1024 * MIB, timeout_s: float = 60.0) -> None:
        self.lost = 0
        self.sandbox = Sandbox(1, memory, timeout_s, self.count)
        self.sandbox.start()

    def count(self, why: str) -> None:
        self.lost += 1

    @property
    def pid(self) -> int:
        (decoder,) = list(iter_free(self.sandbox))
        return decoder.popen.pid

    def decode(self, source: bytes | io.BytesIO, limits: Limits | None = None) -> np.ndarray:
        return np.concatenate(list(self.sandbox.stream(source, limits=limits or Limits())))


def iter_free(box: Sandbox) -> Iterator[DecoderProcess]:
    """Those that have nothing to do, put back in their order."""
    decoders = []
    while not box._free.empty():
        decoders.append(box._free.get())
    for decoder in decoders:
        box._free.put(decoder)
    return iter(decoders)


Make = Callable[..., Counted]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Counted] = []

    def making(**options: object) -> Counted:
        made.append(Counted(**options))  # type: ignore[arg-type]
        return made[-1]

    yield making
    for one in made:
        one.sandbox.stop()


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_it_decodes_as_the_process_itself_would(make: Make, format: str) -> None:
    subtype = {"WAV": "PCM_24", "FLAC": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}[format]
    both = np.stack([tone(7.0, rate=44_100), tone(7.0, rate=44_100, frequency=600)], axis=1)
    data = encoded(both, rate=44_100, format=format, subtype=subtype)
    counted = make()
    np.testing.assert_array_equal(counted.decode(data), decode(data))
    np.testing.assert_array_equal(counted.decode(io.BytesIO(data)), decode(data))
    assert counted.lost == 0


def test_warnings_come_through(make: Make) -> None:
    box, told = make().sandbox, list[AudioWarning]()
    left = tone(2.0)
    data = encoded(np.stack([left, -left], axis=1))
    for _ in range(2):
        list(box.stream(data, limits=Limits(), warn=told.append))
    assert [warning.code for warning in told] == ["opposite_phase"] * 2
    assert len(list(box.stream(data, limits=Limits()))) == 1  # nobody has to listen


def test_refusals_come_through_and_cost_no_decoder(make: Make) -> None:
    counted = make()
    before = counted.pid
    for data, limits, code in (
        (b"hello", Limits(), "unsupported_format"),
        (b"fLaC" + bytes(100), Limits(), "undecodable"),
        (LONG, Limits(max_seconds=30), "too_long"),
    ):
        with pytest.raises(AudioError) as caught:
            counted.decode(data, limits)
        assert caught.value.code == code
    assert len(counted.decode(WAV)) == 16_000 and counted.pid == before and counted.lost == 0


def test_a_decoder_that_is_killed_loses_its_file_alone(make: Make) -> None:
    counted = make()
    pid = counted.pid
    with pytest.raises(AudioError, match="died of it") as caught:
        for number, _ in enumerate(counted.sandbox.stream(LONG, limits=Limits())):
            if number == 0:
                os.kill(pid, signal.SIGKILL)
    assert caught.value.code == "undecodable" and counted.lost == 1
    assert len(counted.decode(WAV)) == 16_000 and counted.pid != pid


def test_one_that_is_killed_while_idle_is_replaced_unnoticed(make: Make) -> None:
    counted = make()
    assert len(counted.decode(WAV)) == 16_000
    (decoder,) = iter_free(counted.sandbox)
    os.kill(decoder.popen.pid, signal.SIGSEGV)
    decoder.popen.wait(10)
    assert len(counted.decode(WAV)) == 16_000 and counted.lost == 1


def test_memory_and_time_are_limited(make: Make) -> None:
    small = make(memory=512 * MIB)
    with pytest.raises(AudioError) as caught:
        small.decode(WAV[:44] + bytes(600 * MIB))
    assert caught.value.code == "undecodable" and small.lost == 1
    assert len(small.decode(WAV)) == 16_000
    hurried = make(timeout_s=5.0)
    with pytest.raises(AudioError, match="too long"):
        for _ in hurried.sandbox.stream(LONG, limits=Limits()):
            time.sleep(5.2)
    assert hurried.lost == 1


def test_what_is_left_early_costs_no_decoder(make: Make) -> None:
    counted = make()
    assert len(counted.decode(WAV)) == 16_000
    before = counted.pid
    with closing(counted.sandbox.stream(LONG, limits=Limits())) as blocks:
        next(blocks)
    assert counted.pid == before and len(counted.decode(WAV)) == 16_000 and counted.lost == 0


def test_decoders_are_replaced_now_and_then_and_end_with_the_sandbox(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "FILES", 2)
    counted = make()
    first = counted.pid
    counted.decode(WAV)
    assert counted.pid == first
    counted.decode(WAV)
    assert counted.pid != first and counted.lost == 0
    (decoder,) = iter_free(counted.sandbox)
    counted.sandbox.stop()
    assert decoder.popen.returncode == -signal.SIGKILL


def test_a_decoder_that_cannot_be_started_is_tried_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = make()
    os.kill(counted.pid, signal.SIGKILL)
    next(iter_free(counted.sandbox)).popen.wait(10)
    with monkeypatch.context() as patch:

        def fails(memory: int) -> DecoderProcess:
            raise OSError("too many processes")

        patch.setattr(pooling, "DecoderProcess", fails)
        for _ in range(2):
            with pytest.raises(OSError, match="too many processes"):
                counted.decode(WAV)
    assert len(counted.decode(WAV)) == 16_000


def test_a_decoder_ends_with_the_service_and_needs_no_torch() -> None:
    code = "import sys, speech_ssl.sandbox.decoder; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
    alone = subprocess.Popen(
        [sys.executable, "-m", "speech_ssl.sandbox.decoder", str(1024 * MIB)], cwd=ROOT, stdin=subprocess.PIPE
    )
    assert alone.stdin
    alone.stdin.close()
    assert alone.wait(60) == 0


def children(name: str) -> list[int]:
    """Processes of this one's whose command names a module."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(re.search(r"PPid:\s+(\d+)", (path / "status").read_text())[1])  # type: ignore[index]
            if parent == os.getpid() and name in (path / "cmdline").read_text():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def test_killed_decoders_under_load_fail_nobody_elses_request() -> None:
    """Every few moments one is killed; whoever fails is told so in the error shape, and most do not."""
    with serving(FakeRuntime(), decode_threads=2, max_clip_s=4000.0) as client:
        until(lambda: len(children("speech_ssl.sandbox.decoder")) == 2)
        killed = 0

        def ask(number: int) -> httpx.Response:
            data = LONG if number % 10 == 0 else WAV
            return client.post("/v1/embeddings", content=data, headers={"content-type": "audio/wav"})

        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(ask, number) for number in range(60)]
            while not all(answer.done() for answer in answers):
                if killed < 3 and (victims := children("speech_ssl.sandbox.decoder")):
                    os.kill(victims[0], signal.SIGKILL)
                    killed += 1
                time.sleep(0.3)
        statuses = [answer.result().status_code for answer in answers]
        assert set(statuses) <= {200, 422} and statuses.count(422) <= killed
        for answer in answers:
            if answer.result().status_code == 422:
                assert error_of(answer.result())["code"] == "undecodable"
        assert ask(1).status_code == 200
        lost = re.search(r"^speech_ssl_lost_decoders_total (\S+)$", client.get("/metrics").text, re.MULTILINE)
        assert lost and 0 < float(lost[1]) <= killed
    until(lambda: not children("speech_ssl.sandbox.decoder"))
