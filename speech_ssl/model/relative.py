"""WavLM's relative positions in attention: a bias by distance, scaled by a gate for each query."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GATE_PARTS = 4
"""The gate's projection has this many outputs per gate, which are summed, as in WavLM's published weights."""


def distance_buckets(distances: Tensor, buckets: int, furthest: int) -> Tensor:
    """The bucket of each distance from a query to a key, any shape, as in T5 (Raffel et al. 2020).

    Half of the buckets are for later keys. In each half, the first half hold one distance each; the others
    grow logarithmically up to `furthest`. All further distances share the last bucket.
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
        """The bias of each query and key among this many frames: (H, T, T)."""
        # Always on the CPU: a logarithm that rounds differently elsewhere would change a bucket.
        distances = torch.arange(1 - frames, frames, device="cpu")
        chosen = distance_buckets(distances, self.buckets, self.furthest).to(self.table.device)
        bias_HR = F.embedding(chosen, self.table).T
        return bias_HR.unfold(1, frames, 1).flip(1)  # row t begins at distance -t


class GatedBias(NamedTuple):
    """A bias for attention scores, as its two factors: their product is large."""

    gate_BHT1: Tensor
    bias_HTT: Tensor

    def whole(self) -> Tensor:
        """(B, H, T, T)."""
        return self.gate_BHT1 * self.bias_HTT


class PositionGate(nn.Module):
    """How much of the bias a query lets through: 2 + a * (b * constant - 1), with a and b in (0, 1) computed
    from the query's part of the block's input (WavLM, section III-A; one constant per head).

    The projection is held as plain parameters: whatever initialises or quantises every `nn.Linear` skips it.
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
