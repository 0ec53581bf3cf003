"""WavLM's positions in attention: a bias by distance, let through by a gate of each query."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GATE_PARTS = 4
"""Outputs of the gate's projection that are added up to one gate, as in WavLM's published weights."""


def distance_buckets(distances: Tensor, buckets: int, furthest: int) -> Tensor:
    """The bucket of each distance from a query to a key, any shape, as in T5 (Raffel et al. 2020).

    Half of the buckets are for keys that come later. Of each half, half hold one distance each, and the
    others grow with the logarithm up to `furthest`, from where on all share the last.
    """
    half = buckets // 2
    single = half // 2
    length = distances.abs()
    share = torch.log(length.clamp(min=1).float() / single) / math.log(furthest / single)
    grown = (single + share * (half - single)).long().clamp(max=half - 1)
    return torch.where(length < single, length, grown) + (distances > 0) * half


class RelativeBias(nn.Module):
    """One learned number for each bucket of distances and each head, shared by all blocks.

    (Chi et al. 2022, arXiv 2106.16138, section 3; Chen et al. 2022, WavLM, arXiv 2110.13900, section III-A.)
    """

    def __init__(self, heads: int, buckets: int, furthest: int) -> None:
        super().__init__()
        self.buckets, self.furthest = buckets, furthest
        self.table = nn.Parameter(torch.empty(buckets, heads).normal_(std=0.02))

    def forward(self, frames: int) -> Tensor:
        """Of each query and key among so many frames: (H, T, T)."""
        # On the CPU wherever the weights are: a logarithm that rounds otherwise would move a bucket.
        distances = torch.arange(1 - frames, frames, device="cpu")
        chosen = distance_buckets(distances, self.buckets, self.furthest).to(self.table.device)
        bias_HR = F.embedding(chosen, self.table).T
        return bias_HR.unfold(1, frames, 1).flip(1)  # row t begins at distance -t


class GatedBias(NamedTuple):
    """What is added to the scores of attention: the product of both, which is large."""

    gate_BHT1: Tensor
    bias_HTT: Tensor

    def whole(self) -> Tensor:
        """(B, H, T, T)."""
        return self.gate_BHT1 * self.bias_HTT


class PositionGate(nn.Module):
    """How much of the bias a query lets through: 2 + a * (b * constant - 1), with a and b in (0, 1) from
    its part of the block's input. (WavLM, section III-A; the constant is one a head.)

    The projection is held as plain parameters, and so stays out of what is made of `nn.Linear`s.
    """

    def __init__(self, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.empty(2 * GATE_PARTS, head_width).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(2 * GATE_PARTS))
        self.constant = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, H, T, 1)."""
        B, T, D = x_BTD.shape
        x_BHTE = x_BTD.view(B, T, self.heads, D // self.heads).transpose(1, 2)
        parts = F.linear(x_BHTE, self.weight, self.bias).view(B, self.heads, T, 2, GATE_PARTS)
        a_BHT1, b_BHT1 = parts.sum(-1).sigmoid().chunk(2, dim=-1)
        return a_BHT1 * (b_BHT1 * self.constant - 1) + 2
