"""The teacher that follows its student: an exponential moving average of its weights."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class EMATeacher(nn.Module, Generic[M]):
    """A copy of the student, without dropout and gradients: theta_t <- tau theta_t + (1 - tau) theta_s.

    tau rises linearly from `first` to `last` during `warmup`, a share of the run's steps, and stays there
    (data2vec, Baevski et al. 2022, arXiv 2202.03555, section 3.3). The copy is part of the state dict. Call
    `follow` in `Objective.after_step`.
    """

    def __init__(self, student: M, *, first: float, last: float, warmup: float = 0.0) -> None:
        super().__init__()
        if not 0 <= first <= last <= 1 or not 0 <= warmup <= 1:
            raise ValueError(
                f"wanted 0 <= first <= last <= 1 and 0 <= warmup <= 1, not {first, last, warmup}"
            )
        self.model: M = deepcopy(student).requires_grad_(False)
        self.first, self.last, self.warmup = first, last, warmup
        self.eval()

    def train(self, mode: bool = True) -> EMATeacher[M]:
        """It stays in eval mode, whatever its student does."""
        return super().train(False)

    def tau(self, progress: float) -> float:
        if progress >= self.warmup:
            return self.last
        return self.first + (self.last - self.first) * progress / self.warmup

    @torch.no_grad()
    def follow(self, student: nn.Module, progress: float) -> None:
        """One step towards the student, buffers such as running statistics included."""
        tau = self.tau(progress)
        mine, theirs = list(_numbers(self.model)), list(_numbers(student))
        torch._foreach_lerp_(mine, theirs, 1 - tau)


def _numbers(module: nn.Module) -> Iterable[Tensor]:
    yield from module.parameters()
    yield from (buffer for buffer in module.buffers() if buffer.is_floating_point())
