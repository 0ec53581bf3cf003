"""Relative positions by grouped convolution: a wide one (wav2vec 2.0, section 2), or several (data2vec)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.config import Activation, EncoderConfig, StackedConvolutions, WideConvolution
from speech_ssl.model.convolution import conv_over_time, start_bias_
from speech_ssl.model.frontends.wave import ACTIVATIONS
from speech_ssl.types import Frames

ROUNDED = 32
"""Clips are padded with zeros to a multiple of this many frames. For each new length, oneDNN compiles the
wide convolution anew, which on a processor with AVX2 takes three times as long as computing it."""


class ConvPositions(nn.Module):
    """Grouped convolution over time, weight norm per tap, activation. The caller adds the residual.

    weight = scale_1K1 * direction / ||direction||, the norm over all dimensions but the taps. It is computed
    in fp32 at any precision, since bf16 and fp16 kernels of torch's own weight norm were missing or wrong in
    several releases. `fold_` replaces scale and direction by the weight.
    """

    def __init__(
        self, width: int, kernel: int, groups: int, activation: Activation = "gelu", *, causal: bool = False
    ) -> None:
        super().__init__()
        self.kernel, self.groups, self.causal = kernel, groups, causal
        self.activation = ACTIVATIONS[activation]
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
        """Compute the weight once, for inference: training would no longer update scale and direction."""
        self.folded = self.weight().to(self.direction.dtype)

    def forward(self, frames: Frames) -> Tensor:
        """(B, T, D) to (B, T, D). Invalid frames must be zero."""
        x_BTD = frames.x_BTD
        weight = self.weight().to(x_BTD.dtype)
        return self.activation(_same_size(x_BTD, weight, self.bias, self.groups, causal=self.causal))


class PositionLayer(nn.Module):
    """One of data2vec's convolutions: grouped convolution, norm without parameters, activation."""

    def __init__(self, width: int, kernel: int, groups: int, activation: Activation) -> None:
        super().__init__()
        self.groups, self.activation = groups, ACTIVATIONS[activation]
        self.weight = nn.Parameter(torch.empty(width, width // groups, kernel))
        self.bias = nn.Parameter(torch.empty(width))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        start_bias_(self.bias, width // groups * kernel)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD = _same_size(x_BTD, self.weight, self.bias, self.groups)
        return self.activation(F.layer_norm(y_BTD, y_BTD.shape[2:]))


class StackedPositions(nn.Module):
    """Several narrow convolutions in sequence (data2vec: Baevski et al. 2022, arXiv 2202.03555).

    Invalid frames are zeroed after each, so that the next one sees the same as for the clip alone.
    """

    def __init__(self, width: int, spec: StackedConvolutions, activation: Activation) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            PositionLayer(width, spec.kernel, spec.groups, activation) for _ in range(spec.layers)
        )

    def fold_(self) -> None:
        """Nothing to do: there is no weight norm."""

    def forward(self, frames: Frames) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x_BTD, valid_BT1 = frames.x_BTD, frames.valid_BT[:, :, None]
        for layer in self.layers:
            x_BTD = layer(x_BTD) * valid_BT1
        return x_BTD


class BatchNormPositions(nn.Module):
    """A batch norm, then the wide convolution without weight norm, activation.

    The norm keeps its pre-trained statistics in training too: with the batch's statistics, a clip's frames
    would depend on its neighbours.
    """

    def __init__(self, width: int, kernel: int, groups: int, activation: Activation) -> None:
        super().__init__()
        self.groups, self.activation = groups, ACTIVATIONS[activation]
        self.weight = nn.Parameter(torch.empty(width, width // groups, kernel))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.weight, std=math.sqrt(4 / (kernel * width)))
        self.norm_weight = nn.Parameter(torch.ones(width))
        self.norm_bias = nn.Parameter(torch.zeros(width))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def fold_(self) -> None:
        """Nothing to do: there is no weight norm."""

    def forward(self, frames: Frames) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        scale_D = self.norm_weight * (self.variance + 1e-5).rsqrt()
        x_BTD = (frames.x_BTD - self.mean) * scale_D + self.norm_bias
        x_BTD = (x_BTD * frames.valid_BT[:, :, None]).to(frames.x_BTD.dtype)
        return self.activation(_same_size(x_BTD, self.weight.to(x_BTD.dtype), self.bias, self.groups))


def conv_positions(config: EncoderConfig) -> ConvPositions | StackedPositions | BatchNormPositions | None:
    """The positional convolution that the config asks for, if any."""
    match config.convolution:
        case StackedConvolutions() as spec:
            return StackedPositions(config.width, spec, config.conv_activation)
        case WideConvolution(kernel=kernel, groups=groups, norm=norm):
            if norm == "batch":
                return BatchNormPositions(config.width, kernel, groups, config.conv_activation)
            return ConvPositions(config.width, kernel, groups, config.conv_activation, causal=config.causal)
    return None


def _same_size(
    x_BTD: Tensor, weight_DCK: Tensor, bias_D: Tensor, groups: int, *, causal: bool = False
) -> Tensor:
    frames, taps = x_BTD.shape[1], weight_DCK.shape[2]
    padding = taps - 1 if causal else taps // 2
    if x_BTD.device.type == "cpu" and not torch.is_grad_enabled():
        x_BTD = F.pad(x_BTD, (0, 0, 0, -frames % ROUNDED))
    y_BTD = conv_over_time(x_BTD, weight_DCK, bias_D, padding=padding, groups=groups)
    return y_BTD[:, :frames]  # an even kernel makes one frame too many, a causal one those after the end
