"""The processes of a run: one, or those that torchrun started."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `world`, and the device it computes on."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def all_sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank. Waits for all."""
        if self.world == 1:
            return flag
        return bool(self.all_sum(torch.tensor(float(flag), device=self.device)).item() > 0)

    def from_first(self, value: T) -> T:
        """The first rank's value, on all ranks."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def meet(self) -> None:
        """A barrier: returns when all ranks have called it."""
        self.any(False)

    def share(self, batches: int) -> int:
        """How many of a step's batches this rank takes. Raises ValueError if they cannot be shared evenly."""
        if batches % self.world:
            raise ValueError(
                f"batches_per_step is {batches}: start a number of processes that divides it, not "
                f"{self.world}"
            )
        return batches // self.world

    def wrap(self, module: nn.Module) -> nn.Module:
        """DDP if there are several ranks. It must look for unused parameters, which LayerDrop leaves."""
        if self.world == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)

    def without_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """For all micro-batches but the last: gradients are not reduced."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def pick_device(name: str) -> torch.device:
    """ "auto" takes CUDA if there is one. Raises ValueError for a missing device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is none of auto, cpu, cuda and cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device was found: use --device cpu, or check the driver with nvidia-smi")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"there is no {name}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    return device


def alone(device: str = "auto") -> Ranks:
    """This process alone, whatever torchrun started. Raises ValueError for a missing device."""
    chosen = pick_device(device)
    return Ranks(0, 1, _taken(chosen, chosen.index or 0))


@contextmanager
def joined_ranks(device: str = "auto") -> Iterator[Ranks]:
    """Join the process group given by torchrun's environment variables, if they are set."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world == 1:
        yield alone(device)
        return
    chosen = _taken(pick_device(device), int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Ranks(rank, world, chosen)
    finally:
        gc.collect()  # DDP is in cycles, and would keep the group's threads alive until exit
        dist.destroy_process_group()


def _taken(device: torch.device, index: int) -> torch.device:
    """Make it CUDA's current device, which calls without a device argument use."""
    if device.type == "cuda":
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device
