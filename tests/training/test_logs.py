"""Logs: lines of JSON that a resumed run continues, TensorBoard, and something to read meanwhile."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from speech_ssl.runs.console import Console
from speech_ssl.training.logs import Logs


def write(out: Path, done: int, steps: range) -> None:
    with Logs(out, total=10, done=done, active=True) as logs:
        for step in steps:
            logs.numbers("train", step, {"loss": 1 / step, "code_perplexity": 12.3456})
            logs.step()


def entries(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_each_line_is_json_and_there_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Logs(tmp_path, total=10, done=0, active=True, tell=Console()) as logs:
        logs.numbers("train", 1, {"loss": 0.1 + 0.2, "accuracy": 0.5, "other": 3.0})
        logs.event("collapse", 1, "few codes")
        assert entries(tmp_path) == [
            {"kind": "train", "step": 1, "loss": 0.1 + 0.2, "accuracy": 0.5, "other": 3.0},
            {"kind": "collapse", "step": 1, "message": "few codes"},
        ]
    told = capsys.readouterr().err
    assert "train step 1: loss 0.3  acc 0.5" in told and "collapse: few codes" in told


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 7))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 7, "lo')  # a crash cut it off
    write(tmp_path, 4, range(5, 8))
    assert [entry["step"] for entry in entries(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]


def test_tensorboard_reads_the_scalars_once_each(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path, 0, range(1, 7))
    time.sleep(1.1)  # its files are read in the order of their names, which tell the second
    write(tmp_path, 4, range(5, 8))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/code_perplexity"}
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2, 3, 4, 5, 6, 7]
    assert losses[3].value == pytest.approx(1 / 4)


def test_other_ranks_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Logs(tmp_path, total=10, done=0, active=False, tell=Console()) as logs:
        logs.numbers("train", 1, {"loss": 1.0})
        logs.event("collapse", 1, "few codes")
        logs.step()
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().err
