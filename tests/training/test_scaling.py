"""Loss scaling for fp16: what overflows is tried again smaller, and a run goes on with the scale it had."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from speech_ssl.runs.console import Console
from speech_ssl.training import scaling
from speech_ssl.training.checkpoint import BEST, LAST
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.guard import BAD_STEPS
from speech_ssl.training.health import NonFinite
from speech_ssl.training.loop import train
from speech_ssl.training.scaling import LEAST, MOST, START, LossScale
from speech_ssl.types import Batch, LossSum
from tests.training.toys import CPU, Crash, Guess, Poisoned, lines, wave

CONFIG = TrainConfig(
    steps=12, batches_per_step=4, peak_lr=0.01, log_every=1, valid_every=4, save_every=5, precision="fp16"
)
NAN = float("nan")


def adapted(scale: LossScale, *steps: str) -> list[tuple[float, bool]]:
    """The scale after each step, and whether that was skipped for it alone."""
    found = []
    for step in steps:
        skip, loss_finite = torch.tensor(step != "taken"), torch.tensor(step != "bad loss")
        overflown = bool(scale.adapt(skip, loss_finite))
        found.append((scale.numbers()["scale"], overflown))
    return found


def test_it_shrinks_where_gradients_overflow_and_grows_where_they_have_not_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scaling, "GROWS_AFTER", 3)
    scale = LossScale(CPU.device, {}, active=True)
    taken = ["taken"] * 3
    assert adapted(scale, "overflow", *taken[:2], "overflow", *taken, *taken[:2]) == [
        (START / 2, True),
        (START / 2, False),
        (START / 2, False),
        (START / 4, True),
        (START / 4, False),
        (START / 4, False),
        (START / 2, False),
        (START / 2, False),
        (START / 2, False),
    ]
    again = LossScale(CPU.device, scale.numbers(), active=True)
    assert adapted(again, "taken") == adapted(scale, "taken") == [(START, False)]


def test_no_scale_makes_a_loss_finite_nor_is_there_one_below_the_least() -> None:
    scale = LossScale(CPU.device, {"scale": 2 * LEAST}, active=True)
    assert adapted(scale, "bad loss", "overflow", "overflow") == [
        (2 * LEAST, False),
        (LEAST, True),
        (LEAST, False),
    ]
    scale = LossScale(CPU.device, {"scale": MOST, "clean": scaling.GROWS_AFTER - 1}, active=True)
    assert adapted(scale, "taken") == [(MOST, False)]


def test_without_fp16_there_is_none() -> None:
    scale, loss = LossScale(CPU.device, {"scale": 8.0}, active=False), torch.tensor(3.0)
    assert scale.scaled(loss) is loss and scale.unscaled(loss) is loss and scale.numbers() == {}
    assert not scale.adapt(torch.tensor(True), torch.tensor(True))


def run(out: Path, batches: Any, config: TrainConfig = CONFIG, objective: Guess | None = None) -> Guess:
    out.mkdir(exist_ok=True)
    objective = objective or Guess()
    train(objective, batches, lambda: [wave(1001), wave(1002)], config, out=out, ranks=CPU, tell=Console())
    return objective


def entries(out: Path, kind: str) -> list[dict[str, Any]]:
    return [entry for line in lines(out) if (entry := json.loads(line))["kind"] == kind]


def test_it_trains_as_fp32_does(tmp_path: Path) -> None:
    seen = []

    class Seen(Guess):
        def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
            seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
            return super().forward(batch, generator=generator)

    run(tmp_path / "half", Poisoned({}), objective=Seen())
    assert set(seen) == {torch.float16}
    run(tmp_path / "full", Poisoned({}), replace(CONFIG, precision="fp32"))
    half, full = (entries(tmp_path / name, "train") for name in ("half", "full"))
    for mine, its in zip(half, full, strict=True):
        assert mine["loss"] == pytest.approx(its["loss"], rel=0.01)
        assert mine["grad_norm"] == pytest.approx(its["grad_norm"], rel=0.05)
        assert mine["loss_scale"] == START and mine["skipped_steps"] == 0
    assert "loss_scale" not in full[0]


class Steep(Guess):
    """`Guess` whose gradients overflow in fp16 with a scale above 1 / 2, where a wave begins with 200."""

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        loss = super().forward(batch, generator=generator)
        bias = self.out.bias.half()  # its gradient passes through fp16
        steep = (batch.wave_BS[0, 0] >= 200) * 100_000.0
        return replace(loss, total=loss.total + (bias.float() * steep).sum())


STEEP = {9: 200.0, 17: 200.0, 21: 200.0}
"""Of steps 3, 5 and 6."""


def test_an_overflow_is_skipped_shrinks_the_scale_and_is_no_bad_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, Poisoned(STEEP), replace(CONFIG, max_bad_steps=1), Steep())
    scales = [entry["loss_scale"] / START for entry in entries(tmp_path, "train")]
    assert scales == [1, 1, 1 / 2, 1 / 2, 1 / 4, *[1 / 8] * 7]
    assert [entry["skipped_steps"] for entry in entries(tmp_path, "train")][-1] == 3
    assert not (tmp_path / BAD_STEPS).exists() and "bad_step" not in capsys.readouterr().err
    assert not any("NaN" in line or "Infinity" in line for line in lines(tmp_path))


def test_in_many_steps_it_finds_its_scale(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=16, batches_per_step=1, max_bad_steps=1)
    run(tmp_path, Poisoned(dict.fromkeys(range(1, 17), 200.0)), config, Steep())
    last = entries(tmp_path, "train")[-1]
    assert last["loss_scale"] == 0.5 and last["skipped_steps"] == 7 and last["loss"] > 0


def test_at_the_least_scale_it_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "LEAST", START / 2)
    with pytest.raises(NonFinite, match="at step 4, the last of 3.*--set precision=fp32"):
        run(
            tmp_path,
            Poisoned(dict.fromkeys(range(1, 49), 200.0)),
            replace(CONFIG, max_bad_steps=3),
            Steep(),
        )
    named = [json.loads(line)["step"] for line in (tmp_path / BAD_STEPS).read_text().splitlines()]
    assert sorted(set(named)) == [2, 3, 4]


def test_a_loss_that_is_not_finite_is_bad_whatever_the_scale(tmp_path: Path) -> None:
    run(tmp_path, Poisoned({9: NAN}))
    assert {entry["loss_scale"] for entry in entries(tmp_path, "train")} == {START}
    assert [entry["step"] for entry in entries(tmp_path, "bad_step")] == [3]


@pytest.mark.parametrize("crash_at", [8, 20, 23, 30, 47])
def test_a_crash_anywhere_and_resume_ends_at_the_same_bits(
    tmp_path: Path, crash_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "GROWS_AFTER", 4)
    run(tmp_path / "whole", Poisoned(STEEP), objective=Steep())
    with pytest.raises(Crash):
        run(tmp_path / "broken", Poisoned(STEEP, crash_at=crash_at), objective=Steep())
    run(tmp_path / "broken", Poisoned(STEEP), objective=Steep())
    for name in (LAST, BEST):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    whole, broken = (entries(tmp_path / name, "train") for name in ("whole", "broken"))
    clocks = {"seconds", "audio_s_per_s"}
    assert [{k: v for k, v in entry.items() if k not in clocks} for entry in whole] == [
        {k: v for k, v in entry.items() if k not in clocks} for entry in broken
    ]
    with safe_open(tmp_path / "whole" / LAST, "pt") as file:
        kept = json.loads(file.metadata()["state"])["guard"]
    assert kept == {"in_a_row": 0.0, "skipped": 3.0, "scale": START / 4, "clean": 2.0}
