"""The model's process: it dies, hangs, cannot be loaded, and the service goes on."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.batcher import Away
from service.models.worker import Threads, Worker, WorkerLost, context
from speech_ssl.inference.card import ModelCard
from speech_ssl.inference.outputs import WindowOutput
from tests.service import fakes
from tests.service.support import Process, children, encoded, error_of, of_models, tone, until

URL = "/v1/embeddings"
FAKE = "tests.service.fakes"
Start = Callable[..., Process]


def clip(loudness: float) -> bytes:
    wave = np.clip(tone(1.0), -0.7, 0.7)
    wave[100] = loudness
    return encoded(wave)


def post(process: Process, data: bytes) -> tuple[int, object]:
    answer = process.client.post(URL, content=data, headers={"content-type": "audio/wav"})
    return answer.status_code, answer.json() if answer.status_code == 200 else error_of(answer)["code"]


@pytest.fixture(autouse=True, scope="module")
def imported() -> None:
    """Processes are forked from one that has what they need, if none has been started before."""
    context.set_forkserver_preload(["tests.service.fakes"])


@pytest.fixture
def lost() -> list[int]:
    return []


@pytest.fixture
def worker(lost: list[int]) -> Iterator[Worker]:
    worker = Worker(fakes.load, timeout_s=2.0, lost=lambda: lost.append(1))
    worker.start()
    yield worker
    worker.close()
    assert worker.pid is not None and not Path(f"/proc/{worker.pid}").exists()


def test_it_is_the_model_elsewhere(worker: Worker) -> None:
    here = fakes.FakeRuntime()
    card = worker.card()
    assert card == here.card() and card.check_layer(-1) == 3 and len(card.plan(160_000)) > 1
    waves = [tone(1.0), tone(0.5)]
    for mine, other in zip(worker.run_windows(waves, [1, 2]), here.run_windows(waves, [1, 2]), strict=True):
        np.testing.assert_array_equal(mine.frames, other.frames)


def test_what_the_model_refuses_is_raised_here_and_it_goes_on(worker: Worker) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="layer 9 is not there"):
            worker.run_windows([tone(1.0)], [9])
    assert len(worker.run_windows([tone(1.0)], [3])) == 1


@pytest.mark.parametrize("loudness", [0.9, 0.8], ids=["dies", "hangs"])
def test_another_takes_its_place(worker: Worker, lost: list[int], loudness: float) -> None:
    before = worker.pid
    wave = np.full(16_000, 0.1, dtype=np.float32)
    wave[0] = loudness
    with pytest.raises(WorkerLost):
        worker.run_windows([wave], [3])
    until(lambda: worker.running)
    assert len(worker.run_windows([tone(1.0)], [3])) == 1
    assert worker.pid != before and lost == [1]


def test_one_that_dies_with_nothing_to_do_is_replaced_at_once(worker: Worker, lost: list[int]) -> None:
    before = worker.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    until(lambda: worker.pid != before and worker.running)
    assert lost == [1]


def test_passes_that_are_under_way_share_the_threads() -> None:
    threads = Threads(4)
    with threads.shared() as first:
        with threads.shared() as second, threads.shared() as third:
            assert (first, second, third) == (4, 2, 1)
        with suppress(ValueError), threads.shared():
            raise ValueError
        with threads.shared() as again:
            assert again == 2
    with Threads(1).shared() as one, Threads(1).shared() as other:
        assert (one, other) == (1, 1)


class Threaded(fakes.FakeRuntime):
    """Answers with how many threads it was told to take."""

    threads = 0

    def use_threads(self, count: int) -> None:  # type: ignore[override]
        self.threads = count

    def run_windows(self, waves: Any, *_: Any) -> Any:
        return [WindowOutput(np.full((1, 1), self.threads, np.float32), {})]


def test_a_pass_is_told_its_threads() -> None:
    threads = Threads(6)
    worker = Worker(Threaded, timeout_s=5, lost=lambda: None, threads=threads)
    worker.start()
    assert worker.run_windows([tone(1.0)], [3])[0].frames == 6
    with threads.shared():
        assert worker.run_windows([tone(1.0)], [3])[0].frames == 3
    worker.close()


class Hung(fakes.FakeRuntime):
    """Stops its own process: it neither takes nor gives anything."""

    def run_windows(self, *_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSTOP)


def test_one_that_takes_nothing_is_ended_too() -> None:
    """More than a pipe holds is sent to a process that has been stopped."""
    worker = Worker(Hung, timeout_s=0.5, lost=lambda: None)
    worker.start()
    for _ in range(2):
        until(lambda: worker.running)
        with pytest.raises(WorkerLost):
            worker.run_windows([np.zeros(4_000_000, dtype=np.float32)], [3])
    worker.close()


class Versioned(fakes.FakeRuntime):
    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file, self.sha256 = file, file.read_text()

    def card(self) -> ModelCard:
        return dataclasses.replace(super().card(), sha256=self.sha256)


def test_another_model_does_not_take_its_place(tmp_path: Path) -> None:
    """What it was loaded from is replaced, and then its process dies."""
    file = tmp_path / "model"
    file.write_text("one")
    worker = Worker(partial(Versioned, file), timeout_s=5, lost=lambda: None)
    worker.start()
    assert worker.pid is not None and worker.card().sha256 == "one"
    file.write_text("two")
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: worker.stale)
    with pytest.raises(Away, match="not running"):
        worker.run_windows([tone(1.0)], [3])
    worker.close()


class Once:
    """A model that can be loaded only while a file is there."""

    def __init__(self, file: Path) -> None:
        if not file.exists():
            raise ValueError(f"{file.name} is gone")

    def card(self) -> ModelCard:
        return fakes.FakeRuntime().card()

    @staticmethod
    def use_threads(count: int) -> None:
        pass

    def run_windows(self, *_: object) -> list[object]:
        os._exit(3)


def test_one_that_cannot_be_loaded_again_is_told_and_tried_until_it_can(
    tmp_path: Path, lost: list[int]
) -> None:
    file = tmp_path / "model"
    with pytest.raises(ValueError, match="model is gone"):
        Worker(partial(Once, file), timeout_s=5, lost=lambda: None).start()
    file.touch()
    worker = Worker(partial(Once, file), timeout_s=5, lost=lambda: lost.append(1))
    changes: list[bool] = []
    worker.start(lambda: changes.append(worker.running))
    file.unlink()
    with pytest.raises(WorkerLost):
        worker.run_windows([], [])
    with pytest.raises(Away, match="not running"):
        worker.run_windows([], [])
    until(lambda: worker.error is not None)
    assert str(worker.error) == "model is gone" and not worker.running
    file.touch()
    until(lambda: worker.running)
    assert worker.error is None and changes[0] and not changes[1] and changes[-1]
    worker.close()


def test_one_that_is_being_loaded_can_be_closed(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    worker = Worker(partial(fakes.load, gate=gate), timeout_s=5, lost=lambda: None)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(worker.start)
        until(lambda: worker.pid is not None)
        worker.close()
        with pytest.raises(OSError, match="died while it loaded"):
            loading.result(60)
    with pytest.raises(OSError, match="closed"):
        worker.start()


def test_killed_under_load_nobody_else_notices(start: Start) -> None:
    """kill -9, twice: what was running is run again, and all get the answers that they would have got."""
    process = start(FAKE, "--slowness", "0.02")
    process.ready()
    right = post(process, clip(0.5))
    (victim,) = of_models(process)
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(post, process, clip(0.5)) for _ in range(200)]
        for _ in range(2):
            until(lambda: process.metric("queued_audio_seconds") > 3)
            os.kill(victim, signal.SIGKILL)
            until(lambda old=victim: len(found := of_models(process)) == 1 and found != [old], 30)
            until(lambda: process.metric("ready") == 1, 30)
            (victim,) = of_models(process)
        assert [each.result() for each in answers] == [right] * 200
    assert process.metric("lost_workers_total") == 2


def test_copies_share_the_work_and_stand_in_for_each_other(start: Start) -> None:
    process = start(FAKE, "--slowness", "0.3", SPEECH_SSL_PROCESSES="2", SPEECH_SSL_MAX_BATCH_S="4")
    process.ready()
    right = post(process, clip(0.5))
    first, second = of_models(process)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(post, process, clip(0.5)) for _ in range(40)]
        until(lambda: process.metric("queued_audio_seconds") >= 6)
        os.kill(first, signal.SIGKILL)
        assert process.metric("ready") == 1, "there is another"
        assert [each.result() for each in answers] == [right] * 40
    until(lambda: len(found := of_models(process)) == 2 and first not in found, 30)
    assert second in of_models(process) and process.metric("lost_workers_total") == 1


def test_a_clip_that_kills_the_model_fails_alone(start: Start) -> None:
    process = start(FAKE, "--slowness", "0.2", SPEECH_SSL_BATCH_TIMEOUT_S="5")
    process.ready()
    right = post(process, clip(0.5))
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(post, process, clip(0.9 if i == 3 else 0.5)) for i in range(8)]
        results = [each.result() for each in answers]
    assert results.pop(3) == (503, "model_lost")
    assert results == [right] * 7
    until(lambda: process.client.get("/health/ready").status_code == 200)


def test_no_process_outlives_the_service(start: Start) -> None:
    for end in (signal.SIGKILL, signal.SIGTERM):
        process = start(FAKE)
        process.ready()
        below = [*children(process.popen.pid), *of_models(process)]
        assert len(below) >= 4, "two decoders, one that forks, a model"
        process.popen.send_signal(end)
        process.popen.wait(30)
        until(lambda below=below: not any(Path(f"/proc/{pid}").exists() for pid in below), 30)
