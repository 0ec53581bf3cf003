"""Hidden spans of frames: for each row, drawn by its own length."""

from __future__ import annotations

import torch
from torch import Tensor

from speech_ssl.types import valid_mask


def hide_spans(
    lengths_B: Tensor, size: int, *, share: float, span: int, generator: torch.Generator, least: int = 2
) -> Tensor:
    """Hide spans of `span` frames: (B, size) bool, never true on padding.

    A row of n frames gets share * n / span spans (randomly rounded, at least `least`), with starts drawn
    without replacement. Spans may overlap, so less than `share` is hidden: the paper's 49 % for 0.65 and 10.
    Other libraries give every row the count of the shortest row.
    """
    device = lengths_B.device
    starts_B1 = (lengths_B[:, None] - span + 1).clamp(min=1)
    rounding_B1 = torch.rand(len(lengths_B), 1, device=device, generator=generator)
    spans_B1 = (share * lengths_B[:, None] / span + rounding_B1).floor().clamp(min=least)
    draws_BT = torch.rand(len(lengths_B), size, device=device, generator=generator)
    draws_BT = draws_BT.masked_fill(torch.arange(size, device=device) >= starts_B1, 2.0)
    rank_BT = draws_BT.argsort(dim=1).argsort(dim=1)
    begins_BT = (rank_BT < spans_B1) & (draws_BT < 2.0)
    begun_BT = begins_BT.cumsum(1)
    ended_BT = torch.nn.functional.pad(begun_BT, (span, 0))[:, :size]
    return (begun_BT > ended_BT) & valid_mask(lengths_B, size)


def most_hidden(size: int, *, share: float, span: int, least: int = 2) -> int:
    """An upper bound on the frames that `hide_spans` hides in a row, known without looking at the data."""
    return min(max(int(share * size / span + 1), least) * span, size)


def hidden_positions(hidden_BT: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Indices of each row's hidden frames, in order and padded to `most`: (B, M) int64, and which of them are
    real: (B, M) bool. The shapes are fixed, so nothing waits for the device."""
    position_BM = hidden_BT.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return position_BM, valid_mask(hidden_BT.sum(1), most)


def take(x_BTD: Tensor, position_BM: Tensor) -> Tensor:
    """The frames at these positions of each row: (B, M, D)."""
    return x_BTD.gather(1, position_BM[:, :, None].expand(-1, -1, x_BTD.shape[2]))


def all_but_blocks(
    lengths_B: Tensor, size: int, *, share: float, block: int, adjust: float, generator: torch.Generator
) -> Tensor:
    """Hide `share` of each row, so that what stays visible stays in blocks: (B, size) bool, never true on
    padding.

    Inverse block masking (data2vec 2.0, Baevski et al. 2022, arXiv 2212.07525): blocks to keep are drawn as
    `hide_spans` draws, `adjust` more of them than needed, since they overlap; then single frames are hidden
    or kept by chance, until each row has its exact number, at least one of either.
    """
    kept_BT = hide_spans(lengths_B, size, share=1 - share + adjust, span=block, generator=generator, least=1)
    count_B = ((1 - share) * lengths_B).round().long().minimum(lengths_B - 1).clamp(min=1)
    return ~highest(kept_BT.float(), count_B, lengths_B, generator) & valid_mask(lengths_B, size)


def highest(rank_BT: Tensor, count_B: Tensor, lengths_B: Tensor, generator: torch.Generator) -> Tensor:
    """The frames with the highest whole numbers, of equal ones any: (B, T) bool, `count` in each row, never
    true on padding."""
    draws_BT = torch.rand(rank_BT.shape, device=rank_BT.device, generator=generator)
    valid_BT = valid_mask(lengths_B, rank_BT.shape[1])
    order_BT = torch.where(valid_BT, rank_BT + draws_BT, -1.0).argsort(dim=1, descending=True).argsort(dim=1)
    return (order_BT < count_B[:, None]) & valid_BT
