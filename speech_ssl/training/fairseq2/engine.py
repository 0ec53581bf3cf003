"""A run under fairseq2's Trainer instead of our own loop. The Trainer brings data parallelism (DDP, FSDP2),
checkpoints and metric recorders; objective, loader, schedule and random numbers are ours.

The steps are those of `loop.train`, except that none is skipped: the first step with a non-finite loss or
gradients ends the run. State is kept differently: the Trainer's checkpoints are in `checkpoints/` and must be
resumed by as many processes as saved them; `last.safetensors` is written at the end, without the optimizer.
Importing this module needs the extra `fairseq2`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import fairseq2.recipe  # noqa: F401 - first: fairseq2.trainer and this import each other
import numpy as np
import torch
from fairseq2.checkpoint import (
    NOOP_HG_EXPORTER,
    CheckpointError,
    CheckpointNotFoundError,
)
from fairseq2.early_stopper import EarlyStopper
from fairseq2.metrics import MetricBag
from fairseq2.metrics.recorders import (
    CompositeMetricRecorder,
    MetricRecorder,
)
from fairseq2.optim.fp16_loss_scaler import NOOP_FP16_LOSS_SCALER
from fairseq2.profilers import NOOP_PROFILER
from fairseq2.task import TaskStopException
from fairseq2.trainer import Trainer, TrainUnit
from fairseq2.utils.device_stat import NOOP_DEVICE_STAT_TRACKER
from fairseq2.utils.gc import NOOP_GARBAGE_COLLECTOR
from fairseq2.utils.progress import NOOP_PROGRESS_REPORTER
from fairseq2.utils.stopwatch import Stopwatch
from fairseq2.validator import Validator
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from speech_ssl.objectives.base import Objective
from speech_ssl.precision import DTYPES, resolve
from speech_ssl.training.checkpoint import BEST, LAST, RunState
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.events import TrainingEvent, silent
from speech_ssl.training.fairseq2.parts import (
    CollapseWatch,
    IntoLogs,
    LossSums,
    Reader,
    Shipment,
)
from speech_ssl.training.fairseq2.state import Parts
from speech_ssl.training.health import Collapsed, NonFinite, fallen
from speech_ssl.training.logs import Logs
from speech_ssl.training.loop import (
    Batches,
    Probe,
    Stopped,
    evaluate,
    is_better,
    is_over,
    seeded,
    stop_signals,
)
from speech_ssl.training.meter import summarize
from speech_ssl.training.optim import learning_rate
from speech_ssl.training.ranks import Ranks
from speech_ssl.types import Batch, LossSum

FEWEST = 1e-9
"""Target count of a batch without targets: with 0 the Trainer would skip an all-reduce that other ranks wait
for."""


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
    sharded: bool = False,
) -> RunState:
    """The counterpart of `loop.train`. `objective` itself stays on the CPU and is used to save the best and
    the last weights.

    sharded: FSDP2 shards parameters, gradients and optimizer state; otherwise each process has all of them
    (DDP). Raises ValueError for numbers that the Trainer does not support, and what `loop.train` raises.
    """
    config = replace(config, precision=ranks.from_first(resolve(config.precision, ranks.device)))
    check(objective, config, ranks, sharded)
    micro_steps = ranks.share(config.batches_per_step)
    state = RunState()
    parts = Parts(objective, config, out, ranks, state, sharded)
    probing = ranks.any(probe is not None)  # only the first rank probes, but all must gather their shards
    with (
        Logs(out, total=config.steps, done=parts.last_step, active=ranks.first, tell=tell) as logs,
        stop_signals() as caught,
        closing(Reader(batches, state, micro_steps)) as reader,
    ):
        watch = CollapseWatch(objective, state, config, logs)
        recorder = CompositeMetricRecorder([*parts.recorders(), IntoLogs(logs), watch])
        unit = Unit(parts, watch, caught)
        trainer = build_trainer(
            parts, unit, reader, recorder, HeldOutValidator(parts, unit, valid, recorder, logs)
        )
        unit.request_stop = trainer.request_stop

        def after_step(*_: object) -> None:
            state.step += 1
            parts.trained.after_step(state.step / config.steps)
            logs.step()
            if probing and (state.step % config.probe_every == 0 or state.step == config.steps):
                with parts.facade.summon_full_parameters():
                    if probe is not None:
                        logs.numbers("probe", state.step, probe(parts.trained))

        parts.optimizer.register_step_post_hook(after_step)
        run(trainer, parts, reader)
        if ranks.any(watch.collapsed is not None):
            raise watch.collapsed or Collapsed("the first process reports the reason")
        parts.keep(LAST)
        logs.saved(out / LAST, state.step)
        if state.step < config.steps and not is_over(state, config):
            raise Stopped(state.step, caught[0] if caught else signal.SIGTERM)
    return state


def check(objective: Objective, config: TrainConfig, ranks: Ranks, sharded: bool) -> None:
    """Raises ValueError for what this engine does not support."""
    for name in ("valid_every", "save_every"):
        if getattr(config, name) % config.log_every:
            raise ValueError(
                f"{name} is {getattr(config, name)}: with fairseq2 it must be a multiple of log_every, "
                f"{config.log_every}"
            )
    if config.precision == "fp16":
        raise ValueError("fp16 needs the loss scaling of our own loop: leave out --engine, or use fp32")
    if sharded and ranks.world == 1:
        raise ValueError("FSDP2 needs several processes: use --engine fairseq2, or start them with torchrun")
    if sharded and ranks.device.type == "cpu" and objective.encoder.config.layer_drop:
        raise ValueError(
            "FSDP2 needs all processes to skip the same layers, and on the CPU they do not: set "
            "layer_drop to 0, or use --engine fairseq2"
        )


class Unit(TrainUnit[Shipment]):
    """Computes the losses and target counts of one step's batches."""

    def __init__(self, parts: Parts, watch: CollapseWatch, caught: list[int]) -> None:
        self._parts, self._watch, self._caught = parts, watch, caught
        self._micro = 0
        self._begun = False
        self.stopping = False
        """Whether any rank received a signal."""
        self.request_stop: Callable[[], None] = lambda: None

    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        metric_bag.add("sums", LossSums())

    def set_step_nr(self, step_nr: int) -> None:
        """Called before each step, with its number from 1. The last step is requested here: given a number of
        steps, the Trainer would ignore `request_stop`."""
        parts, self._micro = self._parts, 0
        if not self._begun:
            parts.trained.set_progress(parts.state.step / parts.config.steps)
            self._begun = True
        flags = [float(self._watch.collapsed is not None), float(bool(self._caught))]
        collapsed, caught = parts.ranks.all_sum(torch.tensor(flags, device=parts.ranks.device)).tolist()
        if collapsed:
            raise self._watch.collapsed or Collapsed("the first process reports the reason")
        self.stopping = self.stopping or caught > 0
        if self.stopping or step_nr >= parts.config.steps:
            self.request_stop()

    def process_batch(self, batch: Shipment, metric_bag: MetricBag) -> tuple[Tensor, float]:
        parts, wave = self._parts, batch.batch
        ranks, seed, step = parts.ranks, parts.config.seed, parts.state.step
        generator = seeded(seed, step, self._micro * ranks.world + ranks.rank, parts.gangs.device)
        if parts.sharded and parts.objective.encoder.config.layer_drop:
            # Only LayerDrop draws on the CPU; all ranks must gather the same layers.
            shared = np.random.SeedSequence([seed, step, self._micro]).generate_state(1, np.uint64)
            torch.default_generator.manual_seed(int(shared[0]))
        self._micro += 1
        total, count, metrics = parts.model(wave, generator)
        sums = LossSum(total, count, metrics).map(Tensor.detach)
        metric_bag.get("sums", LossSums).update(sums, wave.lengths_B.sum())
        return total, max(float(count), FEWEST)

    def process_metric_values(self, values: dict[str, Any]) -> None:
        """Called on the first rank, with sums over all ranks."""
        sums, values["audio_s"] = values.pop("sums")
        values |= summarize(sums, self._parts.trained)


