"""Relative positions by a wide grouped convolution (wav2vec 2.0, section 2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.convolution import conv_over_time


class ConvPositions(nn.Module):
    """Grouped convolution over time, weight-normalised per tap, GELU; adds nothing itself.

    weight = scale_1K1 * direction / ||direction||, the norm over all but the taps. It is computed in
    fp32 whatever the precision around it, since bf16 and fp16 kernels of torch's own weight norm
    were missing or wrong in several releases. `fold_` replaces the pair by the plain weight.
    """

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel, self.groups = kernel, groups
        weight_DCK = torch.empty(width, width // groups, kernel)
        nn.init.normal_(weight_DCK, std=math.sqrt(4 / (kernel * width)))
        self.scale_K = nn.Parameter(torch.linalg.vector_norm(weight_DCK, dim=(0, 1)))
        self.direction = nn.Parameter(weight_DCK)
        self.bias = nn.Parameter(torch.zeros(width))
        self.folded: Tensor | None
        self.register_buffer("folded", None, persistent=False)

    def weight(self) -> Tensor:
        """The effective weight (D, D / groups, K)."""
        if self.folded is not None:
            return self.folded
        with torch.autocast(self.direction.device.type, enabled=False):
            direction = self.direction.float()
            norm_K = torch.linalg.vector_norm(direction, dim=(0, 1))
            weight: Tensor = direction * (self.scale_K.float() / norm_K)
            return weight

    @torch.no_grad()
    def fold_(self) -> None:
        """Compute the weight once. For inference: training on would leave the parameters behind."""
        self.folded = self.weight().to(self.direction.dtype)

    def forward(self, x_BTD: Tensor) -> Tensor:
        weight = self.weight().to(x_BTD.dtype)
        y_BTD = conv_over_time(x_BTD, weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        return F.gelu(y_BTD[:, : x_BTD.shape[1]])  # an even kernel makes one frame too many
