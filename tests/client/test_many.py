"""Many clips at a time: their order, their failures, how many are under way, and what is shown."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from speech_ssl.client import (
    Audio,
    BadAudio,
    Client,
    Counts,
)
from speech_ssl.client.many import Window
from tests.service.fakes import FakeRuntime
from tests.service.support import tone

WAVE = tone(1.5)


def test_one_bad_file_does_not_end_the_others(client: Client, tmp_path: Path) -> None:
    waves = [tone(0.5 + 0.1 * number) for number in range(10)]
    audios: list[Audio] = [*waves, b"nothing", tmp_path / "missing"]
    counted: list[Counts] = []
    found = {done.index: done for done in client.embed_many(audios, workers=3, progress=counted.append)}
    assert sorted(found) == list(range(12))
    assert [index for index, done in sorted(found.items()) if done.error] == [10, 11]
    assert isinstance(found[10].error, BadAudio) and isinstance(found[11].error, FileNotFoundError)
    for index, wave in enumerate(waves):
        assert found[index].audio is wave
        expected = FakeRuntime.frames(wave, 3).mean(axis=0)
        np.testing.assert_allclose(found[index].answer.vector, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(BadAudio):
        _ = found[10].answer
    assert counted[-1] == Counts(12, 2, 12) and len(counted) == 12


def test_workers_ask_at_the_same_time_and_no_more(client: Client, fake: FakeRuntime) -> None:
    """Inputs are taken from the iterator as there is room, in the caller's thread."""
    fake.open_gate.clear()
    taken: list[int] = []

    def endless() -> Iterator[Audio]:
        assert threading.current_thread() is threading.main_thread()
        while True:
            if len(taken) == 3:
                fake.open_gate.set()  # all of the first three are on their way
            taken.append(len(taken))
            yield WAVE

    results = client.embed_many(endless(), workers=4)
    for _ in range(20):
        assert next(results).answer.seconds == 1.5
    results.close()
    assert len(taken) < 20 + 2 * 4
    with pytest.raises(ValueError, match="workers"):
        client.embed_many([], workers=0)


def test_no_more_are_under_way_than_there_are_workers() -> None:
    running: list[int] = []
    most = 0

    async def ask(audio: Audio) -> int:
        nonlocal most
        running.append(1)
        most = max(most, len(running))
        await asyncio.sleep(0.01)
        running.pop()
        return 1

    async def all_of(window: Window[int]) -> int:
        return sum([len(await step) for step in window.steps([b""] * 20)])

    assert asyncio.run(all_of(Window(ask, 4))) == 20 and most == 4


def test_progress_in_plain_lines(client: Client, capfd: pytest.CaptureFixture[str]) -> None:
    list(client.embed_many([WAVE, b"nothing"], progress=True))
    assert capfd.readouterr().err == "2 of 2 clips, 1 failed\n"
    list(client.embed_many([WAVE, WAVE]))
    assert capfd.readouterr().err == ""


def test_progress_on_a_terminal(
    client: Client, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    list(client.embed_many([WAVE, b"nothing"], progress=True))
    assert "0/2" in capfd.readouterr().err


def test_many_analyses(answering: Client, clip: Path) -> None:
    for done in answering.analyze_many([clip] * 3, tasks=["transcription"]):
        assert done.answer.transcription is not None and done.answer.embedding is None
