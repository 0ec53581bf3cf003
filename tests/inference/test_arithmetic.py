"""What "auto" takes, and what is said of an arithmetic that is emulated."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import speech_ssl
from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.inference import Runtime, arithmetic
from speech_ssl.inference.arithmetic import AUTO_ERROR, check_precision, fitted
from speech_ssl.types import Waveform

CPU = torch.device("cpu")


@pytest.fixture
def computes(monkeypatch: pytest.MonkeyPatch):
    """The device computes so natively, whatever it is."""
    return lambda chosen: monkeypatch.setattr(arithmetic, "native", lambda device: chosen)


@pytest.fixture
def speech(prompts: Path) -> Waveform:
    return speech_ssl.audio.decode(prompts / "audio" / "hello.flac")


def relative(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def test_auto_is_fp32_where_nothing_else_is_native(tiny_artifact, computes):
    computes("fp32")
    assert speech_ssl.load(tiny_artifact).precision == "fp32"


@pytest.mark.parametrize("chosen", ["bf16", "fp16"])
def test_auto_takes_what_is_native_and_stays_within_the_error_it_states(
    tiny_artifact, computes, speech, chosen
):
    computes(chosen)
    runtime = speech_ssl.load(tiny_artifact)
    assert runtime.precision == chosen
    exact = speech_ssl.load(tiny_artifact, precision="fp32")
    for layer in range(exact.num_layers + 1):
        frames = runtime.encode([speech], layer=layer)[0].frames
        error = relative(frames, exact.encode([speech], layer=layer)[0].frames)
        assert 1e-5 < error < AUTO_ERROR


def test_auto_takes_fp32_where_the_error_would_be_larger(
    tiny_artifact, computes, monkeypatch, caplog, speech
):
    computes("bf16")
    monkeypatch.setattr(arithmetic, "AUTO_ERROR", 0.001)
    with caplog.at_level(logging.INFO):
        runtime = speech_ssl.load(tiny_artifact)
    assert runtime.precision == "fp32"
    assert "bf16 is 1." in caplog.text and caplog.text.rstrip().endswith("fp32 is taken")
    exact = speech_ssl.load(tiny_artifact, precision="fp32")
    assert np.array_equal(runtime.encode([speech])[0].frames, exact.encode([speech])[0].frames)
    assert all(p.dtype == torch.float32 for p in runtime._engine.encoder.parameters())


def test_auto_takes_fp32_where_fp16_overflows(tiny_artifact, computes):
    artifact = load_artifact(tiny_artifact)
    with torch.no_grad():
        artifact.encoder.blocks[1].ffn.down.weight.mul_(1e6)
    computes("fp16")
    runtime = Runtime(artifact)
    assert runtime.precision == "fp32"
    computes("bf16")  # whose numbers are as large as those of fp32
    assert Runtime(artifact).precision == "bf16"


def test_what_auto_takes_does_not_depend_on_the_threads(tiny_artifact, computes, monkeypatch):
    """Processes that share the cores otherwise must not disagree."""
    computes("bf16")
    artifact = load_artifact(tiny_artifact)
    errors = []
    distance = arithmetic._distance
    monkeypatch.setattr(arithmetic, "_distance", lambda *a: errors.append(distance(*a)) or errors[-1])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            fitted(artifact.encoder, CPU, "auto")
    finally:
        torch.set_num_threads(threads)
    assert max(errors) - min(errors) < 1e-4 < min(errors)


def test_nothing_is_tried_where_auto_leaves_no_choice(tiny_artifact, computes, monkeypatch):
    monkeypatch.setattr(arithmetic, "_states", None)
    for chosen in ("fp32", "bf16"):
        computes(chosen)
        assert speech_ssl.load(tiny_artifact, precision="fp32").precision == "fp32"
        assert speech_ssl.load(tiny_artifact, precision="int8").precision == "int8"
    computes("fp32")
    assert speech_ssl.load(tiny_artifact).precision == "fp32"


@pytest.mark.parametrize("asked", ["bf16", "fp16"])
def test_what_is_emulated_is_done_and_told_once(tiny_artifact, monkeypatch, caplog, speech, asked):
    monkeypatch.setattr(arithmetic, "emulation", lambda precision, device: f"{precision} is slow on {device}")
    runtime = speech_ssl.load(tiny_artifact, precision=asked)
    assert [record.getMessage() for record in caplog.records] == [f"{asked} is slow on cpu"]
    exact = speech_ssl.load(tiny_artifact, precision="fp32").encode([speech])[0].frames
    frames = runtime.encode([speech])[0].frames
    assert 1e-5 < relative(frames, exact) < 0.03
    assert len(caplog.records) == 1


def test_int8_needs_a_cpu_and_its_kernels(monkeypatch):
    with pytest.raises(ValueError, match="int8' runs on the CPU only"):
        check_precision("int8", torch.device("cuda"))
    monkeypatch.setattr(torch.backends, "quantized", SimpleNamespace(engine="none"))
    with pytest.raises(ValueError, match="no int8 kernels"):
        check_precision("int8", CPU)
