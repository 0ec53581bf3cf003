"""The batch of a step over all ranks: rows, sums and batch norm, with the exact gradient of the global loss.

Each rank computes a loss of its own rows, the sum of all being the global one. What it computes from other
ranks' rows sends them their part of the gradient: the backward pass of a gather, as that of a sum, adds up
over ranks. DDP then adds the parameters' gradients, and nothing is counted twice. Only training steps may
gather: in validation the ranks do not read equally many batches. Of micro-batches each is a batch of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.types import Frames


def _alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = x_ND.new_zeros(max(counts), *x_ND.shape[1:])
        padded[: len(x_ND)] = x_ND
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None]:
        grad_ND = grad_ND.contiguous()
        dist.all_reduce(grad_ND)
        first = sum(ctx.counts[: dist.get_rank()])
        return grad_ND[first : first + ctx.counts[dist.get_rank()]], None


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


def all_rows(x_ND: Tensor) -> tuple[Tensor, int]:
    """The rows (N, ...) of every rank in the order of ranks, and the index at which this rank's begin. Ranks
    may have different numbers of rows; the device is waited for."""
    if _alone():
        return x_ND, 0
    mine = torch.tensor([len(x_ND)], device=x_ND.device)
    counts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, mine)
    numbers = [int(count) for count in counts]
    rows: Tensor = _AllRows.apply(x_ND, numbers)  # type: ignore[no-untyped-call]
    return rows, sum(numbers[: dist.get_rank()])


def all_sum(x: Tensor) -> Tensor:
    """The sum of a tensor of one shape over all ranks."""
    if _alone():
        return x
    total: Tensor = _AllSum.apply(x)  # type: ignore[no-untyped-call]
    return total


def similarity(frames: Frames, summed: Callable[[Tensor], Tensor] = all_sum) -> Tensor:
    """This rank's part of the mean of (z_i . z_j)^2 over all pairs of frames of different clips, z their
    vectors brought to length 1: 1 where all lie along one line, 1 / D where they spread over all directions
    alike. The uniformity of U-MAE (Zhang et al. 2022, arXiv 2210.08344), of frames. summed: over ranks.

    The pairs are not computed one by one: with S the sum of z z^T over all frames, and S_b over those of
    clip b, the sum over pairs is |S|^2 - sum_b |S_b|^2.
    """
    z_BTD = F.normalize(frames.x_BTD.float(), dim=-1) * frames.valid_BT[:, :, None]
    moment_BDD = z_BTD.transpose(1, 2) @ z_BTD
    mine_DD, length_B = moment_BDD.sum(0), frames.lengths_B.float()
    pairs = summed(length_B.sum()).square() - summed(length_B.square().sum())
    return ((summed(mine_DD) * mine_DD).sum() - moment_BDD.square().sum()) / pairs.clamp(min=1)


class GlobalBatchNorm(nn.Module):
    """Batch norm of rows (N, D) by the statistics of all ranks' rows, so that one process and several compute
    the same (`torch.nn.SyncBatchNorm` works on GPUs alone). In evaluation by running statistics. Rows that
    are not finite leave these as they were."""

    def __init__(self, width: int, *, affine: bool = True, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None
        self.eps, self.momentum = eps, momentum
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x_ND: Tensor) -> Tensor:
        with torch.autocast(x_ND.device.type, enabled=False):
            x_ND = x_ND.float()
            mean_D, variance_D = (
                self._moments(x_ND) if self.training else (self.running_mean, self.running_var)
            )
            x_ND = (x_ND - mean_D) * (variance_D + self.eps).rsqrt()
            return x_ND if self.weight is None or self.bias is None else x_ND * self.weight + self.bias

    def _moments(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (divided by N) over all rows."""
        count = all_sum(x_ND.new_tensor(float(len(x_ND)))).clamp(min=1)
        mean_D = all_sum(x_ND.sum(0)) / count
        variance_D = all_sum((x_ND - mean_D).square().sum(0)) / count
        with torch.no_grad():
            unbiased_D = variance_D * count / (count - 1).clamp(min=1)
            for running_D, now_D in ((self.running_mean, mean_D), (self.running_var, unbiased_D)):
                kept_D = torch.where(now_D.isfinite(), now_D, running_D)
                running_D.lerp_(kept_D, self.momentum)
        return mean_D, variance_D


def mlp(*widths: int, batch_norm: bool = True, last_norm: bool = False) -> nn.Sequential:
    """Linear layers from width to width with ReLU between them, and batch norm before it; `last_norm`: one
    after the last layer too, without scale and shift."""
    layers: list[nn.Module] = []
    for number, (ins, outs) in enumerate(pairwise(widths), 2):
        last = number == len(widths)
        layers.append(nn.Linear(ins, outs, bias=not (last_norm if last else batch_norm)))
        if last_norm if last else batch_norm:
            layers.append(GlobalBatchNorm(outs, affine=not last))
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class Queue(nn.Module):
    """The last `size` vectors of length 1 that were put in, in the state dict. At first, random ones."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.rows_KE: Tensor
        self.place: Tensor
        self.register_buffer("rows_KE", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self._pending: list[Tensor] = []

    def note(self, x_NE: Tensor) -> None:
        """To be put in by `settle`, after the step."""
        self._pending.append(x_NE.detach())

    def settle(self) -> None:
        """Put in what all ranks have noted, unless anything of it is not finite: that step was skipped."""
        noted = [all_rows(x_NE)[0] for x_NE in self._pending]
        self._pending.clear()
        if noted:
            self.put(torch.cat(noted))

    def put(self, x_NE: Tensor) -> None:
        size = len(self.rows_KE)
        x_NE = x_NE[-size:]
        at_N = (self.place + torch.arange(len(x_NE), device=x_NE.device)) % size
        fine = x_NE.isfinite().all()
        self.rows_KE[at_N] = torch.where(fine, x_NE.to(self.rows_KE.dtype), self.rows_KE[at_N])
        self.place.copy_((self.place + fine * len(x_NE)) % size)