class HeldOutValidator(Validator):
    """Evaluates on held-out batches and keeps the best weights, as our own loop does."""

    def __init__(
        self,
        parts: Parts,
        unit: Unit,
        valid: Callable[[], Iterable[Batch]],
        recorder: MetricRecorder,
        logs: Logs,
    ) -> None:
        self._parts, self._unit, self._valid, self._recorder = parts, unit, valid, recorder
        self._logs = logs

    def run(self, train_step_nr: int) -> float | None:
        """The score, higher is better; None without held-out batches, or when stopping."""
        parts, state = self._parts, self._parts.state
        numbers: Mapping[str, float] = {}
        if not self._unit.stopping:
            numbers = evaluate(parts.trained, self._valid(), parts.config, parts.ranks)
        if not numbers:
            return None
        objective, score = parts.objective, numbers[parts.objective.best_by]
        if parts.ranks.first:
            self._recorder.record_metric_values("valid", dict(numbers), train_step_nr)
        state.stale += 1
        healthy = not fallen(numbers, objective.floors())
        if healthy and is_better(objective, score, numbers["loss"], state):
            state.best, state.best_loss, state.stale = score, numbers["loss"], 0
            parts.keep(BEST)
            self._logs.saved(parts.out / BEST, state.step)
        return score if objective.higher_is_better else -score

    def reset(self) -> None:
        """Nothing to do: only the run's state is kept between validations."""


