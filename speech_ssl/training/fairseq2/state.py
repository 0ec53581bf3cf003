"""The model, the optimizer and the checkpoints of a run under fairseq2's Trainer.

Imported only by `fairseq2.py`; needs the extra `fairseq2`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from fairseq2 import init_fairseq2
from fairseq2.checkpoint import StandardCheckpointManager
from fairseq2.file_system import FileSystem
from fairseq2.io import TensorFileDumper, TensorFileDumpOptions, TensorFileLoader, TensorFileLoadOptions
from fairseq2.metrics.recorders import JsonlMetricRecorder, MetricDescriptorRegistry, MetricRecorder
from fairseq2.nn.data_parallel import (
    DataParallelFacade,
    get_data_parallel_facade,
    set_data_parallel_facade,
)
from fairseq2.nn.ddp import to_ddp
from fairseq2.nn.fsdp import to_fsdp2
from fairseq2.utils.threading import ThreadPool
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from speech_ssl.objectives.base import Objective
from speech_ssl.training.checkpoint import BEST, RunState, load_checkpoint, save_checkpoint
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.fairseq2.parts import BorrowedGangs, gangs_of
from speech_ssl.training.health import NonFinite
from speech_ssl.training.optim import build_optimizer
from speech_ssl.training.ranks import Ranks
from speech_ssl.types import Batch

started = lru_cache(1)(init_fairseq2)


class Parts:
    """Model, optimizer and checkpoints of a run."""

    def __init__(
        self,
        objective: Objective,
        config: TrainConfig,
        out: Path,
        ranks: Ranks,
        state: RunState,
        sharded: bool,
    ) -> None:
        self.objective, self.config, self.out, self.ranks = objective, config, out, ranks
        self.state, self.sharded = state, sharded
        self.resolver = started()
        self.gangs = gangs_of(ranks, sharded=sharded)
        self.trained = deepcopy(objective).to(self.gangs.device)
        self.model = spread(Summed(self.trained), self.gangs, sharded)
        self.facade = Finite(get_data_parallel_facade(self.model), state, config)
        set_data_parallel_facade(self.model, self.facade)
        self.optimizer = build_optimizer(self.trained, config)
        if sharded:
            keep_local_state(self.optimizer)
        self.manager = StandardCheckpointManager(
            out,
            self.gangs,
            self.resolver.resolve(FileSystem),
            PlainLoader(self.resolver.resolve(TensorFileLoader)),
            PlainDumper(self.resolver.resolve(TensorFileDumper)),
            self.resolver.resolve(ThreadPool),
        )
        self.last_step = self.manager.maybe_get_last_step_number(exclude_model_only=True) or 0
        self._check_same_start()
        self._recall_best()

    def recorders(self) -> list[MetricRecorder]:
        """fairseq2's own recorders, beside our logs: `metrics/train.jsonl` and `metrics/valid.jsonl`."""
        return [
            JsonlMetricRecorder(self.out, self.resolver.resolve(FileSystem), MetricDescriptorRegistry([]))
        ]

    def keep(self, name: str) -> None:
        """Write the weights for `recipes`, without the optimizer. Collective: all ranks must call it."""
        full = full_tensors(self.trained.state_dict())
        if self.ranks.first:
            self.objective.load_state_dict(full)
            save_checkpoint(self.out / name, self.state, self.objective)

    def _check_same_start(self) -> None:
        """Raises ValueError if these processes cannot resume from the last checkpoint."""
        mine = torch.tensor(float(self.last_step), device=self.ranks.device)
        if self.ranks.any(float(self.ranks.all_sum(mine.clone())) != self.ranks.world * self.last_step):
            raise ValueError(
                f"the processes do not start at the same step: all need the same folder {self.out}"
            )
        if not self.last_step:
            return
        saved = len(list(self.out.glob(f"checkpoints/step_{self.last_step}/trainer/rank_*.pt")))
        if saved != self.ranks.world:
            raise ValueError(
                f"{self.out / 'checkpoints'} was saved by {saved} processes: resume it with as many, "
                f"not {self.ranks.world}"
            )

    def _recall_best(self) -> None:
        """Restore the best validation up to the checkpoint that is resumed from."""
        if not self.last_step or not (self.out / BEST).exists():
            return
        best, state, every = (
            load_checkpoint(self.out / BEST, self.objective),
            self.state,
            self.config.valid_every,
        )
        if best.step <= self.last_step:
            state.best, state.best_loss = best.best, best.best_loss
            state.stale = self.last_step // every - best.step // every


