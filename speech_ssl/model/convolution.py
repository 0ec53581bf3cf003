"""Convolution over time on (B, T, C) tensors, and the number of frames it gives."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, channels_last, nn

Lengths = TypeVar("Lengths", int, Tensor)
STALLING = 16
"""Channels of a depthwise convolution up to which oneDNN 3.10 never ends compiling a kernel of 15 taps and
more in bf16 with AVX-512. Such narrow ones are computed in fp32."""


def conv_over_time(
    x_BTC: Tensor,
    weight_OCK: Tensor,
    bias_O: Tensor | None,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Tensor:
    """A 1-D convolution with input and output as (B, T, C).

    It runs as a 2-D convolution in channels-last layout. Unlike conv1d on (B, C, T) this needs no transposes
    around the layer norms; it took a quarter of the time for the forward and backward pass of the `tiny`
    front end in bf16 on two CPU cores.

    With one input channel it is a matrix product over unfolded samples. Here oneDNN would compile a kernel
    for each new length, which takes up to 90 ms: more than the whole pass of a short clip.
    """
    if x_BTC.shape[2] == 1 and not padding and x_BTC.device.type == "cpu":
        return F.linear(x_BTC[:, :, 0].unfold(1, weight_OCK.shape[2], stride), weight_OCK[:, 0], bias_O)
    if groups == x_BTC.shape[2] <= STALLING and x_BTC.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            parts = (x_BTC.float(), weight_OCK.float(), None if bias_O is None else bias_O.float())
            return _convolved(*parts, stride, padding, groups).to(x_BTC.dtype)
    return _convolved(x_BTC, weight_OCK, bias_O, stride, padding, groups)


def _convolved(
    x_BTC: Tensor, weight_OCK: Tensor, bias_O: Tensor | None, stride: int, padding: int, groups: int
) -> Tensor:
    image = x_BTC.transpose(1, 2).unsqueeze(2)
    kernel = weight_OCK.unsqueeze(2).contiguous(memory_format=channels_last)
    y = F.conv2d(image, kernel, bias_O, stride=(1, stride), padding=(0, padding), groups=groups)
    return y.squeeze(2).transpose(1, 2)


def start_bias_(bias_O: Tensor, fan_in: int) -> None:
    """Initialise as nn.Conv1d does, and so fairseq and transformers. With a zero bias, silence would stay
    zero in all layers, and each layer norm would multiply the gradient by 1 / sqrt(eps). For convolutions
    without a bias this sets the bias of their norm."""
    nn.init.uniform_(bias_O, -(fan_in**-0.5), fan_in**-0.5)


def output_length(lengths: Lengths, kernel: int, stride: int) -> Lengths:
    """Frames from `lengths` samples, without padding; 0 for clips shorter than the kernel."""
    if isinstance(lengths, int):
        return max((lengths - kernel) // stride + 1, 0)
    return ((lengths - kernel).div(stride, rounding_mode="floor") + 1).clamp(min=0)
