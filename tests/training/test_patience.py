"""Early stopping, which of two equals is kept, and the probe that looks in on a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from speech_ssl.objectives.base import Objective
from speech_ssl.training.checkpoint import BEST, LAST, RunState, load_checkpoint
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.loop import is_better, train
from tests.training.toys import CPU, Guess, lines, wave, waves

pytestmark = pytest.mark.numerical

CONFIG = TrainConfig(steps=40, peak_lr=0.01, log_every=4, valid_every=2, save_every=5, precision="fp32")


class Rated(Guess):
    """`Guess` whose held-out `score` follows a script, one number a validation."""

    best_by = "score"
    higher_is_better = True

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = scores
        self.validations: Tensor
        self.register_buffer("validations", torch.zeros((), dtype=torch.int64))

    def report(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        return super().report(means) | {"score": self.scores[max(int(self.validations) - 1, 0)]}

    def train(self, mode: bool = True) -> Rated:
        if mode and not self.training:
            self.validations += 1
        super().train(mode)
        return self


def run(out: Path, objective: Objective, config: TrainConfig = CONFIG, **options: Any) -> RunState:
    out.mkdir(exist_ok=True)
    return train(objective, waves, lambda: [wave(1001)], config, out=out, ranks=CPU, **options)


def entries(out: Path, kind: str) -> list[dict[str, Any]]:
    return [entry for line in lines(out) if (entry := json.loads(line))["kind"] == kind]


def test_what_a_run_starts_from_may_be_its_best(tmp_path: Path) -> None:
    state = run(tmp_path, Rated([0.9] + [0.5] * 30), replace(CONFIG, patience=4, valid_at_start=True))
    assert [entry["step"] for entry in entries(tmp_path, "valid")] == [0, 2, 4, 6, 8]
    assert (state.step, state.best) == (8, 0.9)
    kept = Rated([])
    assert load_checkpoint(tmp_path / BEST, kept).step == 0
    for name, parameter in kept.named_parameters():
        assert torch.equal(parameter, dict(Guess().named_parameters())[name])
    run(tmp_path, Rated([0.9] * 30), replace(CONFIG, steps=8, valid_at_start=True))
    assert entries(tmp_path, "valid")[-1]["step"] == 8  # not again where it goes on


RISING_THEN_FLAT = [0.1, 0.3, 0.2, 0.6, 0.5, 0.4, 0.3, 0.9, 0.9, 0.9] + [0.0] * 20


def test_it_ends_when_patience_does(tmp_path: Path) -> None:
    state = run(tmp_path, Rated(RISING_THEN_FLAT), replace(CONFIG, patience=3))
    assert state.step == 14  # the best at step 8, then three worse ones
    assert [entry["score"] for entry in entries(tmp_path, "valid")] == RISING_THEN_FLAT[:7]
    kept = load_checkpoint(tmp_path / BEST, Rated([]))
    assert (kept.step, kept.best) == (8, 0.6)
    assert load_checkpoint(tmp_path / LAST, Rated([])).step == 14


def test_without_patience_it_takes_all_its_steps(tmp_path: Path) -> None:
    assert run(tmp_path, Rated(RISING_THEN_FLAT)).step == 40
    assert load_checkpoint(tmp_path / BEST, Rated([])).best == 0.9


def test_a_run_that_ended_is_not_taken_up_again(tmp_path: Path) -> None:
    config = replace(CONFIG, patience=3)
    run(tmp_path, Rated(RISING_THEN_FLAT), config)
    before = (tmp_path / LAST).read_bytes()
    assert run(tmp_path, Rated(RISING_THEN_FLAT), config).step == 14
    assert (tmp_path / LAST).read_bytes() == before


def test_patience_outlives_a_crash(tmp_path: Path) -> None:
    class Crash(Exception):
        pass

    def crashing(state: dict[str, Any] | None):  # type: ignore[no-untyped-def]
        for batch, after in waves(state):
            if after["number"] == 12:
                raise Crash
            yield batch, after

    config = replace(CONFIG, patience=3)
    (tmp_path / "broken").mkdir()
    with pytest.raises(Crash):
        train(
            Rated(RISING_THEN_FLAT),
            crashing,
            lambda: [wave(1001)],
            config,
            out=tmp_path / "broken",
            ranks=CPU,
        )
    run(tmp_path / "broken", Rated(RISING_THEN_FLAT), config)
    run(tmp_path / "whole", Rated(RISING_THEN_FLAT), config)
    assert (tmp_path / "whole" / LAST).read_bytes() == (tmp_path / "broken" / LAST).read_bytes()


@pytest.mark.parametrize(
    ("higher", "score", "loss", "better"),
    [
        (False, 0.4, 9.0, True),
        (False, 0.6, 0.0, False),
        (True, 0.6, 9.0, True),
        (True, 0.4, 0.0, False),
        (True, 0.5, 0.9, True),
        (True, 0.5, 1.0, False),
        (False, 0.5, 0.9, True),
        (True, float("nan"), 0.0, False),
        (False, float("-inf"), 0.0, False),
    ],
)
def test_what_is_better(higher: bool, score: float, loss: float, better: bool) -> None:
    objective = Guess()
    objective.higher_is_better = higher
    state = RunState(best=0.5, best_loss=1.0)
    assert is_better(objective, score, loss, state) == better


def test_a_probe_looks_in_and_changes_nothing(tmp_path: Path) -> None:
    seen: list[int] = []

    def probe(objective: Objective) -> dict[str, float]:
        seen.append(1)
        torch.randn(7)  # draws from the global state, as a careless one may
        return {"knn": 0.5 + len(seen)}

    config = replace(CONFIG, probe_every=16)
    run(tmp_path / "probed", Guess(), config, probe=probe)
    run(tmp_path / "alone", Guess(), config)
    found = entries(tmp_path / "probed", "probe")
    assert [(entry["step"], entry["knn"]) for entry in found] == [(16, 1.5), (32, 2.5), (40, 3.5)]
    assert (tmp_path / "probed" / LAST).read_bytes() == (tmp_path / "alone" / LAST).read_bytes()
