"""Reverberation of padded waves by synthetic rooms, as `views` are: random by the generator alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speech_ssl.objectives.views import SILENT, uniform
from speech_ssl.types import SAMPLE_RATE, valid_mask

EARLIEST_S = 0.002
"""When the first reflection comes: after about 70 cm."""


def reverberate(
    wave_BS: Tensor,
    lengths_B: Tensor,
    *,
    share: float,
    generator: torch.Generator,
    decay_s: tuple[float, float] = (0.1, 0.6),
    direct_db: tuple[float, float] = (0.0, 15.0),
) -> Tensor:
    """A share of the rows as they sound in a room. Its response is a click, then Gaussian noise that decays
    (Moorer 1979), by 60 dB within a time that is uniform between the two of `decay_s`; the ratio of the
    click's energy to the noise's is uniform in dB. Rows keep their lengths and their energy.
    """
    for name, (low, high) in {"decay_s": decay_s, "direct_db": direct_db}.items():
        if low > high or (name == "decay_s" and low <= 0):
            raise ValueError(f"{name} must be (lowest, highest), not {low, high}; times are more than 0")
    B, S = wave_BS.shape
    device = wave_BS.device
    inside_B = uniform(B, generator) < share
    decay_B1 = (decay_s[0] + (decay_s[1] - decay_s[0]) * uniform(B, generator))[:, None]
    ratio_B1 = 10 ** ((direct_db[0] + (direct_db[1] - direct_db[0]) * uniform(B, generator)) / 10)[:, None]
    taps = round(decay_s[1] * SAMPLE_RATE)
    second_R = torch.arange(taps, device=device) / SAMPLE_RATE
    tail_BR = torch.randn(B, taps, device=device, generator=generator)
    tail_BR = tail_BR * torch.exp(-math.log(1000) * second_R / decay_B1) * (second_R >= EARLIEST_S)
    response_BR = tail_BR / (ratio_B1.sqrt() * torch.linalg.vector_norm(tail_BR, dim=1, keepdim=True))
    response_BR[:, 0] = 1.0
    size = 1 << (S + taps - 1).bit_length()
    heard_BS = torch.fft.irfft(
        torch.fft.rfft(wave_BS.float(), n=size) * torch.fft.rfft(response_BR, n=size), n=size
    )[:, :S]
    heard_BS = heard_BS.masked_fill(~valid_mask(lengths_B, S), 0.0)
    before_B1, after_B1 = (
        torch.linalg.vector_norm(x_BS.float(), dim=1, keepdim=True) for x_BS in (wave_BS, heard_BS)
    )
    heard_BS = heard_BS * torch.where(after_B1 > SILENT, before_B1 / after_B1.clamp(min=SILENT), 0.0)
    return torch.where(inside_B[:, None], heard_BS.to(wave_BS.dtype), wave_BS)
