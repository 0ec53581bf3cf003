"""How far it is, in plain lines: the terminal's bar is watched in test_cli."""

from __future__ import annotations

import re

import pytest

from speech_ssl.extraction.progress import ProgressLine, Tally


def test_plain_lines_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr("speech_ssl.extraction.progress.time.monotonic", lambda: now)
    progress = ProgressLine("extract", 1200.0)
    for _ in range(40):  # a second each
        now += 1.0
        progress.advance(15.0, clips=2)
    progress.advance(0, failures=1)
    progress.close()
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out and len(lines) == 8  # one in five seconds
    assert lines[0] == "extract: 6% of 20.0 min of audio, 10 clips, 15.0x real time, 1.2 min left"
    assert lines[-1] == "extract: 50% of 20.0 min of audio, 80 clips, 15.0x real time, 0.7 min left"
    assert (progress.seconds, progress.clips, progress.failures, progress.rate) == (600.0, 80, 1, 15.0)


def test_a_manifest_that_claims_too_little(capsys: pytest.CaptureFixture[str]):
    progress = ProgressLine("extract", 0.0, every_s=0.0)
    progress.advance(30.0, failures=2)
    assert re.match(
        r"extract: 100% of 0.0 min of audio, 0 clips, 2 failed, .* 0.0 min left\n", capsys.readouterr().err
    )


def test_a_tally(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr("speech_ssl.extraction.progress.time.monotonic", lambda: now)
    tally = Tally("manifest", "files")
    for _ in range(12):
        now += 1.0
        tally.tick()
    tally.close()
    assert capsys.readouterr().err == "manifest: 5 files\nmanifest: 10 files\n"
