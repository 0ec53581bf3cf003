"""The loop around an objective of a few weights: resume, stops, logs, and two ranks as one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from speech_ssl.runs.console import Console
from speech_ssl.training.checkpoint import BEST, LAST, RunState, load_checkpoint
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.guard import BAD_STEPS, Guard
from speech_ssl.training.health import Collapsed
from speech_ssl.training.loop import Stopped, accumulate, check_same_start, evaluate, train
from speech_ssl.training.meter import Meter
from speech_ssl.training.ranks import Ranks, joined_ranks, pick_device
from speech_ssl.types import Batch
from tests.training.toys import CPU, Crash, Guess, Poisoned, Scripted, lines, shared_waves, wave, waves

pytestmark = pytest.mark.numerical

CONFIG = TrainConfig(
    steps=12, batches_per_step=4, peak_lr=0.01, log_every=3, valid_every=4, save_every=5, precision="fp32"
)
HELD_OUT = [wave(number) for number in range(1001, 1004)]


def run(
    out: Path, objective: Guess | None = None, config: TrainConfig = CONFIG, batches: Any = waves
) -> Guess:
    out.mkdir(exist_ok=True)
    objective = objective or Guess()
    train(objective, batches, lambda: HELD_OUT, config, out=out, ranks=CPU, tell=Console())
    return objective


def entries(out: Path, kind: str) -> list[dict[str, Any]]:
    return [entry for line in lines(out) if (entry := json.loads(line))["kind"] == kind]


def test_what_a_run_leaves(tmp_path: Path) -> None:
    run(tmp_path)
    assert [entry["step"] for entry in entries(tmp_path, "train")] == [3, 6, 9, 12]
    validations = entries(tmp_path, "valid")
    assert [entry["step"] for entry in validations] == [4, 8, 12]
    assert load_checkpoint(tmp_path / LAST, Guess()).step == 12
    best = min(validations, key=lambda entry: entry["loss"])
    state = load_checkpoint(tmp_path / BEST, kept := Guess())
    assert (state.step, state.best) == (best["step"], best["loss"])
    assert evaluate(kept, HELD_OUT, CONFIG, CPU)["loss"] == best["loss"]


def test_the_best_is_kept_where_later_ones_are_worse(tmp_path: Path) -> None:
    run(tmp_path, Scripted({n: -100.0 for n in range(32, 48)}))  # from step 8 on it learns the contrary
    losses = {entry["step"]: entry["loss"] for entry in entries(tmp_path, "valid")}
    assert losses[8] < losses[4] and losses[8] < losses[12]
    assert load_checkpoint(tmp_path / BEST, Guess()).step == 8


@pytest.mark.parametrize("crash_at", [1, 20, 23, 41, 47])
def test_a_crash_anywhere_and_resume_ends_at_the_same_bits(tmp_path: Path, crash_at: int) -> None:
    def crashing(state: dict[str, Any] | None) -> Iterator[tuple[Batch, dict[str, Any]]]:
        for batch, after in waves(state):
            if after["number"] == crash_at:
                raise Crash
            yield batch, after

    run(tmp_path / "whole")
    with pytest.raises(Crash):
        run(tmp_path / "broken", batches=crashing)
    again = Guess()
    if (tmp_path / "broken" / LAST).exists():
        torch.nn.init.ones_(again.hidden.weight)  # where there is a checkpoint, all comes from it
    run(tmp_path / "broken", again)
    for name in (LAST, BEST):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    whole, broken = entries(tmp_path / "whole", "valid"), entries(tmp_path / "broken", "valid")
    assert whole == broken
    steps = [[e["step"] for e in entries(tmp_path / name, "train")] for name in ("whole", "broken")]
    assert steps[0] == steps[1] == [3, 6, 9, 12]


WATCHED = replace(CONFIG, log_every=1, valid_every=12, watch_after=0.25, watch_patience=3)


def test_a_collapse_is_told_once_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, Scripted(codes=2.0), WATCHED)
    event, held_out = entries(tmp_path, "collapse")
    assert event["step"] == 5  # the watch begins at step 3, and waits for three lines
    assert "use more codes" in event["message"]
    assert held_out["step"] == 12 and "(valid: 2)" in held_out["message"]
    assert "collapse: codes has been below 10" in capsys.readouterr().err


def test_a_collapse_stops_the_run_if_wanted(tmp_path: Path) -> None:
    with pytest.raises(Collapsed, match=r"use more codes\. Stopped at step 5"):
        run(tmp_path, Scripted(codes=2.0), replace(WATCHED, on_collapse="stop"))
    assert entries(tmp_path, "train")[-1]["step"] == 5


def test_the_count_of_a_fall_survives_a_resume(tmp_path: Path) -> None:
    def until_6(state: dict[str, Any] | None) -> Iterator[tuple[Batch, dict[str, Any]]]:
        for batch, after in waves(state):
            if after["number"] > 24:
                raise Crash
            yield batch, after

    config = replace(WATCHED, save_every=4)
    with pytest.raises(Crash):
        run(tmp_path, Scripted(codes=2.0), config, until_6)
    run(tmp_path, Scripted(codes=2.0), config)
    assert [event["step"] for event in entries(tmp_path, "collapse")] == [5, 12]


def test_collapsed_weights_are_never_the_best(tmp_path: Path) -> None:
    """With one code in use the contrastive loss is 0, which nothing healthy could beat."""
    run(tmp_path / "all", Scripted(codes=2.0))
    assert not (tmp_path / "all" / BEST).exists()

    class Recovering(Scripted):
        def set_progress(self, progress: float) -> None:
            self.codes = 2.0 if progress < 0.5 else 20.0

        def forward(self, batch: Batch, *, generator: torch.Generator):  # type: ignore[no-untyped-def]
            loss = super().forward(batch, generator=generator)
            return replace(loss, total=loss.total * (0.0 if self.codes < 10 else 1.0))

    run(tmp_path / "some", Recovering())
    assert [e["loss"] == 0 for e in entries(tmp_path / "some", "valid")] == [True, False, False]
    assert load_checkpoint(tmp_path / "some" / BEST, Recovering()).step > 4


def test_a_score_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    class Unscored(Guess):
        best_by = "score"

        def report(self, means):  # type: ignore[no-untyped-def]
            return {"score": float("nan")}

    run(tmp_path, Unscored())
    assert not (tmp_path / BEST).exists()


def test_a_process_that_does_not_see_the_checkpoint_is_refused(tmp_path: Path) -> None:
    class Two(Ranks):
        def all_sum(self, tensor: Tensor) -> Tensor:
            others.append(7.0 if not others else 0.0)  # the other one is at step 7, and has no complaint
            return tensor + others[-1]

    for step in (0, 7):
        others: list[float] = []
        with pytest.raises(ValueError, match="the same folder") if step == 0 else nullcontext():
            check_same_start(RunState(step=step), tmp_path, Two(1, 2, torch.device("cpu")))


@pytest.mark.parametrize("name", ["gpu", "xpu", "meta", "cuda:99", "cuda:x", ""])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match="none of auto|no CUDA device|there is no"):
        pick_device(name)


def test_a_healthy_run_is_not_warned(tmp_path: Path) -> None:
    run(tmp_path, Scripted(codes=20.0), WATCHED)
    assert not entries(tmp_path, "collapse")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    def signalled(state: dict[str, Any] | None) -> Iterator[tuple[Batch, dict[str, Any]]]:
        for batch, after in waves(state):
            if after["number"] == 27:  # in step 6; checkpoints are due at 5 and 10
                signal.raise_signal(number)
            yield batch, after

    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"stopped by {number.name} after step 8; the state is saved") as caught:
        run(tmp_path / "stopped", batches=signalled)
    assert caught.value.signal == number
    assert signal.getsignal(number) is before
    assert load_checkpoint(tmp_path / "stopped" / LAST, Guess()).step == 8
    run(tmp_path / "stopped")
    run(tmp_path / "whole")
    assert (tmp_path / "stopped" / LAST).read_bytes() == (tmp_path / "whole" / LAST).read_bytes()


def guarding(out: Path) -> Guard:
    return Guard(CONFIG, RunState(), CPU, out)


def test_the_mean_is_over_targets_not_over_batches(tmp_path: Path) -> None:
    objective = Guess().eval()  # no dropout in the layer: the same in both passes
    meter = Meter(CPU)
    config = replace(CONFIG, steps=1)
    sums = accumulate(objective, waves(None), RunState(), config, CPU, meter, guarding(tmp_path))
    meter.add(sums, torch.tensor(1.0), torch.tensor(False))
    numbers = meter.flush(objective)
    batches = [wave(number) for number in range(1, 5)]
    samples = sum(int(batch.lengths_B.sum()) for batch in batches)
    assert len({int(batch.lengths_B.sum()) for batch in batches}) > 1
    rows = [(row, n) for batch in batches for row, n in zip(batch.wave_BS, batch.lengths_B, strict=True)]
    energy = sum(float(row[:n].square().sum()) for row, n in rows) / samples
    assert numbers["energy"] == pytest.approx(energy, rel=1e-5)
    assert numbers["audio_s_per_s"] * numbers["seconds"] == pytest.approx(samples / 16_000)


def test_many_batches_a_step_are_one_large_batch(tmp_path: Path) -> None:
    """The gradient is that of the mean over all targets of the step."""

    class Plain(Guess):
        def forward(self, batch: Batch, *, generator: torch.Generator):  # type: ignore[no-untyped-def]
            return super().forward(batch, generator=torch.Generator().manual_seed(0))

    objective = Plain().eval()
    sums = accumulate(objective, waves(None), RunState(), CONFIG, CPU, Meter(CPU), guarding(tmp_path))
    gradient = objective.hidden.weight.grad
    assert gradient is not None
    one = Plain().eval()
    losses = [one(wave(number), generator=torch.Generator()) for number in range(1, 5)]
    total, count = sum(loss.total for loss in losses), sum(loss.count for loss in losses)
    (total / count).backward()
    torch.testing.assert_close(gradient / sums.count, one.hidden.weight.grad)


def outcome(ranks: Ranks, out: Path) -> dict[str, Any]:
    """Of a run, and of validation with fewer batches than there are ranks."""
    out.mkdir(exist_ok=True)
    objective = Guess()

    def batches(state: dict[str, Any] | None) -> Iterator[tuple[Batch, dict[str, Any]]]:
        return shared_waves(ranks.rank, ranks.world)

    train(objective, batches, lambda: HELD_OUT, CONFIG, out=out, ranks=ranks)
    evaluations = [evaluate(objective, HELD_OUT[:n], CONFIG, ranks) for n in (0, 1, 2, 3)]
    return {
        "weights": objective.state_dict(),
        "evaluations": evaluations,
        "stopped": stop(ranks, out),
        "skipped": skip(ranks, out).state_dict(),
        "told": ranks.from_first(f"rank {ranks.rank}"),
    }


def skip(ranks: Ranks, out: Path) -> Guess:
    """After a run two of whose batches are bad: of those, two ranks have one each."""

    def batches(state: dict[str, Any] | None) -> Iterator[tuple[Batch, dict[str, Any]]]:
        for number, (batch, after) in enumerate(Poisoned({6: float("nan"), 27: float("inf")})(None)):
            if number % ranks.world == ranks.rank:
                yield batch, after

    (folder := out / "skip").mkdir(exist_ok=True)
    train(objective := Guess(), batches, lambda: (), CONFIG, out=folder, ranks=ranks)
    return objective


def stop(ranks: Ranks, out: Path) -> str:
    """Where the ranks leave when one of them is signalled."""

    def batches(state: dict[str, Any] | None) -> Iterator[tuple[Batch, dict[str, Any]]]:
        for number, item in enumerate(shared_waves(ranks.rank, ranks.world)):
            if number == 3 * CONFIG.batches_per_step // ranks.world and ranks.rank == ranks.world - 1:
                signal.raise_signal(signal.SIGTERM)
            yield item

    (folder := out / "stop").mkdir(exist_ok=True)
    with pytest.raises(Stopped) as caught:
        train(Guess(), batches, lambda: (), CONFIG, out=folder, ranks=ranks)
    return str(caught.value)


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = (folder / "port").read_text()
    with joined_ranks("cpu") as ranks:
        torch.save(outcome(ranks, folder / "two"), folder / f"{rank}.pt")
    os._exit(0)  # what torch's own threads do while Python ends is not what is tested


def test_two_ranks_are_one_process(tmp_path: Path, free_port: int) -> None:
    (tmp_path / "port").write_text(str(free_port))
    start_processes(_rank, (tmp_path,), nprocs=2, start_method="spawn")
    alone = outcome(CPU, tmp_path / "one")
    for rank in range(2):
        shared = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(shared["weights"], alone["weights"], rtol=1e-5, atol=1e-6)
        for mine, its in zip(alone["evaluations"], shared["evaluations"], strict=True):
            assert its == pytest.approx(mine, rel=1e-5)
        torch.testing.assert_close(shared["skipped"], alone["skipped"], rtol=1e-5, atol=1e-6)
        assert shared["stopped"] == alone["stopped"] and shared["told"] == alone["told"] == "rank 0"
    assert alone["evaluations"][0] == {} != alone["evaluations"][1]
    one, two = (entries(tmp_path / name, "train") for name in ("one", "two"))
    for mine, its in zip(one, two, strict=True):
        assert its["loss"] == pytest.approx(mine["loss"], rel=1e-5)
        assert its["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-4)
    named = [json.loads(line) for line in (tmp_path / "two" / "skip" / BAD_STEPS).read_text().splitlines()]
    assert [(e["step"], e["rank"], e["clips"][0]) for e in named] == [(2, 1, "6.wav 0"), (7, 0, "27.wav 0")]
    assert entries(tmp_path / "two" / "skip", "train")[-1]["skipped_steps"] == 2


def test_a_number_of_ranks_that_does_not_divide_the_batches_is_refused(tmp_path: Path) -> None:
    three, guard = Ranks(0, 3, CPU.device), guarding(tmp_path)
    with pytest.raises(ValueError, match="start a number of processes that divides it, not 3"):
        accumulate(Guess(), waves(None), RunState(), CONFIG, three, Meter(CPU), guard)
