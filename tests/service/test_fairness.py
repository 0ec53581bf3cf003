"""Who is served before whom: windows in the queue, and files of jobs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.app import create_app
from service.batcher import Batcher, Overloaded
from service.batches import BatchLimits, Lane
from service.settings import Settings
from service.shares import Shares, Turns
from tests.service.fakes import FakeRuntime
from tests.service.job_client import accepted, asked, clip, finished, results, submit
from tests.service.support import error_of, serving_app, until


class Held:
    """Runs batches of one item, when it may, and remembers them."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.ran: list[str] = []
        self.batcher: Batcher[str, str] = Batcher(lambda: Lane(self.run), BatchLimits(1e6, 1.0))
        self.batcher.start()

    def run(self, payloads: list[str]) -> list[str]:
        self.entered.release()
        assert self.gate.wait(60)
        self.ran += payloads
        return payloads

    def begun(self) -> None:
        """Something runs, so that all that follows waits."""
        self.batcher.ticket().submit("first", 1.0)
        assert self.entered.acquire(timeout=60)


def test_who_was_idle_has_saved_up_nothing() -> None:
    held = Held()
    idle = held.batcher.ticket()  # decodes, or is a stream that pauses
    held.gate.set()
    busy = held.batcher.ticket()
    for _ in range(200):
        busy.submit("before", 1.0).result(60)
        assert held.entered.acquire(timeout=60)
    held.gate.clear()
    held.begun()
    windows = [idle.submit("long", 1.0) for _ in range(100)]
    short = held.batcher.ticket().submit("short", 1.0)
    held.gate.set()
    short.result(60)
    windows[-1].result(60)
    since = held.ran[held.ran.index("first") :]
    assert since.index("short") <= 2, "the windows of one that had been idle went before it"
    held.batcher.stop(30)


def test_who_has_nothing_to_run_slows_nobody_down() -> None:
    """A long file gets its share beside short clips, however many requests wait for their clients."""
    held = Held()
    waiting = [held.batcher.ticket() for _ in range(200)]
    held.begun()
    long = held.batcher.ticket()
    windows = [long.submit("long", 1.0) for _ in range(4)]
    shorts = 0

    def another(_: Any = None) -> None:
        nonlocal shorts
        shorts += 1
        if not windows[-1].done() and shorts < 2000:
            held.batcher.ticket().submit("short", 1.0).add_done_callback(another)

    another()
    held.gate.set()
    for window in windows:
        window.result(60)
    assert shorts < 20, "half of the time is its own"
    assert len(waiting) == 200
    held.batcher.stop(30)


def test_turns_go_to_whom_has_had_least() -> None:
    now = 0.0
    turns = Turns(lambda: now)

    def served(*names: str, times: int, seconds: float = 1.0) -> str:
        nonlocal now
        order = ""
        for _ in range(times):
            with turns.of_one(names) as name:
                now += 3 * seconds if name == "a" else seconds
            order += name
        return order

    assert served("a", "b", times=8) == "abbbabbb"
    served("a", times=100)  # meanwhile b has nothing to do, which earns it nothing
    assert served("a", "b", times=8) in ("babbbabb", "bbbbabbb", "bbbabbba")
    with turns.of_one(["c", "d"]) as first, turns.of_one(["c", "d"]) as second:
        assert (first, second) == ("c", "d")


def test_a_key_has_so_many_streams_and_so_many_requests() -> None:
    shares = Shares(max_requests=1, max_queue_s=None, max_streams=2)
    with shares.of("anna", live=True), shares.of("anna", live=True), shares.of("anna"):
        for live in (True, False):
            with pytest.raises(Overloaded), shares.of("anna", live=live):
                pass
        with shares.of("ben", live=True), shares.of("ben"):
            pass


class NamedByHeader:
    """What checks keys, in short."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope.setdefault("state", {})["key"] = Headers(scope=scope).get("x-name")
        await self.app(scope, receive, send)


@contextmanager
def two_of_them(fake: FakeRuntime, **settings: Any) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    app = create_app(Settings(**settings), fake)
    app.add_middleware(NamedByHeader)
    with serving_app(app) as anna:
        anna.headers["x-name"] = "anna"
        with httpx.Client(base_url=anna.base_url, timeout=90, trust_env=False) as ben:
            ben.headers["x-name"] = "ben"
            yield anna, ben


def test_keys_take_turns_with_their_jobs(fake: FakeRuntime, tmp_path: Path) -> None:
    with two_of_them(fake, jobs_dir=tmp_path) as (anna, ben):
        assert fake.entered.acquire(timeout=60)  # the warm-up
        fake.open_gate.clear()
        long = accepted(anna, [clip(), clip(), clip(), clip(), clip(), clip()])
        after_it = accepted(anna, [clip()])
        short = accepted(ben, [clip(), clip()])
        assert fake.entered.acquire(timeout=60)
        assert asked(ben, short)["status"] == "queued"
        fake.open_gate.set()
        ended = finished(ben, short)
        assert asked(anna, after_it)["status"] == "queued" or ended["ended"] <= finished(anna, long)["ended"]
        assert finished(anna, long)["status"] == finished(anna, after_it)["status"] == "done"
        # Of what was run, ben's two files come before anna's last three.
        order = [int(path.parent.name == short) for path in by_age(tmp_path)]
        assert sum(order[:5]) == 2


def by_age(folder: Path) -> list[Path]:
    return sorted(folder.glob("files/*/*.json"), key=lambda path: path.stat().st_mtime_ns)


def test_one_key_cannot_take_all_jobs(fake: FakeRuntime, tmp_path: Path) -> None:
    with two_of_them(fake, jobs_dir=tmp_path, max_jobs=4) as (anna, ben):
        fake.open_gate.clear()
        for _ in range(2):
            accepted(anna, [clip()])
        refused = submit(anna, [clip()])
        assert (refused.status_code, error_of(refused)["code"]) == (429, "too_many_jobs")
        assert "of this key" in str(error_of(refused)["message"]) and refused.headers["retry-after"]
        accepted(ben, [clip()])
        fake.open_gate.set()
        until(lambda: submit(anna, [clip()]).status_code == 202)


def test_results_have_a_limit_for_all_and_for_each_key(fake: FakeRuntime, tmp_path: Path) -> None:
    limits: dict[str, Any] = {"max_result_bytes": 3000, "key_max_result_bytes": 1000}
    with two_of_them(fake, jobs_dir=tmp_path, **limits) as (anna, ben):
        job = accepted(anna, [clip(), clip(2.0), clip(), clip()], pooling="none")  # 50 frames of 5 a second
        assert finished(anna, job)["status"] == "failed", "not even the first has room"
        small = accepted(anna, [clip()] * 8)
        assert finished(anna, small)["status"] == "done"
        ran = len(fake.passes)
        told = results(anna, small)
        fitted = [entry for entry in told if "result" in entry]
        assert 0 < len(fitted) < 8 and {entry["error"]["code"] for entry in told[len(fitted) :]} == {
            "results_full"
        }
        kept = sum(path.stat().st_size for path in by_age(tmp_path))
        assert kept <= 1000
        accepted(anna, [clip()])  # there are some bytes left, and so it is taken
        accepted(ben, [clip()])
        until(lambda: len(fake.passes) > ran)
        assert anna.delete(f"/v1/jobs/{small}").status_code == 204
        again = accepted(anna, [clip()])
        assert "result" in results(anna, finished(anna, again)["id"])[0]
