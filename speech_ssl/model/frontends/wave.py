"""The convolutional front end on raw samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.config import WAVE_EPS, Activation, Convolutions, Init
from speech_ssl.model.convolution import Lengths, conv_over_time, output_length, start_bias_
from speech_ssl.model.frontends.levels import Given, given, given_means, given_variances, wave_moments
from speech_ssl.types import Frames, Levels, Moments, valid_mask

ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def normalize_waves(wave_BS: Tensor, lengths_B: Tensor, eps: float = WAVE_EPS, moments: Given = ()) -> Tensor:
    """Normalise each row to zero mean and unit variance over its true length, or by the moments given for the
    whole clip. Padding stays zero."""
    valid_BS = valid_mask(lengths_B, wave_BS.shape[1])
    count_B1 = lengths_B[:, None].to(wave_BS.dtype)
    mean_B1 = (wave_BS * valid_BS).sum(1, keepdim=True) / count_B1
    mean_B1 = given_means(mean_B1, moments)
    centred_BS = (wave_BS - mean_B1) * valid_BS
    variance_B1 = centred_BS.square().sum(1, keepdim=True) / count_B1
    variance_B1 = given_variances(variance_B1, moments)
    return centred_BS / (variance_B1 + eps).sqrt()


class ValidGroupNorm(nn.Module):
    """Group norm with one channel per group, its statistics over valid frames only.

    torch's GroupNorm includes the padding, so that a clip depends on its neighbours in the batch.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, frames: Frames, moments: Given = ()) -> Tensor:
        """moments: per channel (C,)."""
        x_BTC = frames.x_BTD.float()
        valid_BT1 = frames.valid_BT[:, :, None]
        count_B11 = frames.lengths_B[:, None, None].float()
        mean_B1C = (x_BTC * valid_BT1).sum(1, keepdim=True) / count_B11
        mean_B1C = given_means(mean_B1C, moments)
        centred_BTC = x_BTC - mean_B1C
        variance_B1C = (centred_BTC.square() * valid_BT1).sum(1, keepdim=True) / count_B11
        variance_B1C = given_variances(variance_B1C, moments)
        scale_B1C = self.weight.float() * (variance_B1C + self.eps).rsqrt()
        return (centred_BTC * scale_B1C + self.bias.float()).to(frames.x_BTD.dtype)


