"""The figure of a run: a real PNG, from a log as the loop writes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speech_ssl.evaluation.figures import main, read_log


def entry(kind: str, step: int) -> str:
    numbers = {"loss": 4.6, "contrastive": 4.5, "accuracy": 0.1, "chance": 0.01, "code_perplexity": 99.0}
    return json.dumps({"kind": kind, "step": step, **numbers})


def test_a_runs_log_becomes_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lines = [entry("train", 10), entry("train", 20), entry("valid", 20)]
    lines.append(json.dumps({"kind": "collapse", "step": 20, "message": "few codes"}))
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    assert {kind: len(found) for kind, found in read_log(tmp_path / "log.jsonl").items()} == {
        "train": 2,
        "valid": 1,
        "collapse": 1,
    }
    assert main([str(tmp_path), str(tmp_path / "curves.png")]) == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_log_of_one_line_and_one_without_guessing(tmp_path: Path) -> None:
    """As of a run that has just begun, and of one with labels."""
    pytest.importorskip("matplotlib")
    tuned = [json.dumps({"kind": k, "step": 1, "loss": 0.5, "accuracy": 0.5}) for k in ("train", "valid")]
    for lines in ([entry("train", 0)], [entry("valid", 0)], tuned):
        (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
        assert main([str(tmp_path), str(tmp_path / "curves.png")]) == 0


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main([str(tmp_path), "x.png"]) == 2
    (tmp_path / "log.jsonl").write_text("not json\n")
    assert main([str(tmp_path), "x.png"]) == 2
    assert "line 1: not an entry" in capsys.readouterr().err
    (tmp_path / "log.jsonl").write_text("")
    assert main([str(tmp_path), "x.png"]) == 2
    assert "holds no numbers yet" in capsys.readouterr().err
