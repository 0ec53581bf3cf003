"""One temperature for a head's logits, so that its scores are the shares of clips that it is right about."""

from __future__ import annotations

import math

from torch import Tensor

SHARPEST = 20.0
STEPS = 60


def inverse_temperature(logits_NK: Tensor, targets_NK: Tensor, *, exclusive: bool) -> float:
    """What to multiply logits with, so that the likelihood of held-out clips' labels is largest (Guo et al.
    2017, arXiv 1706.04599, section 4.2): 1 / T, from 1/20 to 20.

    Targets (N, K) are 0 or 1, one 1 a row with `exclusive`. Each label is counted as if it had one clip more
    (Platt 1999): without that, clips that are all right would ask for scores of 1. The slope of the loss
    only grows with 1 / T, so its zero is found by bisection.
    """
    logits_NK, targets_NK = logits_NK.double(), targets_NK.double()
    clips, choices = len(logits_NK), logits_NK.shape[1] if exclusive else 2
    unsure = choices / (clips + choices)
    targets_NK = targets_NK * (1 - unsure) + unsure / choices

    def slope(scale: float) -> float:
        scaled_NK = scale * logits_NK
        said_NK = scaled_NK.softmax(-1) if exclusive else scaled_NK.sigmoid()
        return float(((said_NK - targets_NK) * logits_NK).sum())

    low, high = 1 / SHARPEST, SHARPEST
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return math.sqrt(low * high)
