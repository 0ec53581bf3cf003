"""Lanes that are lost: what they were lost with, and who runs it instead."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.batcher import Again, Away, Batcher, Stopped
from service.batches import BatchLimits, Lane
from tests.service.job_client import accepted, clip, finished
from tests.service.support import Process, error_of, of_models, until

URL = "/v1/embeddings"
Start = Callable[..., Process]


class Track:
    """A lane that doubles numbers, is lost with those that it is told to, and can be held."""

    def __init__(self, deadly: Sequence[int] = ()) -> None:
        self.deadly = set(deadly)
        self.is_ready = True
        self.comes_back = True
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []

    def run(self, payloads: Sequence[int]) -> list[int]:
        self.batches.append(list(payloads))
        assert self.gate.wait(60)
        if self.deadly.intersection(payloads):
            self.is_ready = self.comes_back
            raise Again("lost")
        return [2 * payload for payload in payloads]

    def lane(self) -> Lane[int, int]:
        return Lane(self.run, lambda: self.is_ready)


@contextmanager
def running(*tracks: Track, batch_s: float = 8.0) -> Iterator[Batcher[int, int]]:
    waiting = list(tracks)
    batcher: Batcher[int, int] = Batcher(
        lambda: waiting.pop().lane(), BatchLimits(1e6, batch_s), lanes=len(tracks)
    )
    batcher.start()
    batcher.started.result(30)
    yield batcher
    for track in tracks:
        track.gate.set()
    batcher.stop(30)
    assert batcher.queued_s == 0


def test_one_that_is_not_ready_takes_nothing() -> None:
    dead, alive = Track(), Track()
    dead.is_ready = False
    with running(dead, alive) as batcher:
        futures = [batcher.ticket().submit(number, 8.0) for number in range(20)]
        assert [future.result(30) for future in futures] == list(range(0, 40, 2))
        assert dead.batches == [] and len(alive.batches) == 20
        alive.is_ready = False
        late = batcher.ticket().submit(7, 1.0)
        dead.is_ready = True
        batcher.wake()
        assert late.result(30) == 14 and dead.batches == [[7]]


def test_what_one_was_lost_with_is_run_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """That one does not come back, and takes eight items with it: none of them fails."""
    monkeypatch.setattr("service.batcher.STANDBY_S", 0.1)
    alive = Track()
    dying = Track(deadly=range(8))
    dying.comes_back = False
    alive.is_ready = False
    with running(dying, alive) as batcher:
        futures = [batcher.ticket().submit(number, 1.0) for number in range(8)]
        until(lambda: not dying.is_ready)
        alive.is_ready = True
        batcher.wake()
        assert [future.result(30) for future in futures] == list(range(0, 16, 2))
        assert len(dying.batches) == 1


def test_the_last_one_is_not_risked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.batcher.STANDBY_S", 3600.0)
    dying, last = Track(deadly=[3]), Track()
    dying.comes_back = last.is_ready = False
    with running(dying, last) as batcher:
        suspect = batcher.ticket().submit(3, 1.0)
        until(lambda: not dying.is_ready)
        last.is_ready = True
        batcher.wake()
        assert batcher.ticket().submit(1, 1.0).result(30) == 2
        assert last.batches == [[1]] and not suspect.done()
        dying.deadly.clear()
        dying.is_ready = True
        batcher.wake()
        assert suspect.result(30) == 6


def test_only_what_takes_lanes_down_alone_fails() -> None:
    track = Track(deadly=[5])
    track.gate.clear()
    with running(track) as batcher:
        held = batcher.ticket().submit(99, 8.0)
        until(lambda: track.batches)
        futures = [batcher.ticket().submit(number, 1.0) for number in range(8)]
        track.gate.set()
        assert held.result(30) == 198
        for number, future in enumerate(futures):
            if number == 5:
                with pytest.raises(Again):
                    future.result(30)
            else:
                assert future.result(30) == 2 * number
        assert track.batches.count([5]) == 2 and len(track.batches[1]) == 8


def test_it_is_not_held_against_an_item_that_its_lane_was_away() -> None:
    tries: list[Sequence[int]] = []

    def run(payloads: Sequence[int]) -> list[int]:
        tries.append(payloads)
        if len(tries) < 10:
            raise Away
        return list(payloads)

    batcher: Batcher[int, int] = Batcher(lambda: Lane(run), BatchLimits(100, 10))
    batcher.start()
    assert batcher.ticket().submit(4, 1.0).result(30) == 4 and len(tries) == 10
    batcher.stop(30)


def test_what_nobody_waits_for_any_more_is_not_run_again() -> None:
    track = Track(deadly=[1, 2])
    track.comes_back = False
    with running(track) as batcher:
        with batcher.ticket() as gone:
            left = gone.submit(1, 1.0)
            until(lambda: not track.is_ready)
        assert isinstance(left.exception(30), Stopped) and batcher.queued_s == 0
        track.is_ready, track.comes_back = True, False
        with batcher.ticket() as ticket:
            refused = ticket.submit(2, 1.0)
            until(lambda: not track.is_ready)
            batcher.refuse(lambda: ValueError("no more"))
            with pytest.raises(ValueError, match="no more"):
                refused.result(30)
        assert track.batches == [[1], [2]] and batcher.queued_s == 0


def test_the_time_to_stop_is_for_all_of_them() -> None:
    tracks = [Track() for _ in range(6)]
    for track in tracks:
        track.gate.clear()
    with running(*tracks) as batcher, ThreadPoolExecutor(1) as pool:
        futures = [batcher.ticket().submit(number, 8.0) for number in range(6)]
        until(lambda: all(track.batches for track in tracks))
        stopped = pool.submit(batcher.stop, 0.7)
        stopped.result(3.0)
        assert not any(future.done() for future in futures)


def test_with_a_process_dead_the_other_serves_and_with_both_requests_wait(
    start: Start, tmp_path: Path
) -> None:
    """No other can be loaded while there is a gate."""
    gate, settings = tmp_path / "gate", {"SPEECH_SSL_JOBS_DIR": str(tmp_path / "jobs")}
    process = start("tests.service.fakes", "--gate", str(gate), SPEECH_SSL_PROCESSES="2", **settings)
    client, wav = process.ready(), {"file": clip()}
    right = client.post(URL, files=wav).json()
    gate.touch()
    first, second = of_models(process)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(client.post, URL, files=wav) for _ in range(40)]
        os.kill(first, signal.SIGKILL)
        until(lambda: process.metric("lost_workers_total") == 1)
        answers += [pool.submit(client.post, URL, files=wav) for _ in range(40)]
        assert [each.result().json() for each in answers] == [right] * 80
    assert client.get("/health/ready").status_code == 200

    os.kill(second, signal.SIGKILL)
    until(lambda: process.metric("lost_workers_total") == 2)
    job = accepted(client, [clip(), clip()])
    until(lambda: process.metric("queued_audio_seconds") > 0)
    late = client.post(URL, files=wav, headers={"X-Request-Timeout": "0.5"})
    assert late.status_code == 504, "it waits, but for no longer than it may"

    until(lambda: len(of_models(process)) == 2 and not {first, second} & set(of_models(process)))
    for loading in of_models(process):
        os.kill(loading, signal.SIGKILL)
    until(lambda: client.post(URL, files=wav, headers={"X-Request-Timeout": "0.5"}).status_code == 503)
    refused = client.post(URL, files=wav)
    assert (refused.status_code, error_of(refused)["code"]) == (503, "restarting")
    assert "retry-after" in refused.headers
    until(lambda: process.metric("queued_audio_seconds") == 0)
    gate.unlink()
    assert finished(client, job)["progress"]["files_failed"] == 0
    assert client.post(URL, files=wav).json() == right
