"""The smoke run of wav2vec 2.0 as a user starts it: a process of its own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from speech_ssl.training.checkpoint import LAST
from tests import warm

RECIPE = "recipes.pretrain_wav2vec2"
PATIENCE_S = 300.0  # for what takes seconds on a quiet machine
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@dataclass
class Process:
    """A run under way. What it says goes to a file: its workers outlive a kill by a few seconds, and
    would keep a pipe open."""

    popen: warm.Popen
    out: Path
    said: Path

    def wait(self) -> int:
        return self.popen.wait(PATIENCE_S)

    @property
    def stderr(self) -> str:
        return self.said.read_text(encoding="utf-8")

    def wait_for_step(self, step: int) -> None:
        """Until the log tells of a step at least so far."""
        deadline = time.monotonic() + PATIENCE_S
        while not any(entry["step"] >= step for entry in log(self.out, "train")):
            assert self.popen.poll() is None, f"the run ended before step {step}: {self.stderr}"
            assert time.monotonic() < deadline, f"no step {step} within {PATIENCE_S} s: {self.stderr}"
            time.sleep(0.01)


@contextmanager
def smoke(
    manifest: Path, out: Path, *options: str, launcher: tuple[str, ...] = (RECIPE,)
) -> Iterator[Process]:
    said = out.with_name(f"{out.name}.stderr")
    command = [
        *launcher,
        "smoke",
        "--device",
        "cpu",
        *options,
        "--manifest",
        str(manifest),
        "--out",
        str(out),
    ]
    with said.open("wb") as file:
        popen = warm.Popen(command, stdout=file, stderr=file, env=ENVIRONMENT)
    try:
        yield Process(popen, out, said)
    finally:
        if popen.poll() is None:
            popen.kill()
        popen.wait()


def complete(manifest: Path, out: Path, *options: str, **how: Any) -> None:
    with smoke(manifest, out, *options, **how) as process:
        assert process.wait() == 0, process.stderr


def log(out: Path, kind: str) -> list[dict[str, Any]]:
    path = out / "log.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    entries = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [entry for entry in entries if entry["kind"] == kind]


def weights(out: Path) -> dict[str, Tensor]:
    """Of the last checkpoint, the optimizer's too."""
    return load_file(out / LAST)


def assert_bits_equal(one: Path, other: Path) -> None:
    mine, its = weights(one), weights(other)
    assert mine.keys() == its.keys()
    for name, value in mine.items():
        assert torch.equal(value, its[name]), name
