"""Other views of log-mel spectrograms: mixed, cropped and stretched. On the batch's device.

As in `views`, all chance comes from the generator, and padding stays zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_ssl.objectives.views import behind, cut_or_repeated, uniform
from speech_ssl.types import valid_mask

CROP_AREA = 1.5
"""How far beyond a spectrogram's time a resized crop may reach, half of it at each end."""


def log_mixup_exp(x_BTM: Tensor, lengths_B: Tensor, *, most: float, generator: torch.Generator) -> Tensor:
    """As `mix_in`, of log-mel spectrograms (B, T, M): energies are mixed, not their logarithms (BYOL-A,
    Niizumi et al. 2021, arXiv 2103.06695, section III-B1, which takes the others from a memory of rows)."""
    partner_B, weight_B = behind(len(x_BTM), most, generator)
    other_BTM = cut_or_repeated(x_BTM, lengths_B, partner_B)
    weight_B11 = weight_B[:, None, None]
    mixed_BTM = torch.logaddexp(x_BTM + (-weight_B11).log1p(), other_BTM + weight_B11.log())
    return mixed_BTM.masked_fill(~valid_mask(lengths_B, x_BTM.shape[1])[:, :, None], 0.0)


def resized_crop(
    x_BTM: Tensor, lengths_B: Tensor, *, share: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """A rectangle of each log-mel spectrogram (B, T, M), stretched to the row's size: its time and pitch
    change (BYOL-A, section III-B2, with the numbers of arXiv 2204.07402).

    Its sides are shares of the row's, uniform between the two, and it lies anywhere within 1.5 times the
    row's time, with zeros before and after it, and within its bins. Bicubic, at places between the bins too.
    """
    low, high = share
    if not 0 < low <= high:
        raise ValueError(f"a crop must be (smallest, largest) above 0, not {share}")
    B, T, M = x_BTM.shape
    valid_BT = valid_mask(lengths_B, T)
    width_B = (low + (high - low) * uniform(B, generator)).clamp(max=CROP_AREA) * lengths_B
    height_B = (low + (high - low) * uniform(B, generator)).clamp(max=1.0) * M
    left_B = uniform(B, generator) * (CROP_AREA * lengths_B - width_B) - (CROP_AREA - 1) / 2 * lengths_B
    bottom_B = uniform(B, generator) * (M - height_B)
    at_T, at_M = (torch.arange(size, device=x_BTM.device) + 0.5 for size in (T, M))
    time_BT = left_B[:, None] + at_T * (width_B / lengths_B.clamp(min=1))[:, None]
    bin_BM = bottom_B[:, None] + at_M * (height_B / M)[:, None]
    places = (bin_BM[:, None, :].expand(B, T, M) / M, time_BT[:, :, None].expand(B, T, M) / T)
    x_BTM = x_BTM.masked_fill(~valid_BT[:, :, None], 0.0)
    crop_BTM = F.grid_sample(
        x_BTM[:, None], torch.stack(places, -1) * 2 - 1, mode="bicubic", align_corners=False
    )[:, 0]
    return crop_BTM.masked_fill(~valid_BT[:, :, None], 0.0)
