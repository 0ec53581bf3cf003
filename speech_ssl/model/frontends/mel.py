"""The log-mel front end of w2v-BERT 2.0: normalised mel bins from raw samples, two steps to a frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from speech_ssl.model.config import MelNorm
from speech_ssl.model.convolution import Lengths, output_length
from speech_ssl.model.frontends.levels import Given, given, given_means, given_variances
from speech_ssl.types import SAMPLE_RATE, Frames, Levels, Moments, valid_mask

STEP, WINDOW = 160, 400
"""Hop (10 ms) and window (25 ms) of the spectra, in samples."""
FFT = 512
LOWEST_HZ = 20.0
FULL_SCALE = 2.0**15
"""Kaldi works on the scale of 16-bit integers."""
PREEMPHASIS = 0.97
LEAST_ENERGY = 2.0**-23
"""Floor under the logarithm: float32's epsilon."""


class MelFrontend(nn.Module):
    """Waves (B, S) to frames (B, T, stacked * bins), 100 / stacked per second: Kaldi's log-mel filter bank,
    each bin normalised to mean 0 and variance 1 over the clip, then `stacked` steps side by side. With
    norm="clip" all bins are normalised together.

    (Seamless Communication 2023, arXiv 2312.05187, section 3.2.1; SeamlessM4TFeatureExtractor in
    transformers.) Nothing is learned. Computed in float64 at any precision, result in float32: in float32,
    rounding errors of loud bins reach quiet ones, up to 1e-3 in features of speech; float64 is within 2e-6 of
    transformers.

    Bins are normalised over all valid steps of a row, including last steps that no frame holds.
    """

    def __init__(self, bins: int, stacked: int = 2, norm: MelNorm = "bin") -> None:
        super().__init__()
        self.bins, self.stacked, self.norm = bins, stacked, norm

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return self.stacked * STEP

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees, and so the length of the shortest clip with a frame."""
        return (self.stacked - 1) * STEP + WINDOW

    def frame_count(self, lengths: Lengths) -> Lengths:
        """Exact number of frames of waves of `lengths` samples."""
        return output_length(lengths, self.receptive_field, self.hop)

    def forward(self, wave_BS: Tensor, lengths_B: Tensor, levels: Levels = ()) -> Frames:
        """levels: moments of the whole clips' bins. Raises ValueError if the padded batch has no frame."""
        if wave_BS.shape[1] < self.receptive_field:
            raise ValueError(f"a clip needs at least {self.receptive_field} samples, got {wave_BS.shape[1]}")
        with torch.autocast(wave_BS.device.type, enabled=False):
            steps = Frames(log_mel(wave_BS.double(), self.bins), output_length(lengths_B, WINDOW, STEP))
            normalized, moments = NORMS[self.norm]
            x_BTM = normalized(steps, given(levels, moments)).float()
        count = x_BTM.shape[1] // self.stacked
        x_BTC = x_BTM[:, : count * self.stacked].reshape(len(x_BTM), count, self.stacked * self.bins)
        return Frames(x_BTC, self.frame_count(lengths_B))


def log_mel(wave_BS: Tensor, bins: int) -> Tensor:
    """Log energies in `bins` mel bands at each step: (B, steps, bins), in the wave's precision.

    Kaldi's defaults without dither. Only steps with a full window: nothing is padded at the ends.
    """
    bank = _bank(bins, wave_BS.device)
    x_BTW = wave_BS.unfold(1, WINDOW, STEP) * FULL_SCALE
    x_BTW = x_BTW - x_BTW.mean(2, keepdim=True)
    before_BTW = torch.cat([x_BTW[:, :, :1], x_BTW[:, :, :-1]], dim=2)
    x_BTW = (x_BTW - PREEMPHASIS * before_BTW) * bank.window_W.to(wave_BS.dtype)
    spectrum_BTF = torch.fft.rfft(x_BTW, n=FFT)
    power_BTF = spectrum_BTF.real.square() + spectrum_BTF.imag.square()
    energy_BTM: Tensor = power_BTF @ bank.filters_FM.to(wave_BS.dtype)
    return energy_BTM.clamp(min=LEAST_ENERGY).log()


