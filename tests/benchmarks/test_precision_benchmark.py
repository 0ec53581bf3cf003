"""The benchmark of precisions: it runs, counts as it says, and notices a bad choice and a bad result."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import precision
from benchmarks.precision import Step, in_turns, told


def test_a_small_form_tells_each_precision_and_what_auto_took(capsys, monkeypatch):
    """How fast a machine is, is not tested: the limit is out of reach."""
    monkeypatch.setattr(precision, "LIMIT", 1e9)
    assert precision.main(["--tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split()[0] for line in lines if line.startswith("  ")]
    assert rows == ["fp32", "bf16", "fp16", "auto", "fp32", "bf16", "fp16", "int8", "auto"]
    assert sum("auto / best" in line for line in lines) == 2
    assert "training step, 1 s of speech" in lines[1] and "inference, tiny, 1 s of speech" in lines[6]
    assert lines[-2].endswith("apart")


def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(at=0.0)
    monkeypatch.setattr(precision, "time", SimpleNamespace(perf_counter=lambda: now.at))
    return now


def test_passes_take_turns_and_the_first_only_warms_up(monkeypatch):
    now, order = clock(monkeypatch), []

    def passing(name, seconds):
        times = iter(seconds)

        def run():
            order.append(name)
            now.at += next(times)
            return len(order)

        return run

    timed = in_turns({"a": passing("a", [2, 1, 3, 9]), "slow": passing("slow", [4])}, repeats=3)
    assert order == ["a", "slow", "a", "a", "a"]
    assert (timed["a"].seconds, timed["a"].value) == (3, 1)
    assert (timed["slow"].seconds, timed["slow"].value) == (4, 2)


ERRORS = {"fp32": 0.0, "bf16": 0.01, "fp16": 0.001, "int8": 0.5}


@pytest.mark.parametrize(
    ("seconds", "errors", "claims"),
    [
        ({"fp32": 1.0, "bf16": 1.0, "fp16": 9.0, "int8": 0.1}, {}, []),
        ({"fp32": 1.1, "bf16": 1.0, "fp16": 9.0}, {}, []),
        ({"fp32": 1.2, "bf16": 1.0, "fp16": 9.0}, {}, ["it: auto takes 1.20 times the best"]),
        ({"fp32": 1.0, "bf16": 2.0}, {"bf16": 0.04}, ["it: bf16 is 4.00% off fp32, more than 3%"]),
        ({"fp32": 1.0, "fp16": 2.0}, {"fp16": math.nan}, ["it: fp16 is nan% off fp32, more than 3%"]),
    ],
)
def test_what_does_not_hold_is_said(seconds, errors, claims):
    assert told("it", seconds, ERRORS | errors, "fp32", 0.03) == claims


def test_a_wrong_result_ends_with_status_1(monkeypatch, capsys):
    monkeypatch.setattr(precision, "LIMIT", 1e9)
    steps = {"fp32": Step(4.0, 1.0), "bf16": Step(4.01, math.inf), "fp16": Step(4.2, 1.0)}
    frames = {name: np.full((5, 2), value, np.float32) for name, value in (("fp32", 1.0), ("bf16", 1.02))}
    monkeypatch.setattr(precision, "training", lambda *a: {n: lambda n=n: steps[n] for n in steps})
    monkeypatch.setattr(precision, "inference", lambda *a: {n: lambda n=n: frames[n] for n in frames})
    monkeypatch.setattr(precision, "resolve", lambda precision, device: "fp32")
    monkeypatch.setattr("speech_ssl.inference.arithmetic.native", lambda device: "fp32")
    assert precision.main(["--tiny"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-2].endswith("bf16 is nan% off fp32, more than 2%")
    assert said[-1].endswith("fp16 is 5.00% off fp32, more than 2%")
