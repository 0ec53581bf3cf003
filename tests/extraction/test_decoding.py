"""Decoder processes: what they answer, and that a dead one costs one file."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech_ssl import audio
from speech_ssl.extraction import decoding
from speech_ssl.extraction.decoding import Decoded, Decoders, DecodeTask, Failed
from speech_ssl.inference.chunking import Chunker
from speech_ssl.inference.windows import Piece

ROOT = Path(__file__).parents[2]
CHUNKER = Chunker(320, 400, window=100, context=10)


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pids() -> list[int]:
    """Of the decoders of this process."""
    below = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    found = [int(pid) for path in below for pid in path.read_text().split()]
    return [pid for pid in found if b"sandbox.decoder" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def two_minutes(folder: Path) -> str:
    path = folder / "long.wav"
    soundfile.write(path, np.zeros(16000 * 120, dtype=np.float32), 16000)
    return str(path)


def test_windows_of_all_files_in_order(prompts: Path, tmp_path: Path):
    paths = [str(path) for path in sorted((prompts / "audio").glob("*.flac"))[:6]]
    jobs = [DecodeTask(number, path) for number, path in enumerate(paths)]
    jobs.append(DecodeTask(6, str(tmp_path / "absent.wav")))
    jobs.append(DecodeTask(7, paths[0], 0.1, 0.4))
    pieces: dict[int, list[Piece]] = {}
    ends: dict[int, Decoded | Failed] = {}
    with Decoders(jobs, CHUNKER, workers=2, ahead_s=30.0) as events:
        for event in events:
            if isinstance(event, Piece):
                assert event.clip not in ends
                pieces.setdefault(event.clip, []).append(event)
            else:
                ends[event.clip] = event
    for number, path in enumerate(paths):
        wave = audio.decode(path)
        plan = CHUNKER.plan(len(wave))
        assert [piece.window for piece in pieces[number]] == plan
        assert [piece.index for piece in pieces[number]] == list(range(len(plan)))
        for piece in pieces[number]:
            assert np.array_equal(piece.wave, wave[piece.window.start : piece.window.stop])
        assert ends[number] == Decoded(number, len(plan), len(wave))
    assert ends[6] == Failed(6, "unreadable", f"{jobs[6].path}: No such file or directory")
    assert ends[7] == Decoded(7, 1, round(0.3 * 16000)) and 6 not in pieces


def test_a_dead_decoder_fails_its_file_and_is_replaced(prompts: Path, tmp_path: Path):
    """The process is killed in the middle of a file: no more than `ahead_s` of it is decoded by then."""
    good = [str(path) for path in sorted((prompts / "audio").glob("*.flac"))[:4]]
    jobs = [
        DecodeTask(0, good[0]),
        DecodeTask(1, two_minutes(tmp_path)),
        DecodeTask(2, good[1]),
        DecodeTask(3, good[2]),
    ]
    ends: dict[int, Decoded | Failed] = {}
    with Decoders(jobs, CHUNKER, workers=1, ahead_s=10.0) as decoders:
        first: list[int] = []
        for event in decoders:
            if event.clip == 1 and not first:
                first = pids()
                os.kill(first[0], signal.SIGKILL)
            if not isinstance(event, Piece):
                ends[event.clip] = event
            if event.clip == 2:
                second = pids()
    assert isinstance(ends[1], Failed) and ends[1].code == "decoder_died" and "SIGKILL" in ends[1].reason
    assert all(isinstance(ends[number], Decoded) for number in (0, 2, 3))
    assert second != first and not exists(second[0])


def test_a_decoder_that_hangs_is_given_up(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoding, "STALL_S", 10.0)
    good = str(next((prompts / "audio").glob("*.flac")))
    jobs = [DecodeTask(0, two_minutes(tmp_path)), DecodeTask(1, good)]
    ends = {}
    with Decoders(jobs, CHUNKER, workers=1, ahead_s=10.0) as decoders:
        for number, event in enumerate(decoders):
            if number == 0:
                os.kill(pids()[0], signal.SIGSTOP)
            ends[event.clip] = event
    assert isinstance(ends[0], Failed) and ends[0].code == "stalled"
    assert isinstance(ends[1], Decoded)


def test_decoders_run_ahead_only_so_far(tmp_path: Path):
    with Decoders([DecodeTask(0, two_minutes(tmp_path))], CHUNKER, workers=1, ahead_s=10.0) as decoders:
        deadline = time.monotonic() + 30
        while decoders._queue._held_s < 10 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        assert 10 <= decoders._queue._held_s <= 10 + 2 * CHUNKER.window_s


def test_leaving_early_ends_the_processes(tmp_path: Path):
    path = two_minutes(tmp_path)
    jobs = (DecodeTask(number, path) for number in count())
    with Decoders(jobs, CHUNKER, workers=2, ahead_s=5.0) as decoders:
        next(event for event in decoders if len(pids()) == 2)
        running = pids()
    assert len(running) == 2 and not any(map(exists, running))


SCRIPT = """
from speech_ssl.extraction.decoding import Decoded, Decoders, DecodeTask
from speech_ssl.inference.chunking import Chunker

with Decoders([DecodeTask(0, "a.flac")], Chunker(320, 400, 100, 10), workers=1, ahead_s=9.0) as events:
    print(type([*events][-1]).__name__)
"""


def test_decoders_run_nothing_of_the_working_directory(prompts: Path, tmp_path: Path):
    """In a script without `if __name__ == "__main__":`, which has a path that is relative."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    shutil.copy(next((prompts / "audio").glob("*.flac")), folder / "a.flac")
    for name in ("json", "signal", "numpy"):
        (folder / f"{name}.py").write_text("open('mark', 'w')\nraise SystemExit(9)\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    ran = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "Decoded\n"), ran.stderr
    assert not (folder / "mark").exists()