class Summed(nn.Module):
    """An objective that returns plain tensors: DDP and FSDP2 cannot look into a LossSum."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        loss = self.objective(batch, generator=generator)
        return loss.total, loss.count, dict(loss.metrics)


def spread(model: Summed, gangs: BorrowedGangs, sharded: bool) -> nn.Module:
    """Distribute the model: shard each encoder block and the rest separately, or replicate all of it."""
    if sharded:

        def shard_blocks(module: nn.Module, wrapper: Callable[[nn.Module], nn.Module]) -> nn.Module:
            for block in model.objective.encoder.blocks:
                wrapper(block)
            return module

        return to_fsdp2(model, gangs, shard_blocks)  # type: ignore[no-any-return]
    if gangs.root.size == 1:
        return model
    return to_ddp(model, gangs, find_unused_parameters=True)  # type: ignore[no-any-return]


class Finite(DataParallelFacade):
    """A facade that rejects non-finite gradients on all ranks alike, before the optimizer uses them."""

    def __init__(self, facade: DataParallelFacade, state: RunState, config: TrainConfig) -> None:
        self._facade, self._state, self._config = facade, state, config

    def clip_grad_norm(self, max_norm: float | None) -> Tensor:
        norm: Tensor = self._facade.clip_grad_norm(max_norm)
        if not torch.isfinite(norm):
            raise NonFinite(self._state.step + 1, self._config)
        return norm

    def state_dict(self) -> dict[str, object]:
        return self._facade.state_dict()  # type: ignore[no-any-return]

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        self._facade.load_state_dict(state_dict)

    def no_sync(self) -> Any:
        return self._facade.no_sync()

    def summon_full_parameters(self) -> Any:
        return self._facade.summon_full_parameters()


class PlainLoader(TensorFileLoader):
    """Loads only tensors, numbers, texts and containers of them: no file can execute anything."""

    def __init__(self, loader: TensorFileLoader) -> None:
        self._loader = loader

    def load(self, file: Path, options: TensorFileLoadOptions | None = None) -> dict[str, object]:
        where = None if options is None else options.map_location
        plain = TensorFileLoadOptions(map_location=where, restrict=True)
        return self._loader.load(file, plain)  # type: ignore[no-any-return]


class PlainDumper(TensorFileDumper):
    """Writes files that PlainLoader can read."""

    def __init__(self, dumper: TensorFileDumper) -> None:
        self._dumper = dumper

    def dump(
        self, data: Mapping[str, object], file: Path, options: TensorFileDumpOptions | None = None
    ) -> None:
        self._dumper.dump(data, file, TensorFileDumpOptions(pickle_protocol=2))


def keep_local_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer's state dict hold plain tensors, this rank's shards, instead of sharded parameters'
    state."""

    def to_local(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        states = {
            number: {k: v.to_local() if isinstance(v, DTensor) else v for k, v in state.items()}
            for number, state in state_dict["state"].items()
        }
        return {**state_dict, "state": states}

    def from_local(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        parameters = [p for entry in optimizer.param_groups for p in entry["params"]]
        states = {
            number: {k: as_parameter(v, parameters[number]) for k, v in state.items()}
            for number, state in state_dict["state"].items()
        }
        return {**state_dict, "state": states}

    optimizer.register_state_dict_post_hook(to_local)
    optimizer.register_load_state_dict_pre_hook(from_local)


def as_parameter(value: Any, parameter: Tensor) -> Any:
    """A shard of the optimizer's state, distributed like its parameter; counters unchanged."""
    if not (isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.ndim):
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(
        value.to(parameter.device), mesh, placements, shape=parameter.shape, stride=parameter.stride()
    )


def full_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state with the shards of all ranks gathered. Collective: all ranks must call it."""
    return {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in state.items()}
