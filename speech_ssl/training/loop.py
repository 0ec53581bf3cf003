"""The training loop: one function, read from top to bottom."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from speech_ssl.objectives.base import Objective
from speech_ssl.precision import DTYPES, resolve
from speech_ssl.training.checkpoint import BEST, LAST, RunState, load_checkpoint, save_checkpoint
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.events import TrainingEvent, silent
from speech_ssl.training.guard import Guard
from speech_ssl.training.health import Collapsed, fallen, watch
from speech_ssl.training.logs import Logs
from speech_ssl.training.meter import Meter, OnItsWay, summarize
from speech_ssl.training.optim import (
    build_optimizer,
    clip_gradients,
    scale_gradients,
    set_learning_rate,
    take_step,
)
from speech_ssl.training.ranks import Ranks
from speech_ssl.types import Batch, LossSum

VALIDATION = 2**32  # not a step of training: validation draws the same spans each time

LoaderState = dict[str, Any]
Batches = Callable[[LoaderState | None], Generator[tuple[Batch, LoaderState], None, None]]
"""Given a saved state (None: the start), this rank's batches, endless, each with the state to resume from
after it. Closing the generator ends the reading processes."""


class Stopped(RuntimeError):
    """A signal asked the run to stop; its state is saved."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; the state is saved")
        self.signal = number


Probe = Callable[[Objective], Mapping[str, float]]
"""Evaluates the objective now and then, without changing it."""


def train(  # noqa: PLR0913 - each is a part of the run
    objective: Objective,
    batches: Batches,
    valid: Callable[[], Iterable[Batch]],
    config: TrainConfig,
    *,
    out: Path,
    ranks: Ranks,
    probe: Probe | None = None,
    tell: Callable[[TrainingEvent], None] = silent,
) -> RunState:
    """Train, from the checkpoint in `out` if there is one, until the last step or until patience runs out.

    Every random number is a function of (seed, step, batch index), so that a resumed run, and a run on
    another number of ranks, takes the same steps. Raises Stopped, Collapsed or NonFinite.
    """
    config = replace(config, precision=ranks.from_first(resolve(config.precision, ranks.device)))
    objective.to(ranks.device)
    optimizer = build_optimizer(objective, config)
    state = last_state(out, objective, optimizer, ranks)
    objective.set_progress(state.step / config.steps)
    model = ranks.wrap(objective)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    meter, guard, asked = Meter(ranks), Guard(config, state, ranks, out), OnItsWay(torch.zeros(()))
    with (
        closing(batches(state.loader)) as stream,
        Logs(out, total=config.steps, done=state.step, active=ranks.first, tell=tell) as logs,
        stop_signals() as caught,
    ):
        if config.valid_at_start and state.step == 0:
            validate(objective, valid(), state, config, logs, out, ranks)
        while state.step < config.steps and not is_over(state, config):
            rate = set_learning_rate(optimizer, state.step, config)
            sums = accumulate(model, stream, state, config, ranks, meter, guard)
            per_target, total, asked_now = over_ranks(sums, bool(caught), ranks)
            scale_gradients(parameters, guard.scale.unscaled(per_target))
            guard.tell(logs)  # about the step before, as the next line: both have arrived by now
            stopping, asked = bool(asked.read()), OnItsWay(asked_now)
            norm = clip_gradients(parameters, config.clip_norm)
            skip = guard.judge(total, norm, state.step)
            meter.add(sums, norm, skip)
            take_step(optimizer, skip)
            state.step += 1
            objective.after_step(state.step / config.steps)
            logs.step()
            done = state.step == config.steps
            if state.step % config.log_every == 0 or done:
                numbers = {**meter.flush(objective), **guard.report(), "lr": rate}
                report_training(objective, numbers, state, config, logs)
            if state.step % config.valid_every == 0 or done:
                validate(objective, valid(), state, config, logs, out, ranks)
                done = done or is_over(state, config)
            if probe is not None and (state.step % config.probe_every == 0 or done):
                logs.numbers("probe", state.step, probe(objective) if ranks.first else {})
            if state.step % config.save_every == 0 or done or stopping:
                save_last(out, state, objective, optimizer, guard, logs, always=done or stopping)
            if stopping and not done:
                raise Stopped(state.step, caught[0] if caught else signal.SIGTERM)
    return state


def save_last(  # noqa: PLR0913 - each is a part of the run
    out: Path,
    state: RunState,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    guard: Guard,
    logs: Logs,
    *,
    always: bool,
) -> None:
    """Save the checkpoint to resume from. After a bad step, save only if `always`, at the end of the run."""
    guard.tell(logs)
    if logs.active and (always or not guard.in_a_row):
        save_checkpoint(out / LAST, replace(state, guard=guard.numbers()), objective, optimizer)
        logs.saved(out / LAST, state.step)


def accumulate(  # noqa: PLR0913 - each is a part of the run
    model: nn.Module,
    stream: Iterator[tuple[Batch, LoaderState]],
    state: RunState,
    config: TrainConfig,
    ranks: Ranks,
    meter: Meter,
    guard: Guard,
) -> LossSum:
    """Forward and backward over this rank's share of the step's batches; gradients of the scaled *sum*."""
    micro_steps = ranks.share(config.batches_per_step)
    sums: LossSum | None = None
    for micro in range(micro_steps):
        batch, state.loader = next(stream)
        meter.heard(batch)
        generator = seeded(config.seed, state.step, micro * ranks.world + ranks.rank, ranks.device)
        with ranks.without_sync(model) if micro < micro_steps - 1 else nullcontext():
            with autocast(config, ranks.device):
                loss: LossSum = model(batch.to(ranks.device), generator=generator)
            guard.scale.scaled(loss.total).backward()  # type: ignore[no-untyped-call]
        loss = loss.map(Tensor.detach)
        guard.heard(batch, loss.total)
        sums = loss if sums is None else sums + loss
    assert sums is not None
    return sums