def _normalized(steps: Frames, moments: Given) -> Tensor:
    """Normalise each bin over its row's valid steps, or by the given moments of the whole clip; unbiased
    variance. Invalid steps become zero."""
    valid_BT1 = valid_mask(steps.lengths_B, steps.x_BTD.shape[1])[:, :, None]
    count_B11 = steps.lengths_B[:, None, None].to(steps.x_BTD.dtype)
    mean_B1M = (steps.x_BTD * valid_BT1).sum(1, keepdim=True) / count_B11.clamp(min=1)
    mean_B1M = given_means(mean_B1M, moments)
    centred_BTM = (steps.x_BTD - mean_B1M) * valid_BT1
    variance_B1M = centred_BTM.square().sum(1, keepdim=True) / (count_B11 - 1).clamp(min=1)
    variance_B1M = given_variances(variance_B1M, moments)
    return centred_BTM / (variance_B1M + 1e-7).sqrt()


def _moments(level: Moments) -> tuple[Tensor, Tensor]:
    variance_M = level.scatter_NN.diagonal() / max(level.count - 1, 1)
    return torch.from_numpy(level.mean_N), torch.from_numpy(variance_M)


def _clip_normalized(steps: Frames, moments: Given) -> Tensor:
    """The same with one mean and one variance for all bins of a row."""
    x_BTM, bins = steps.x_BTD, steps.x_BTD.shape[2]
    valid_BT1 = valid_mask(steps.lengths_B, x_BTM.shape[1])[:, :, None]
    count_B11 = steps.lengths_B[:, None, None].to(x_BTM.dtype) * bins
    mean_B11 = given_means((x_BTM * valid_BT1).sum((1, 2), keepdim=True) / count_B11.clamp(min=1), moments)
    centred_BTM = (x_BTM - mean_B11) * valid_BT1
    variance_B11 = centred_BTM.square().sum((1, 2), keepdim=True) / (count_B11 - 1).clamp(min=1)
    return centred_BTM / (given_variances(variance_B11, moments) + 1e-7).sqrt()


def _clip_moments(level: Moments) -> tuple[Tensor, Tensor]:
    """Of all bins together: the scatter within each bin and that of their means."""
    mean, bins = level.mean_N.mean(), len(level.mean_N)
    scatter = level.scatter_NN.diagonal().sum() + level.count * np.square(level.mean_N - mean).sum()
    return torch.tensor(float(mean)), torch.tensor(float(scatter / max(level.count * bins - 1, 1)))


NORMS: Mapping[
    MelNorm, tuple[Callable[[Frames, Given], Tensor], Callable[[Moments], tuple[Tensor, Tensor]]]
] = {"bin": (_normalized, _moments), "clip": (_clip_normalized, _clip_moments)}
"""How bins are normalised, and what is needed of a whole clip's moments for it."""


class _Bank(NamedTuple):
    window_W: Tensor
    filters_FM: Tensor


@lru_cache(maxsize=8)
def _bank(bins: int, device: torch.device) -> _Bank:
    """In float64. Not buffers of the module, which would be rounded when a model is converted to bf16."""
    with torch.inference_mode(False):
        window_W = torch.hann_window(WINDOW, periodic=False, dtype=torch.float64).pow(0.85)  # Povey's
        lowest, highest = _mels([LOWEST_HZ, SAMPLE_RATE / 2]).tolist()
        edge_E = torch.linspace(lowest, highest, bins + 2, dtype=torch.float64)
        at_F1 = _mels(torch.arange(FFT // 2 + 1) * (SAMPLE_RATE / FFT))[:, None]
        low, middle, high = edge_E[:-2], edge_E[1:-1], edge_E[2:]
        rising, falling = (at_F1 - low) / (middle - low), (high - at_F1) / (high - middle)
        return _Bank(window_W.to(device), torch.minimum(rising, falling).clamp(min=0).to(device))


def _mels(hertz: Tensor | list[float]) -> Tensor:
    return 1127 * torch.log1p(torch.as_tensor(hertz, dtype=torch.float64) / 700)
