"""Steps whose loss or gradients are not finite: nothing comes of them, they are named, many end the run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from speech_ssl.runs.console import Console
from speech_ssl.training.checkpoint import BEST, LAST, load_checkpoint
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.guard import BAD_STEPS, BadSteps
from speech_ssl.training.health import NonFinite
from speech_ssl.training.logs import Logs
from speech_ssl.training.loop import Stopped, train
from speech_ssl.training.ranks import Ranks
from speech_ssl.types import Batch, LossSum
from tests.training.toys import CPU, Crash, Guess, Poisoned, lines, wave

CONFIG = TrainConfig(
    steps=12, batches_per_step=4, peak_lr=0.01, log_every=3, valid_every=4, save_every=5, precision="fp32"
)
NAN, INF = float("nan"), float("inf")


def run(
    out: Path, batches: Any, objective: Guess | None = None, config: TrainConfig = CONFIG, **how: Any
) -> Guess:
    out.mkdir(exist_ok=True)
    objective = objective or Guess()
    train(
        objective,
        batches,
        lambda: [wave(1001), wave(1002)],
        config,
        out=out,
        ranks=CPU,
        tell=Console(),
        **how,
    )
    return objective


def entries(out: Path, kind: str) -> list[dict[str, Any]]:
    return [entry for line in lines(out) if (entry := json.loads(line))["kind"] == kind]


def named(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / BAD_STEPS).read_text().splitlines()]


def check_finite(out: Path) -> None:
    """All that a run left."""
    assert not any("NaN" in line or "Infinity" in line for line in lines(out))
    for path in out.glob("*.safetensors"):
        load_checkpoint(path, kept := Guess())
        assert all(p.isfinite().all() for p in kept.parameters())


@pytest.mark.parametrize(
    ("step", "value"), [(1, NAN), (6, INF), (7, -INF), (8, NAN), (10, NAN), (12, INF), (12, NAN)]
)
def test_a_bad_step_is_skipped_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float, step: int
) -> None:
    """Also where a log line, a validation, a checkpoint or the end is next."""
    bad = 4 * (step - 1) + 2
    run(tmp_path, Poisoned({bad: value}))
    clips = [f"{bad}.wav {row}" for row in range(3)]
    assert named(tmp_path) == [{"step": step, "rank": 0, "batch": 1, "clips": clips}]
    (event,) = entries(tmp_path, "bad_step")
    assert event["step"] == step
    audio = f"{bad}.wav 0, {bad}.wav 1, {bad}.wav 2"
    assert event["message"] == (
        f"step {step} was skipped: its loss is not finite; bad_steps.jsonl names its audio: {audio}"
    )
    assert f"bad_step: {event['message']}" in capsys.readouterr().err
    training = entries(tmp_path, "train")
    assert [entry["skipped_steps"] for entry in training] == [int(step <= e["step"]) for e in training]
    assert load_checkpoint(tmp_path / LAST, Guess()).step == 12
    check_finite(tmp_path)


def test_weights_and_moments_are_those_of_a_run_without_it(tmp_path: Path) -> None:
    """Every second step is bad; the rate is the same throughout, and nothing is drawn."""

    class Plain(Guess):
        def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
            return super().forward(batch, generator=torch.Generator().manual_seed(0))

    flat = replace(CONFIG, warmup=0.0, hold=0.9, batches_per_step=1, save_every=50, valid_every=50)
    run(tmp_path / "good", Poisoned({}, skip={2, 4, 6}), Plain().eval(), replace(flat, steps=3))
    run(tmp_path / "bad", Poisoned({2: NAN, 4: INF, 6: -INF}), Plain().eval(), replace(flat, steps=6))
    good, bad = (load_tensors(tmp_path / name) for name in ("good", "bad"))
    assert good.keys() == bad.keys() and any(key.startswith("optimizer.") for key in good)
    for key, value in good.items():
        assert torch.equal(value, bad[key]), key


def load_tensors(out: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(out / LAST)


class BadGradient(Guess):
    """`Guess` whose gradients in some training steps are no numbers, though its loss is one."""

    def __init__(self, steps: set[int]) -> None:
        super().__init__()
        self.steps, self.progress = steps, []

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        loss = super().forward(batch, generator=generator)
        if not self.training or len(self.progress) not in self.steps:
            return loss
        zero = self.out.bias - self.out.bias
        return replace(loss, total=loss.total + zero.sqrt().sum())

    def set_progress(self, progress: float) -> None:
        self.progress.append(progress)


def test_gradients_alone_may_be_bad_and_all_of_the_step_is_named(tmp_path: Path) -> None:
    objective = run(tmp_path, Poisoned({}), BadGradient({3}))  # set_progress was called before the first
    assert [entry["batch"] for entry in named(tmp_path)] == [0, 1, 2, 3]
    (event,) = entries(tmp_path, "bad_step")
    assert event["message"].startswith("step 3 was skipped: its gradients are not finite; ")
    assert event["message"].endswith("9.wav 0, 9.wav 1, 9.wav 2 and 9 more")
    assert objective.progress == [step / 12 for step in range(13)]  # a skipped step is a step
    check_finite(tmp_path)


def test_what_is_logged_is_of_the_steps_that_were_taken(tmp_path: Path) -> None:
    config = replace(CONFIG, log_every=2)
    run(tmp_path, Poisoned(dict.fromkeys([1, 9, 13], NAN)), config=config)  # steps 1, 3 and 4
    run(tmp_path / "one", Poisoned(dict.fromkeys([1, 9, 13], NAN)), config=replace(config, log_every=1))
    first, none, *_ = entries(tmp_path, "train")
    ones = entries(tmp_path / "one", "train")
    assert {name: first[name] for name in ("loss", "energy", "grad_norm", "grad_norm_max")} == {
        name: ones[1][name] for name in ("loss", "energy", "grad_norm", "grad_norm_max")
    }
    assert none.keys() == {"kind", "step", "lr", "skipped_steps", "seconds", "audio_s_per_s"}
    assert none["skipped_steps"] == 3 and none["audio_s_per_s"] > 0


def test_the_largest_gradient_norm_since_the_last_line(tmp_path: Path) -> None:
    run(tmp_path / "all", Poisoned({}), config=replace(CONFIG, log_every=1))
    run(tmp_path / "some", Poisoned({}), config=CONFIG)
    norms = [entry["grad_norm"] for entry in entries(tmp_path / "all", "train")]
    assert norms == [entry["grad_norm_max"] for entry in entries(tmp_path / "all", "train")]
    some = entries(tmp_path / "some", "train")
    assert [entry["grad_norm_max"] for entry in some] == [max(norms[n : n + 3]) for n in range(0, 12, 3)]
    assert [entry["grad_norm"] for entry in some] == norms[2::3]


def first_of(steps: range) -> dict[int, float]:
    """Poison for the first batch of each step (from 1)."""
    return {4 * (step - 1) + 1: NAN for step in steps}


def test_several_in_a_row_end_the_run_and_the_advice_is_a_command(tmp_path: Path) -> None:
    config = replace(CONFIG, max_bad_steps=3, clip_norm=5.0)
    with pytest.raises(NonFinite) as caught:
        run(tmp_path, Poisoned(first_of(range(4, 13))), config=config)
    said = str(caught.value)
    assert (
        "not finite at step 6, the last of 3 such steps in a row. The last checkpoint is from before" in said
    )
    assert "--resume --set peak_lr=0.005, with --resume --set clip_norm=2.5, and look" in said
    assert "\n" not in said and said.endswith("broken audio in bad_steps.jsonl")
    assert [entry["step"] for entry in named(tmp_path)] == [4, 5, 6]
    assert not (tmp_path / LAST).exists()  # one was due at step 5, in the row
    check_finite(tmp_path)


def test_good_steps_between_begin_the_row_anew(tmp_path: Path) -> None:
    config = replace(CONFIG, max_bad_steps=3)
    steps = {step: NAN for step in (1, 2, 4, 5, 7, 8, 10, 11)}
    run(tmp_path, Poisoned({4 * (step - 1) + 1: value for step, value in steps.items()}), config=config)
    assert entries(tmp_path, "train")[-1]["skipped_steps"] == 8


@pytest.mark.parametrize("last", [5, 12])
def test_the_row_is_noticed_before_anything_is_saved(tmp_path: Path, last: int) -> None:
    with pytest.raises(NonFinite, match=f"at step {last}, the last of 2"):
        run(tmp_path, Poisoned(first_of(range(last - 1, last + 1))), config=replace(CONFIG, max_bad_steps=2))
    steps = [load_checkpoint(path, Guess()).step for path in tmp_path.glob(LAST)]
    assert steps == ([] if last == 5 else [10])


def test_a_first_one_may_be_the_last(tmp_path: Path) -> None:
    with pytest.raises(NonFinite, match=r"at step 2\. The last"):
        run(tmp_path, Poisoned(first_of(range(2, 3))), config=replace(CONFIG, max_bad_steps=1))


BAD = {6: NAN, 18: INF, 22: NAN, 41: NAN}
"""Of steps 2, 5, 6 and 11."""


@pytest.mark.parametrize("crash_at", [8, 20, 23, 25, 30, 47])
def test_a_crash_anywhere_and_resume_ends_at_the_same_bits(tmp_path: Path, crash_at: int) -> None:
    run(tmp_path / "whole", Poisoned(BAD))
    with pytest.raises(Crash):
        run(tmp_path / "broken", Poisoned(BAD, crash_at=crash_at))
    run(tmp_path / "broken", Poisoned(BAD))
    for name in (LAST, BEST, BAD_STEPS):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    for kind in ("valid", "bad_step"):
        assert entries(tmp_path / "whole", kind) == entries(tmp_path / "broken", kind)
    whole, broken = (entries(tmp_path / name, "train") for name in ("whole", "broken"))
    assert [e["skipped_steps"] for e in whole] == [e["skipped_steps"] for e in broken]


def test_a_row_outlives_a_stop(tmp_path: Path) -> None:
    """A signal in a row saves all the same; what was counted is counted on."""
    import signal

    def stopping(state: dict[str, Any] | None) -> Iterator[tuple[Batch, dict[str, Any]]]:
        for batch, after in Poisoned(first_of(range(3, 13)))(state):
            if after["number"] == 13:  # in step 4: it ends after step 5
                signal.raise_signal(signal.SIGTERM)
            yield batch, after

    with pytest.raises(Stopped, match="after step 5"):
        run(tmp_path, stopping)
    assert load_checkpoint(tmp_path / LAST, Guess()).step == 5
    with pytest.raises(NonFinite, match="at step 7, the last of 5"):
        run(tmp_path, Poisoned(first_of(range(3, 13))))


def test_only_the_first_few_are_told_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, Poisoned({4 * (step - 1) + 1: NAN for step in (1, 3, 4, 6, 8, 9, 11)}))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bad_step: ")]
    assert len(told) == BadSteps.told and told[-1].endswith("Further ones are listed only in the files")
    assert len(entries(tmp_path, "bad_step")) == len(named(tmp_path)) == 7


def test_other_ranks_name_their_own_audio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / BAD_STEPS).write_text('{"step": 1, "rank": 0, "batch"')  # a crash cut it off
    with Logs(tmp_path, total=1, done=0, active=False) as logs:
        steps = BadSteps(tmp_path / BAD_STEPS, Ranks(1, 2, CPU.device))
        blamed: Mapping[int, tuple[str, ...]] = {2: ("a.wav",)}
        steps.add(7, blamed, False, logs)
        steps.add(8, {}, False, logs)  # another rank's
        steps.add(9, blamed, True, logs)  # any rank's: the first tells
    told = capsys.readouterr().err
    assert (
        told
        == "bad_step: step 7 was skipped: its loss is not finite; bad_steps.jsonl names its audio: a.wav\n"
    )
    torn, *whole = (tmp_path / BAD_STEPS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in whole] == [7, 9] and json.loads(whole[0])["rank"] == 1