def over_ranks(sums: LossSum, flag: bool, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """For a step, in one reduction and without waiting: the factor that turns its gradients into those of the
    mean, its total loss, and the number of ranks with the flag set."""
    mine = torch.stack([sums.count, sums.total, sums.count.new_full((), flag)])
    count, total, flags = ranks.all_sum(mine)
    return ranks.world / count.clamp(min=1), total, flags  # DDP has already divided by world


def report_training(
    objective: Objective, numbers: Mapping[str, float], state: RunState, config: TrainConfig, logs: Logs
) -> None:
    """Log the means since the last report, and check them for a collapse if any step was taken."""
    logs.numbers("train", state.step, numbers)
    if "loss" in numbers:
        look_for_collapse("train", objective, numbers, state, config, logs)


def look_for_collapse(
    kind: str,
    objective: Objective,
    numbers: Mapping[str, float],
    state: RunState,
    config: TrainConfig,
    logs: Logs,
) -> None:
    if state.step < config.watch_after * config.steps:
        return
    state.below = state.below or {}
    # A validation averages many batches, without the noise of training: one is enough.
    patience = config.watch_patience if kind == "train" else 1
    for warning in watch(kind, numbers, objective.floors(), state.below, patience):
        logs.event("collapse", state.step, warning)
        if config.on_collapse == "stop":
            raise Collapsed(f"{warning} Stopped at step {state.step}, as on_collapse says.")


@torch.no_grad()
def evaluate(
    objective: Objective, batches: Iterable[Batch], config: TrainConfig, ranks: Ranks
) -> dict[str, float]:
    """The reported numbers over held-out batches, which the ranks share; empty if there are none."""
    objective.eval()
    sums: LossSum | None = None
    for number, batch in enumerate(batches):
        mine = number % ranks.world == ranks.rank
        if not mine and number > 0:  # every rank computes the first: each needs a sum, even of nothing
            continue
        generator = seeded(config.seed, VALIDATION, number, ranks.device)
        with autocast(config, ranks.device):
            loss: LossSum = objective(batch.to(ranks.device), generator=generator)
        if not mine:
            loss = loss.map(torch.zeros_like)
        sums = loss if sums is None else sums + loss
    objective.train()
    return {} if sums is None else summarize(sums.map(ranks.all_sum), objective)


def validate(  # noqa: PLR0913 - each is a part of the run
    objective: Objective,
    batches: Iterable[Batch],
    state: RunState,
    config: TrainConfig,
    logs: Logs,
    out: Path,
    ranks: Ranks,
) -> None:
    """Evaluate, log, and keep the best weights. Collapsed ones are never the best, however good their
    loss."""
    numbers = evaluate(objective, batches, config, ranks)
    if not numbers:
        return
    logs.numbers("valid", state.step, numbers)
    score = numbers[objective.best_by]
    healthy = not fallen(numbers, objective.floors())
    state.stale += 1
    if healthy and is_better(objective, score, numbers["loss"], state):
        state.best, state.best_loss, state.stale = score, numbers["loss"], 0
        if logs.active:
            save_checkpoint(out / BEST, state, objective)
            logs.saved(out / BEST, state.step)
    look_for_collapse("valid", objective, numbers, state, config, logs)


def is_better(objective: Objective, score: float, loss: float, state: RunState) -> bool:
    if not math.isfinite(score) or state.best is None:
        return math.isfinite(score)
    if score == state.best:
        return state.best_loss is not None and loss < state.best_loss
    return (score > state.best) == objective.higher_is_better


def is_over(state: RunState, config: TrainConfig) -> bool:
    """Whether `patience` is used up: the best weights are too old to expect better ones."""
    return config.patience is not None and state.best is not None and state.stale >= config.patience


def last_state(out: Path, objective: Objective, optimizer: torch.optim.Optimizer, ranks: Ranks) -> RunState:
    """The state of the checkpoint in `out`, loaded into the objective and optimizer, or of a new run."""
    state = load_checkpoint(out / LAST, objective, optimizer) if (out / LAST).exists() else RunState()
    check_same_start(state, out, ranks)
    return state


def check_same_start(state: RunState, out: Path, ranks: Ranks) -> None:
    """Raises ValueError if a process does not see the first one's checkpoint."""
    mine = torch.tensor(float(state.step), device=ranks.device)
    if ranks.any(float(ranks.all_sum(mine.clone())) != ranks.world * state.step):
        raise ValueError(f"the processes do not start at the same step: all need the same folder {out}")


def seeded(seed: int, step: int, number: int, device: torch.device) -> torch.Generator:
    """A generator for batch `number` of a step. Also seeds torch's global state, from which dropout draws,
    with the same numbers."""
    first, second = np.random.SeedSequence([seed, step, number]).generate_state(2, np.uint64)
    torch.manual_seed(int(first))
    return torch.Generator(device).manual_seed(int(second))


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[None]:
    precision = resolve(config.precision, device)
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Catch SIGTERM and SIGINT into a list. A second signal ends the process at once."""
    caught: list[int] = []

    def note(number: int, frame: object) -> None:
        if caught:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