class OutOfPatience(EarlyStopper):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def should_stop(self, step_nr: int, score: float) -> bool:
        return is_over(self._parts.state, self._parts.config)


def build_trainer(
    parts: Parts, unit: Unit, reader: Reader, recorder: MetricRecorder, validator: Validator
) -> Trainer:
    config, optimizer = parts.config, parts.optimizer
    for group in optimizer.param_groups:
        group["lr"] = 1.0  # LambdaLR multiplies this
    clock = Stopwatch(device=parts.gangs.device)
    clock.start()
    return Trainer(
        model=parts.model,
        unit=unit,
        data_reader=reader,
        gangs=parts.gangs,
        amp=config.precision == "bf16",
        amp_dtype=DTYPES[resolve(config.precision, parts.gangs.device)],
        optimizer=optimizer,
        lr_scheduler=LambdaLR(optimizer, lambda step: learning_rate(step, config)),
        fp16_loss_scaler=NOOP_FP16_LOSS_SCALER,
        validator=validator,
        early_stopper=OutOfPatience(parts),
        checkpoint_manager=parts.manager,
        hg_exporter=NOOP_HG_EXPORTER,
        metric_recorder=recorder,
        garbage_collector=NOOP_GARBAGE_COLLECTOR,
        profiler=NOOP_PROFILER,
        device_stat_tracker=NOOP_DEVICE_STAT_TRACKER,
        wall_watch=clock,
        progress_reporter=NOOP_PROGRESS_REPORTER,
        seed=config.seed,
        no_sync_grad_accumulation=not parts.sharded,  # FSDP2 would keep whole gradients meanwhile
        max_grad_norm=config.clip_norm,
        validate_at_start=config.valid_at_start,
        validate_every_n_steps=config.valid_every,
        checkpoint_every_n_steps=config.save_every,
        keep_last_n_checkpoints=1,
        publish_metrics_every_n_steps=config.log_every,
    )


def run(trainer: Trainer, parts: Parts, reader: Reader) -> None:
    """Run to the end, or to a stop. Raises ValueError for a checkpoint that cannot be read."""
    try:
        if parts.last_step >= parts.config.steps or is_over(parts.state, parts.config):
            parts.manager.load_model_state(parts.last_step, parts.facade)
            parts.manager.load_data_reader_state(parts.last_step, reader)
            return
        trainer.run()
    except TaskStopException:
        pass
    except (NonFinite, Collapsed):
        parts.manager.maybe_complete_save_operation(blocking=True)
        raise
    except (CheckpointError, CheckpointNotFoundError) as error:
        step = parts.out / "checkpoints" / f"step_{parts.last_step}"
        raise ValueError(
            f"{step} cannot be resumed from: {error} Delete that folder, or name another"
        ) from None
    finally:
        trainer.close()
