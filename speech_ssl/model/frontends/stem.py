"""From log-mel frames to the encoder's width by convolutions over time and bins."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.convolution import start_bias_

KERNEL = 3


class MelStem(nn.Module):
    """Frames (B, T, stacked * bins) to (B, T, width): 2-D convolutions, each of which halves the steps and
    the bins, GELU after each, then a linear layer (as in Speech-Transformer, Dong et al. 2018, and the
    subsampling of Conformers). `stacked` is 2 ** len(channels).

    A linear projection of stacked steps, averaged over a clip, knows no more than the average spectrum. What
    is averaged here tells how it changes within a frame, trained or not.

    A frame sees the last steps of the frame before it, and none of the next: valid frames see no padding, and
    causal encoders stay causal.
    """

    def __init__(self, bins: int, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.bins = bins
        layers = [nn.Conv2d(ins, outs, KERNEL, stride=2) for ins, outs in pairwise((1, *channels))]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight)
            start_bias_(cast(Tensor, layer.bias), layer.weight[0].numel())
        self.convolutions = nn.ModuleList(layers)
        self.linear = nn.Linear(channels[-1] * left_bins(bins, len(channels)), width)

    def forward(self, x_BTC: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        x = x_BTC.reshape(B, 1, T * C // self.bins, self.bins)  # (B, channels, steps, bins)
        for layer in self.convolutions:
            x = F.gelu(layer(F.pad(x, (1, 1, 1, 0))))
        return self.linear(x.transpose(1, 2).reshape(B, T, -1))  # type: ignore[no-any-return]


def left_bins(bins: int, layers: int) -> int:
    """Bins after convolutions that halve them, rounding up."""
    for _ in range(layers):
        bins = (bins + 1) // 2
    return bins