class ConvLayer(nn.Module):
    """One layer of the front end: convolution, norm, activation. number: its index."""

    def __init__(self, spec: Convolutions, number: int, activation: Activation) -> None:
        super().__init__()
        inputs, outputs = (1, *spec.channels)[number : number + 2]
        self.kernel, self.stride = spec.kernels[number], spec.strides[number]
        self.activation = ACTIVATIONS[activation]
        self.weight = nn.Parameter(torch.empty(outputs, inputs, self.kernel))
        self.bias = nn.Parameter(torch.empty(outputs)) if spec.bias else None
        self.norm: nn.Module = nn.Identity()
        if spec.norm == "layer":
            self.norm = LayerNorm(outputs)
        elif number == 0:
            self.norm = ValidGroupNorm(outputs, eps=1e-5)
        nn.init.kaiming_normal_(self.weight)
        offset = self.norm.bias if self.bias is None and spec.norm == "layer" else self.bias
        if isinstance(offset, Tensor):
            start_bias_(offset, inputs * self.kernel)

    def forward(self, frames: Frames, levels: Levels = ()) -> Frames:
        """levels: the moments of the samples under the kernel, over all its positions in the clip."""
        x_BTC = conv_over_time(frames.x_BTD, self.weight, self.bias, stride=self.stride)
        out = Frames(x_BTC, output_length(frames.lengths_B, self.kernel, self.stride))
        if isinstance(self.norm, ValidGroupNorm):
            x_BTC = self.norm(out, given(levels, self._channel_moments))
            return Frames(self.activation(x_BTC), out.lengths_B)
        return Frames(self.activation(self.norm(x_BTC)), out.lengths_B)

    def _channel_moments(self, level: Moments) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel over a whole clip, computed from its samples' moments: a
        convolution is linear."""
        weight_CK = self.weight[:, 0].double()
        mean_K, covariance_KK = (
            torch.as_tensor(x, device=weight_CK.device) for x in (level.mean_N, level.covariance_NN)
        )
        mean_C = weight_CK @ mean_K + (0.0 if self.bias is None else self.bias.double())
        return mean_C, ((weight_CK @ covariance_KK) * weight_CK).sum(1)


@torch.no_grad()
def smooth_convolutions_(layers: Sequence[ConvLayer], roughness: float = 0.1) -> None:
    """Initialise all convolutions but the first as averages over time of random mixtures of channels.

    With independent random taps, an untrained front end follows the phase of the wave. Its quantized frames
    cannot be told from their surroundings, and a short run never leaves the plateau at chance. Averages of
    what the first layer's filters and GELU pass follow the spectral shape instead, which is predictable from
    the first step. Each mixture sums to zero over its inputs; otherwise the mean that every GELU adds comes
    to dominate, and few codes are ever chosen.
    """
    for layer in layers[1:]:
        outputs, inputs, kernel = layer.weight.shape
        mixture = torch.randn(outputs, inputs, 1)
        mixture = (mixture - mixture.mean(1, keepdim=True)) * math.sqrt(2 / inputs) / kernel
        rough = torch.randn(outputs, inputs, kernel) * math.sqrt(2 / (inputs * kernel))
        layer.weight.copy_(mixture + roughness * rough)


class LayerNorm(nn.LayerNorm):
    """A layer norm that stays in the input's precision; under autocast, torch would widen everything to fp32.

    Its statistics are accumulated in fp32 either way. Less memory traffic saves a quarter of the front end's
    time on the CPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class Frontend(nn.Module):
    """Waves (B, S) to frames (B, T, C): seven convolutions in the published models, 49 frames per second."""

    def __init__(self, spec: Convolutions, activation: Activation, init: Init) -> None:
        super().__init__()
        self.normalize_wave, self.wave_eps = spec.normalize_wave, spec.wave_eps
        self.kernels, self.strides = spec.kernels, spec.strides
        layers = [ConvLayer(spec, number, activation) for number in range(len(spec.channels))]
        self.layers = nn.ModuleList(layers)
        if init == "smooth":
            smooth_convolutions_(layers)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(self.strides)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees, and so the length of the shortest clip with a frame."""
        field, hop = 1, 1
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            field += (kernel - 1) * hop
            hop *= stride
        return field

    def frame_count(self, lengths: Lengths) -> Lengths:
        """Exact number of frames of waves of `lengths` samples."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            lengths = output_length(lengths, kernel, stride)
        return lengths

    def forward(self, wave_BS: Tensor, lengths_B: Tensor, levels: Levels = ()) -> Frames:
        """levels: moments of the whole clips: of single samples, or, with a group norm, of the samples under
        the first kernel over all its positions. Raises ValueError if the padded batch is too short for a
        single frame."""
        if wave_BS.shape[1] < self.receptive_field:
            raise ValueError(f"a clip needs at least {self.receptive_field} samples, got {wave_BS.shape[1]}")
        if self.normalize_wave:
            moments = given(levels, wave_moments)
            wave_BS = normalize_waves(wave_BS, lengths_B, self.wave_eps, moments)
            levels = [level and self._normalized(level) for level in levels]
        first, *others = self.layers
        frames: Frames = first(Frames(wave_BS[:, :, None], lengths_B), levels)
        for layer in others:
            frames = layer(frames)
        return frames

    def _normalized(self, level: Moments) -> Moments:
        mean, variance = wave_moments(level)
        return level.scaled(float(mean), (float(variance) + self.wave_eps) ** -0.5)
