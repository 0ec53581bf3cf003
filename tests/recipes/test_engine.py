"""`--engine` where fairseq2 is not installed; `tests/fairseq2` runs where it is."""

from __future__ import annotations

import sys

import pytest

from speech_ssl.runs.pretraining import ENGINES, trainer_of
from speech_ssl.training.loop import train
from tests.recipes.test_command import call


def test_the_default_is_our_own_loop():
    assert ENGINES[0] == "local" and trainer_of("local") is train


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_a_missing_engine_is_one_line(engine, prompts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fairseq2", None)
    ended = call(
        "brief", "--manifest", prompts / "manifest.tsv", "--out", tmp_path / "run", "--engine", engine
    )
    assert ended.status == 2 and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(f"error: --engine {engine} needs fairseq2 (")
    assert "scripts/install-fairseq2" in ended.stderr and ".venv-fairseq2/bin/python" in ended.stderr
    assert not (tmp_path / "run").exists()
